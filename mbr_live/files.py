"""Files that a crash or a power cut may meet at any moment: how they are replaced whole, and mended."""

from __future__ import annotations

import os
from pathlib import Path

PART_SUFFIX = ".part"
_BLOCK_BYTES = 4096


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace `path` by `text`: a reader sees the old file or the new one, never half of it.

    `durable`: so it is after a power cut too, and this takes as long as the disk does. Else the file may be empty then.
    """
    part = path.with_name(path.name + PART_SUFFIX)
    try:
        with part.open("w") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def is_emptied(path: Path) -> bool:
    """Whether a file holds nothing but what a power cut leaves of one that was not on the disk yet."""
    return not path.read_bytes().strip(b"\0")


def cut_torn_row(path: Path) -> None:
    """Remove what stands after the last newline of a log: a row that was not written whole, or zeros of a power cut."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK_BYTES)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        file.truncate(end)
