"""Files that one process has at a time, by a lock of the operating system, which ends with the process."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from mbr_live.types import MbrError

_log = logging.getLogger(__name__)


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


@contextmanager
def held(path: Path, refusal: str) -> Iterator[None]:
    """Keep every other process from what `path`, a file for this alone, stands for. MbrError where one has it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path, refusal))
            stack.callback(_delete, path)
        except OSError as error:  # a network drive, a full disk: labels come first
            _log.warning("%s: cannot be locked (%s), so nothing keeps a second process out", path, error.strerror)
        yield


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s: stays, though nobody has it (%s)", path, error.strerror)
