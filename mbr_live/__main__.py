"""`python -m mbr_live` is `mbr-live`."""

from mbr_live.cli import main

if __name__ == "__main__":
    main()
