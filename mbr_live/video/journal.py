"""The frame journal of a live session: a row for every frame that was sampled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mbr_live.frame_rows import seek_row
from mbr_live.types import MbrError

JOURNAL_SUFFIX = ".frames.csv"
JOURNAL_HEADER = "frame,source_frame,time_ns"


JournalRow = tuple[int, int, int]
"""Tick, source frame and capture time in ns of a frame that was sampled."""


def read_journal(path: Path, *, from_frame: int = 0) -> Iterator[JournalRow]:
    """The rows of a frame journal from a tick on, oldest first; a torn last line does not count."""
    if not path.is_file():
        raise MbrError(f"{path}: there is no such frame journal. Expected the {JOURNAL_SUFFIX} of a live session.")
    with path.open("rb") as lines:
        header = lines.readline().decode(errors="replace")
        if header not in (JOURNAL_HEADER + "\n", ""):
            raise MbrError(f"{path}: found the header {header[:60]!r}, expected {JOURNAL_HEADER!r}. Check the file.")
        if from_frame:  # without what lies before: the journal of six weeks has 36 million rows
            seek_row(lines, path, from_frame)
        for line in lines:
            if line.endswith(b"\n"):
                yield _journal_row(path, line.decode(errors="replace"))


def journal_ends(path: Path) -> tuple[JournalRow | None, JournalRow | None]:
    """The first and the last row of a frame journal; None where it has no rows."""
    first = next(read_journal(path), None)
    if first is None:
        return None, None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        whole_lines = file.read().decode().split("\n")[:-1]
    return first, _journal_row(path, whole_lines[-1])


def _journal_row(path: Path, line: str) -> JournalRow:
    try:
        index, source_frame, time_ns = map(int, line.split(","))
    except ValueError as error:
        raise MbrError(f"{path}: the row {line.strip()!r} is not three whole numbers. Was the file edited?") from error
    return index, source_frame, time_ns
