"""Where results are to go: what is wrong with a place is said before the work, not after it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from mbr_live.types import MbrError


def writable(folder: Path) -> Path:
    """The folder, or the nearest above it that is there. OSError where nothing can be written; nothing is left."""
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is a file", str(there))
    with TemporaryFile(dir=there):  # tried, since permissions do not tell of file systems that are read only
        return there


def check_writable(folder: Path) -> None:
    """MbrError where no results can be written into `folder`, which need not be there yet; nothing is left."""
    with writing_into(folder):
        writable(folder)


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """MbrError where what is done in it meets an error of the disk."""
    try:
        yield
    except OSError as error:
        raise MbrError(
            f"{folder}: results cannot be written there ({error.strerror or error}). Check the name, its permissions "
            "and the room on the disk, or give another folder."
        ) from error
