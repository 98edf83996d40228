"""Rows at the end of log files, and what becomes of them when the disk takes none.

A row is one write, so a process that is killed leaves whole rows. A disk that others have filled is no reason to end:
rows wait in memory, in order and up to a limit, until there is room.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import TypeVar

from mbr_live.processes import notify
from mbr_live.types import RATE_FPS, MbrError

MOST_WAITING = 600 * RATE_FPS  # rows of one file: ten minutes of a camera
RETRY_S = 1.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
T = TypeVar("T")

_log = logging.getLogger(__name__)


class Unwritable(MbrError):
    """The disk did not take a row."""

    def __init__(self, path: Path | str, why: str, number: int | None) -> None:
        super().__init__(f"{path}: cannot be written ({why}). Make room on the disk or choose another folder.")
        self.errno = number


def append(file: FileIO, text: str) -> None:
    """Append whole lines in one write. Unwritable when the disk does not take all of it; half a line is taken back."""
    data = text.encode()
    position = file.seek(0, os.SEEK_END)
    try:
        written = file.write(data)
    except OSError as error:
        raise Unwritable(str(file.name), error.strerror or str(error), error.errno) from error
    if written != len(data):
        file.truncate(position)
        raise Unwritable(str(file.name), f"only {written} of {len(data)} bytes were taken", errno.ENOSPC)


class WaitingRows:
    """Appends rows to a file that is opened with the first of them; what the disk does not take waits in memory."""

    def __init__(self, path: Path, header: str = "", *, clock_s: Callable[[], float] = time.monotonic) -> None:
        """`header` comes first where the file is empty."""
        self.path, self._header, self._clock_s = path, header, clock_s
        self._file: FileIO | None = None
        self._waiting: deque[str] = deque()
        self._retry_at_s = 0.0

    def __len__(self) -> int:
        """Rows that wait."""
        return len(self._waiting)

    def append(self, row: str) -> None:
        """Append a row now or, where the disk takes none, later. Unwritable where too many wait already."""
        if len(self._waiting) >= MOST_WAITING and not self.flush():
            raise Unwritable(self.path, f"{len(self._waiting)} rows wait for room already", errno.ENOSPC)
        self._waiting.append(row)
        self.flush()

    def write(self, row: str) -> None:
        """Append a row now, behind those that wait. Unwritable, and the row is forgotten, where that cannot be."""
        while self._waiting:
            self._write(self._waiting[0])
            self._waiting.popleft()
        self._write(row)

    def flush(self) -> bool:
        """Write what waits, if it is time to try; whether nothing waits any more."""
        if not self._waiting:
            return True
        if self._clock_s() < self._retry_at_s:
            return False
        failed_before = self._retry_at_s > 0
        try:
            while self._waiting:
                self._write(self._waiting[0])
                self._waiting.popleft()
        except Unwritable as error:
            if not failed_before:
                _log.error("%s Its rows wait in memory meanwhile.", error)
            self._retry_at_s = self._clock_s() + RETRY_S
            return False
        if failed_before:
            _log.warning("%s: is written again, and nothing is missing", self.path)
        self._retry_at_s = 0.0
        return True

    def close(self) -> None:
        """Write what can be written, and close the file."""
        self._retry_at_s = 0.0
        if not self.flush():
            _log.error("%s: the last %d rows found no room and are lost", self.path, len(self._waiting))
        if self._file is not None:
            self._file.close()

    def open(self) -> FileIO:
        """Open the file now, and not with the first row. Unwritable where that cannot be."""
        if self._file is None:
            try:
                self._file = FileIO(self.path, "a")
            except OSError as error:
                raise Unwritable(self.path, error.strerror or str(error), error.errno) from error
        return self._file

    def _write(self, row: str) -> None:
        file = self.open()
        header = self._header if self._header and self.path.stat().st_size == 0 else ""
        append(file, header + row)
        self._header = ""


def once_there_is_room(work: Callable[[], T], stopped: Callable[[], bool]) -> T | None:
    """What `work` returns; it is done again and again while it fails for want of room, until `stopped`: then None."""
    told = False
    while not stopped():
        try:
            return work()
        except (Unwritable, OSError) as error:
            if error.errno not in _NO_ROOM:
                raise
            if not told:
                _log.error("waiting for room on the disk: %s", error)
            told = True
        notify("EXTEND_TIMEOUT_USEC=30000000")  # systemd waits for READY only so long
        time.sleep(RETRY_S)
    return None
