"""Files whose rows begin with their frame, in its order: found where they are, without reading those before."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from mbr_live.types import MbrError


def seek_row(file: BinaryIO, path: Path, frame: int) -> None:
    """Go to the first row, of those from here on, whose frame is not before `frame`. MbrError for a damaged row."""
    low, high = file.tell(), file.seek(0, os.SEEK_END)
    while low < high:
        file.seek((low + high) // 2)
        file.readline()  # to the start of a row
        start = file.tell()
        line = file.readline()
        if line.endswith(b"\n") and _frame_of(path, line) < frame:
            low = start + len(line)
        else:
            high = (low + high) // 2
    file.seek(low)
    while (line := file.readline()).endswith(b"\n") and _frame_of(path, line) < frame:
        low = file.tell()
    file.seek(low)


def _frame_of(path: Path, line: bytes) -> int:
    frame = line.partition(b",")[0]
    if not frame.isdigit():
        raise MbrError(f"{path}: the row {line[:80]!r} is damaged (it begins with no frame). Was the file edited?")
    return int(frame)
