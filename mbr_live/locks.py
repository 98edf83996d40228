"""Files that one process has at a time, by a lock of the operating system, which ends with the process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mbr_live.types import MbrError


@contextmanager
def locked(path: Path, refusal: str | None = None) -> Iterator[BinaryIO]:
    """A file to append to, made if need be, that no other process has meanwhile. Who has it may delete it.

    Another that wants it waits or, given a `refusal`, gets that as an MbrError. OSError where it cannot be had.
    """
    while True:
        with path.open("ab") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
            except BlockingIOError as error:
                raise MbrError(refusal) from error
            if _is_at(path, stream):
                yield stream
                return


def _is_at(path: Path, stream: BinaryIO) -> bool:
    """Whether an open file is still there: who had it before has deleted it."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False
