"""The label log of a live session in files: one that grows and, before it, the hours or days that are closed.

`<camera>.labels.csv` grows. At the first row of another hour or day (UTC, by capture time) it is moved to
`<camera>.labels/<first frame>.csv`, which nothing changes any more, and begun anew. Every file has the header; their
rows one after the other are those of a log that was never moved.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Literal

from mbr_live.appending import Unwritable, append
from mbr_live.types import TICK_NS, Decision

Rotation = Literal["off", "hour", "day"]
PERIOD_NS: dict[Rotation, int] = {"off": 0, "hour": 3_600_000_000_000, "day": 86_400_000_000_000}
SEGMENT_SUFFIX = ".csv"
_PART_SUFFIX = ".part"

_log = logging.getLogger(__name__)


def segment_folder(labels: Path) -> Path:
    """Where the closed segments of a label log are."""
    return labels.with_suffix("")


def closed_segments(labels: Path) -> list[Path]:
    """The closed segments of a label log, oldest first."""
    return segments_in(segment_folder(labels))


def segments_in(folder: Path) -> list[Path]:
    """The closed segments in a folder of them, oldest first. What people put beside them is none."""
    return sorted(path for path in folder.glob(f"*{SEGMENT_SUFFIX}") if path.stem.isdecimal())


def first_frame_of(segment: Path) -> int:
    """The first frame of a closed segment."""
    return int(segment.stem)


def in_periods(decision: Decision, period_ns: int) -> Iterator[Decision]:
    """A decision in pieces that cross no border; only a gap has several. `period_ns` 0: whole."""
    while period_ns:
        until_ns = (decision.time_ns // period_ns + 1) * period_ns
        ticks = -(-(until_ns - decision.time_ns) // TICK_NS)  # before the border
        if decision.ticks <= ticks:
            break
        yield replace(decision, ticks=ticks)
        decision = replace(
            decision,
            index=decision.index + ticks,
            time_ns=decision.time_ns + ticks * TICK_NS,
            ticks=decision.ticks - ticks,
        )
    yield decision


class LabelFile:
    """The file of a label log that grows."""

    def __init__(self, path: Path, header: str, rotation: Rotation, *, first: tuple[int, int] | None) -> None:
        """Opens `path`, which has its header already; `first` is frame and capture time (ns) of its first row."""
        self.file = FileIO(path, "a")
        self.path, self._header, self._period_ns, self._first = path, header, PERIOD_NS[rotation], first
        self._sealing: threading.Thread | None = None

    def pieces(self, decision: Decision) -> Iterator[Decision]:
        """What of a decision belongs into one file each."""
        return in_periods(decision, self._period_ns)

    def make_ready_for(self, decision: Decision) -> None:
        """Close the segment if its time is over. Unwritable where there is no room; then nothing has changed."""
        if self._first is not None and self._period_ns:
            frame, time_ns = self._first
            if time_ns // self._period_ns != decision.time_ns // self._period_ns:
                self._rotate(frame)
        if self._first is None:
            self._first = decision.index, decision.time_ns

    def _rotate(self, first_frame: int) -> None:
        part = self.path.with_name(self.path.name + _PART_SUFFIX)
        segment = segment_folder(self.path) / f"{first_frame:010d}{SEGMENT_SUFFIX}"
        try:
            segment.parent.mkdir(exist_ok=True)
            fresh = FileIO(part, "w")
        except OSError as error:
            raise Unwritable(part, error.strerror or str(error), error.errno) from error
        with closing(fresh):
            append(fresh, self._header)
        try:
            if self.path.exists():  # else an earlier try has come so far
                self.path.rename(segment)
            part.rename(self.path)
            closed, self.file, self._first = self.file, FileIO(self.path, "a"), None
        except OSError as error:
            raise Unwritable(segment, error.strerror or str(error), error.errno) from error
        # A disk may take its time; labels do not wait for it. What a power cut takes meanwhile, resuming mends.
        self._sealing = threading.Thread(target=_seal, args=(closed, segment.parent), name="sealing")
        self._sealing.start()

    def close(self) -> None:
        """Close the file, once the segment before it is safe."""
        if self._sealing is not None:
            self._sealing.join()
        self.file.close()


def _seal(closed: FileIO, folder: Path) -> None:
    """Make a closed segment, and the names of both files, outlive a power cut."""
    with closing(closed):
        try:
            os.fsync(closed.fileno())
            for each in (folder, folder.parent):
                directory = os.open(each, os.O_RDONLY)
                try:
                    os.fsync(directory)
                finally:
                    os.close(directory)
        except OSError as error:
            _log.warning("%s: not known to be safe on the disk (%s)", closed.name, error.strerror)
