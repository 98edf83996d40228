"""Label log and bout log of one recording, written row by row, and taken up by the process that goes on with them.

The label log is the truth. A row is one write, so a process that is killed leaves whole rows; the bout log is a pure
function of the label log and is made anew from it when a session goes on after a crash.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from mbr_live.appending import Unwritable, append
from mbr_live.files import PART_SUFFIX, cut_torn_row
from mbr_live.manifest import Manifest
from mbr_live.processes import notify
from mbr_live.sinks.bouts import BOUTS_HEADER, BoutFollower, bout_row
from mbr_live.sinks.checkpoints import Beginning, Checkpoint, CheckpointFolder, Place, RecognisedRows
from mbr_live.sinks.label_log import (
    LabelRow,
    follow_gap_range,
    gap_ranges,
    has_header,
    label_header,
    label_rows,
    last_frame_of_file,
    read_labels,
    rows_of_file,
)
from mbr_live.sinks.label_segments import LabelFile, Rotation, closed_segments, first_frame_of
from mbr_live.stages.decide import Bout
from mbr_live.types import RATE_FPS, TICK_NS, UNKNOWN, Decision, Status

ROWS_PER_CHECKPOINT = 300 * RATE_FPS  # five minutes
_ROWS_PER_WRITE = 4096
_ROWS_PER_WORD = 200_000  # read at the start of a session: a second or two

_log = logging.getLogger(__name__)


class SessionLog:
    """Label log and bout log of one recording. Every row that `write` took is in the label log when it returns.

    With `kept`, it notes the stretches without a frame too, and how far it is, for the process that goes on with it.
    """

    def __init__(
        self,
        labels: LabelFile,
        bouts: RecognisedRows,
        manifest: Manifest,
        kept: _Kept | None = None,
        start: Checkpoint | None = None,
    ) -> None:
        """`start` is what follows from the rows that are there."""
        self._labels, self._bouts, self._kept = labels, bouts, kept
        self._start = start or Checkpoint.empty(manifest)
        self._follower = BoutFollower(manifest, self._start.bout_states)
        self.rows: Counter[str] = Counter(self._start.rows)
        self.bout_counts: Counter[str] = Counter(self._start.bout_counts)
        self._last, self._open_gap = self._start.last, self._start.open_gap
        self._since_checkpoint = 0  # rows

    @property
    def last_index(self) -> int:
        """The last tick that is in the log; -1 where none is."""
        return self._last.frame

    @classmethod
    def create(cls, labels: Path, bouts: Path, manifest: Manifest) -> SessionLog:
        """Begin new files; what stands under these names is overwritten."""
        _begin(labels, manifest)
        with ExitStack() as undo:
            log_file = LabelFile(labels, label_header(manifest) + "\n", "off", first=None)
            undo.callback(log_file.close)
            log = cls(log_file, RecognisedRows(bouts, Beginning(), BOUTS_HEADER), manifest)
            undo.pop_all()
        return log

    @classmethod
    def resume(cls, labels: Path, bouts: Path, manifest: Manifest, rotation: Rotation = "off") -> SessionLog:
        """Go on with the files of a session that was interrupted; begin them where there are none.

        A last row that was torn off by a power cut goes. What follows from the label log is made anew from its rows, or
        from those behind the newest checkpoint that fits it; the bout log is then replaced as a whole.
        """
        folder = CheckpointFolder(labels)
        _mend(labels, manifest, folder)
        start, rows = folder.newest_fitting(labels, bouts, manifest)
        remade = bouts.with_name(bouts.name + PART_SUFFIX)
        if start.bouts.size:
            shutil.copyfile(bouts, remade)
        with labels.open("rb") as file:
            row = next(rows_of_file(file, labels, manifest, 0, growing=False), None)
        first = (row.index, row.time_ns) if row else None
        with ExitStack() as undo:
            log_file = LabelFile(labels, label_header(manifest) + "\n", rotation, first=first)
            undo.callback(log_file.close)
            ended = RecognisedRows(remade, start.bouts, BOUTS_HEADER)
            undo.callback(ended.close)
            gaps = folder.open_gaps(start.gaps)
            undo.callback(gaps.close)
            log = cls(log_file, ended, manifest, _Kept(folder, gaps), start)
            log._follow_all(_told(rows, labels))
            remade.replace(bouts)
            ended.path = bouts
            undo.pop_all()
        return log

    def _follow_all(self, rows: Iterator[LabelRow]) -> None:
        """Take rows that are in the log already, and note now and then how far it is, lest a kill undo all of it."""
        for number, row in enumerate(rows, 1):
            self._follow(Place.of(row), 1, row.probabilities, RecognisedRows.write)
            if number % _ROWS_PER_WORD == 0:
                self._write_checkpoint()

    def write(self, decision: Decision) -> None:
        """Append the rows of a decision, and the bouts that they end.

        Unwritable when the disk does not take all of its rows. It may be tried again: nothing is written twice.
        """
        for piece in self._labels.pieces(decision):
            if piece.index <= self.last_index:
                continue  # there since the last try
            self._labels.make_ready_for(piece)
            self._append(piece)
            self._follow(Place.of_last(piece), piece.ticks, piece.probabilities, RecognisedRows.append)
            if self._since_checkpoint >= ROWS_PER_CHECKPOINT:
                self._write_checkpoint()

    def _follow(
        self, last: Place, ticks: int, probabilities: tuple[float, ...], put: Callable[[RecognisedRows, str], None]
    ) -> None:
        """Take rows that are in the log: `ticks` of a gap, or one."""
        first = last.frame - ticks + 1
        self._last = last
        self.rows[last.status] += ticks
        self._since_checkpoint += ticks
        if last.status == Status.GAP:
            bouts = self._follower.follow_gap(first, last.labels, ticks)
            gap, self._open_gap = follow_gap_range(first, ticks, self._open_gap)
            if gap is not None and self._kept is not None:
                put(self._kept.gaps, f"{gap[0]},{gap[1]}\n")
        else:
            bouts = self._follower.follow(first, last.labels, probabilities)
        self._note_bouts(bouts, put)

    def _write_checkpoint(self) -> None:
        """Note how far it is, unless files lack rows that would be needed to go on from here."""
        if self._kept is None or self.last_index < 0 or not (self._bouts.complete and self._kept.gaps.complete):
            return
        self._since_checkpoint = 0
        update = {
            "last": self._last, "bout_states": tuple(self._follower.states), "bout_counts": dict(self.bout_counts),
            "rows": dict(self.rows), "open_gap": self._open_gap, "bouts": self._bouts.beginning,
            "gaps": self._kept.gaps.beginning,
        }  # fmt: skip
        self._kept.folder.write(self._start.model_copy(update=update))

    def gap_ranges(self) -> list[tuple[int, int]]:
        """First and last tick of every stretch without a frame: as noted or, where that is not whole, from the rows."""
        if self._kept is None or not self._kept.gaps.beginning.is_of(self._kept.gaps.path):
            return gap_ranges(_told(read_labels(self._labels.path), self._labels.path))
        with self._kept.gaps.path.open() as lines:
            next(lines)
            ranges = [(int(first), int(last)) for first, _, last in (line.partition(",") for line in lines)]
        return [*ranges, self._open_gap] if self._open_gap else ranges

    def write_all(self, decisions: Iterable[Decision]) -> None:
        """Append the rows of several decisions."""
        for decision in decisions:
            self.write(decision)

    def close(self) -> None:
        """End the open bouts at their last confirmed frames and close the files. Unwritable if bouts found no room."""
        self._write_checkpoint()  # with the bouts that are open: who goes on may see more of them
        self._note_bouts(self._follower.end(), RecognisedRows.append)
        self._labels.close()
        self._bouts.close()
        if self._kept is not None:
            self._kept.gaps.close()
        if self._bouts:
            raise Unwritable(self._bouts.path, f"{len(self._bouts)} bouts are missing", errno.ENOSPC)

    def _note_bouts(self, bouts: list[Bout], put: Callable[[RecognisedRows, str], None]) -> None:
        for bout in bouts:
            put(self._bouts, bout_row(bout))
            self.bout_counts[bout.behaviour] += 1

    def _append(self, piece: Decision) -> None:
        """All rows of a piece, or none."""
        file, rows = self._labels.file, label_rows(piece)
        position = file.seek(0, os.SEEK_END)
        try:
            while batch := list(islice(rows, _ROWS_PER_WRITE)):
                append(file, "".join(batch))
        except Unwritable:
            file.truncate(position)
            raise


def _begin(labels: Path, manifest: Manifest) -> None:
    with closing(FileIO(labels, "w")) as file:
        append(file, label_header(manifest) + "\n")


def _mend(labels: Path, manifest: Manifest, kept: CheckpointFolder) -> None:
    """Take away what a power cut tore; MbrError, and nothing is changed, for the log of another bundle."""
    newest = closed_segments(labels)[-1:]
    begun = [has_header(file, manifest) for file in (labels, *newest)]
    if not begun[0]:
        _begin(labels, manifest)
    cut_torn_row(labels)
    for segment in newest:
        if not begun[1]:
            _begin(segment, manifest)
        _mend_newest_segment(segment, labels, manifest, kept)


def _mend_newest_segment(newest: Path, labels: Path, manifest: Manifest, kept: CheckpointFolder) -> None:
    """What a power cut took of the segment that was closed last becomes a gap, so that every tick keeps its row."""
    cut_torn_row(newest)
    last = last_frame_of_file(newest)
    last = first_frame_of(newest) - 1 if last is None else last
    with labels.open("rb") as file:
        following = next(rows_of_file(file, labels, manifest, 0, growing=False), None)
    with closing(FileIO(newest, "a")) as file:
        if following is not None and last + 1 < following.index:
            kept.forget(last + 1)  # first: they go by the rows that are lost
            ticks, nan = following.index - last - 1, math.nan
            unknown = (UNKNOWN,) * len(manifest.behaviour_names)
            time_ns = following.time_ns - ticks * TICK_NS
            gap = Decision("", last + 1, UNKNOWN, time_ns, Status.GAP, nan, nan, (), unknown, ticks)
            append(file, "".join(label_rows(gap)))
        os.fsync(file.fileno())


class _Kept(NamedTuple):
    """What a live session keeps for the process that goes on with it."""

    folder: CheckpointFolder
    gaps: RecognisedRows


def _told(rows: Iterator[LabelRow], labels: Path) -> Iterator[LabelRow]:
    """The rows. systemd, which waits only so long for a start or an end, hears that it goes on, and people how far."""
    for number, row in enumerate(rows):
        if number % _ROWS_PER_WORD == 0:
            notify("EXTEND_TIMEOUT_USEC=30000000")
            if number:
                _log.info("%s: %d rows have been read so far", labels, number)
        yield row
