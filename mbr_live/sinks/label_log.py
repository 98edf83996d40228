"""The label log: its rows, as they are written and as they are read back, from all files of a session.

One function reads it, `read_labels`, whether or not its hours or days are closed (`mbr_live.sinks.label_segments`).
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

from mbr_live.frame_rows import seek_row
from mbr_live.manifest import Manifest
from mbr_live.sinks.label_segments import closed_segments, first_frame_of
from mbr_live.types import TICK_NS, Decision, MbrError, Status

LABELS_SUFFIX = ".labels.csv"


def label_header(manifest: Manifest) -> str:
    """Header of the label log of a bundle."""
    names = manifest.behaviour_names
    return ",".join(["frame,source_frame,time_ns,status,x_px,y_px", *(f"p_{name}" for name in names), *names])


def label_rows(decision: Decision) -> Iterator[str]:
    """The rows of a decision: one, or one per tick of a gap."""
    x, y = ("" if math.isnan(v) else f"{v:.1f}" for v in (decision.x_px, decision.y_px))
    p = ",".join(f"{p:.6f}" for p in decision.probabilities) or "," * (len(decision.labels) - 1)
    tail = f"{decision.status},{x},{y},{p},{','.join(map(str, decision.labels))}\n"
    for tick in range(decision.ticks):
        yield f"{decision.index + tick},{decision.source_frame},{decision.time_ns + tick * TICK_NS},{tail}"


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One row of a label log, read back."""

    index: int
    source_frame: int
    time_ns: int
    status: str
    x_px: float
    y_px: float
    probabilities: tuple[float, ...]
    labels: tuple[int, ...]


def read_labels(
    path: Path, manifest: Manifest | None = None, *, from_frame: int = 0, growing: bool = False
) -> Iterator[LabelRow]:
    """The rows of a label log, closed segments included, from a frame on; with `manifest`, it must be a log of that
    bundle's behaviours.

    `growing`: the log may be written to meanwhile, so a last row without an end is not one yet.
    """
    newest = _opened(path)
    segments = closed_segments(path)  # after `newest` was opened: it may be moved here meanwhile, and is read once
    try:
        for segment, next_one in zip_longest(segments, segments[1:]):
            if next_one is not None and first_frame_of(next_one) <= from_frame:
                continue
            with segment.open("rb") as file:
                for row in rows_of_file(file, segment, manifest, from_frame, growing=False):
                    yield row
                    from_frame = row.index + 1
        if newest is not None:
            yield from rows_of_file(newest, path, manifest, from_frame, growing=growing)
    finally:
        if newest is not None:
            newest.close()


def last_frame(path: Path) -> int:
    """The last frame of a label log, which may be written to meanwhile; -1 where there is none."""
    try:
        newest = _opened(path)
    except (FileNotFoundError, NotADirectoryError):
        return -1
    segments = closed_segments(path)  # after `newest` was opened, as in `read_labels`
    if newest is not None:
        with newest:
            frame = _last_frame_in(newest)
        if frame is not None:
            return frame
    return next((frame for each in reversed(segments) if (frame := last_frame_of_file(each)) is not None), -1)


def last_frame_of_file(file: Path) -> int | None:
    """Of one file of a label log; None where it has no rows."""
    with file.open("rb") as log:
        return _last_frame_in(log)


def _last_frame_in(log: BinaryIO) -> int | None:
    log.seek(max(0, log.seek(0, os.SEEK_END) - 8192))
    rows = log.read().split(b"\n")[:-1]
    first = rows[-1].split(b",")[0] if rows else b""
    return int(first) if first.isdigit() else None


def _opened(path: Path) -> BinaryIO | None:
    """The file of a log that grows; None at the moment in which it is moved and begun anew."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        if closed_segments(path):
            return None
        raise


def rows_of_file(
    file: BinaryIO, path: Path, manifest: Manifest | None, from_frame: int, *, growing: bool
) -> Iterator[LabelRow]:
    """The rows of one file of a label log."""
    behaviours = len(_behaviours_of(path, file.readline(), manifest))
    if from_frame:
        seek_row(file, path, from_frame)
    lines = (line.decode(errors="replace") for line in file if not growing or line.endswith(b"\n"))
    for row in csv.reader(lines):
        yield _label_row(path, row, behaviours)


def has_header(path: Path, manifest: Manifest) -> bool:
    """Whether the first line of a file of a label log is whole; MbrError where it is not the one of that bundle."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        line = file.readline()
    if not line.endswith(b"\n"):
        return False
    _behaviours_of(path, line, manifest)
    return True


def _behaviours_of(path: Path, line: bytes, manifest: Manifest | None) -> tuple[str, ...]:
    header = next(csv.reader([line.decode(errors="replace")]), [])
    behaviours = _logged(path, header)
    if manifest is not None and ",".join(header) != label_header(manifest):
        raise MbrError(
            f"{path}: this log has the columns {','.join(header)!r}, the bundle {manifest.name} writes "
            f"{label_header(manifest)!r}. Use the bundle that the session began with, or another folder."
        )
    return behaviours


def logged_behaviours(path: Path) -> tuple[str, ...]:
    """The behaviours [K] of a label log, in the order of its columns."""
    with _opened(path) or closed_segments(path)[0].open("rb") as file:
        return _behaviours_of(path, file.readline(), None)


def _logged(path: Path, header: list[str]) -> tuple[str, ...]:
    if header[:6] != ["frame", "source_frame", "time_ns", "status", "x_px", "y_px"]:
        raise MbrError(f"{path}: this is not a label log (header {','.join(header)[:80]!r}). Check the folder.")
    return tuple(header[6 + (len(header) - 6) // 2 :])


def _label_row(path: Path, row: list[str], behaviours: int) -> LabelRow:
    try:
        x, y = (float(value) if value else math.nan for value in row[4:6])
        p = tuple(float(value) for value in row[6 : 6 + behaviours] if value)
        labels = tuple(int(value) for value in row[6 + behaviours : 6 + 2 * behaviours])
        if len(row) != 6 + 2 * behaviours:
            raise ValueError(f"{len(row)} columns")
        return LabelRow(int(row[0]), int(row[1]), int(row[2]), row[3], x, y, p, labels)
    except (ValueError, IndexError) as error:
        raise MbrError(f"{path}: the row {','.join(row)!r} is damaged ({error}). Was the file edited?") from error


def gap_ranges(rows: Iterable[LabelRow]) -> list[tuple[int, int]]:
    """First and last tick of every stretch of gap rows."""
    ranges: list[tuple[int, int]] = []
    newest: tuple[int, int] | None = None
    for row in rows:
        if row.status == Status.GAP:
            ended, newest = follow_gap_range(row.index, 1, newest)
            ranges += [ended] if ended else []
    return [*ranges, newest] if newest else ranges


def follow_gap_range(
    index: int, ticks: int, newest: tuple[int, int] | None
) -> tuple[tuple[int, int] | None, tuple[int, int]]:
    """Take `ticks` gap rows from `index` on; the stretch that has ended before them, if any, and the newest one."""
    if newest is not None and newest[1] == index - 1:
        return None, (newest[0], index + ticks - 1)
    return newest, (index, index + ticks - 1)
