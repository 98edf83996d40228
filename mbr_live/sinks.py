"""What the pipeline says, in files: the label log, the bout log and the manifest of a run.

The label log is the truth. A row is one write, so a process that is killed leaves whole rows; the bout log is a pure
function of the label log and is made anew from it when a session goes on after a crash.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import platform
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from importlib.metadata import version
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from mbr_live.appending import Unwritable, append
from mbr_live.checkpoints import Beginning, Checkpoint, CheckpointFolder, Place, RecognisedRows
from mbr_live.label_log import (
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
from mbr_live.label_segments import LabelFile, Rotation, closed_segments, first_frame_of
from mbr_live.manifest import Manifest
from mbr_live.processes import notify
from mbr_live.stages.decide import Bout, BoutState, end_bout, follow_bout
from mbr_live.types import RATE_FPS, TICK_NS, UNKNOWN, Decision, MbrError, Status

BOUTS_SUFFIX = ".bouts.csv"
RUN_SUFFIX = ".run.json"
PART_SUFFIX = ".part"

BOUTS_HEADER = "behaviour,start_frame,stop_frame,start_s,stop_s,duration_s,mean_p,complete"
ROWS_PER_CHECKPOINT = 300 * RATE_FPS  # five minutes
_ROWS_PER_WRITE = 4096
_ROWS_PER_WORD = 200_000  # read at the start of a session: a second or two
_BLOCK_BYTES = 4096
_CAPTURES_KNOWN = 4  # the last words of one that has ended may arrive behind the first of the next

_log = logging.getLogger(__name__)


class RunManifest(BaseModel):
    """What a run was made of and what became of its frames: `<recording>.run.json`."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    recording: str
    mode: Literal["live", "batch"]
    exit_status: Literal["running", "complete", "stopped"]
    started: str  # UTC, ISO 8601
    finished: str | None = None
    bundle: str
    bundle_sha256: str
    causal: bool = True  # False: labels look ahead, as no live run's do
    max_gap_frames: int | None = None  # unknown frames that a bout goes on over; None in runs from before it was kept
    engine: str
    versions: dict[str, str]
    sources: list[str]
    rows: dict[str, int] = {}  # of the label log, by status
    bouts: dict[str, int] = {}  # by behaviour
    drops: list[tuple[int, int]] = []  # first and last tick of every stretch without a frame
    restarts: list[int] = []  # the last tick before each restart of inference; the lane began anew after it
    window_px: int | None = None
    clock: str = ""  # of the capture times, live: host, camera, file or simulated
    outages: dict[str, int] = {}  # how often the camera was lost, by cause; each is in the outage log
    capture: dict[str, int] = {}  # what became of frames at capture, over all capture processes of the session
    captures: dict[str, dict[str, int]] = {}  # the part in it of each of the newest capture processes
    refused: dict[str, int] = {}  # frames that came but could not be used, by reason
    drift: dict[str, float] = {}  # distance by measure of `mbr_live.drift`; empty where nothing is known
    drifted: list[str] = []  # the measures that are unlike training
    timings: dict[str, float] = {}

    def count_capture(self, process: str, counts: dict[str, int]) -> None:
        """Take what a capture process has done with its frames so far."""
        known = self.captures.pop(process, {})
        for what, number in counts.items():
            self.capture[what] = self.capture.get(what, 0) + number - known.get(what, 0)
        self.captures[process] = counts
        for old in list(self.captures)[:-_CAPTURES_KNOWN]:
            del self.captures[old]


def bout_row(bout: Bout) -> str:
    """One row of the bout log. Times are of the 10 fps grid; a bout lasts to the end of its last frame."""
    start_s, stop_s = bout.start_frame / RATE_FPS, (bout.stop_frame + 1) / RATE_FPS
    return (
        f"{bout.behaviour},{bout.start_frame},{bout.stop_frame},{start_s:.1f},{stop_s:.1f},"
        f"{stop_s - start_s:.1f},{bout.mean_p:.4f},{int(bout.complete)}\n"
    )


class BoutFollower:
    """Finds the bouts of all behaviours while the rows of a label log pass by."""

    def __init__(self, manifest: Manifest, states: tuple[BoutState, ...] = ()) -> None:
        """`states`, one per behaviour, are what the rows so far have led to."""
        self._names = manifest.behaviour_names
        self._max_gap_frames = manifest.max_gap_frames
        self.states = list(states) or [BoutState()] * len(self._names)

    def follow(self, index: int, labels: tuple[int, ...], probabilities: tuple[float, ...]) -> list[Bout]:
        """Take the row of tick `index`; the bouts that it ends."""
        ended: list[Bout] = []
        for k, name in enumerate(self._names):
            p = probabilities[k] if probabilities else math.nan
            bout, self.states[k] = follow_bout(name, index, labels[k], p, self._max_gap_frames, self.states[k])
            ended += [bout] if bout else []
        return ended

    def follow_gap(self, index: int, labels: tuple[int, ...], ticks: int) -> list[Bout]:
        """Take a gap of `ticks` rows. What lies beyond the longest bridge changes nothing any more."""
        ticks = min(ticks, self._max_gap_frames + 1)
        return [bout for tick in range(ticks) for bout in self.follow(index + tick, labels, ())]

    def end(self) -> list[Bout]:
        """End the open bouts where they were last confirmed."""
        ended = [end_bout(name, state) for name, state in zip(self._names, self.states, strict=True)]
        self.states = [BoutState()] * len(self._names)
        return [bout for bout in ended if bout]


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


def write_run(path: Path, run: RunManifest) -> None:
    """Write the manifest of a run."""
    write_atomically(path, run.model_dump_json(indent=2) + "\n")


def left_run(path: Path) -> RunManifest | None:
    """The manifest that an earlier process left; None where there is none, or one that a power cut emptied."""
    if not path.exists() or is_emptied(path):
        return None
    return read_run(path)


def is_emptied(path: Path) -> bool:
    """Whether a file holds nothing but what a power cut leaves of one that was not on the disk yet."""
    return not path.read_bytes().strip(b"\0")


def read_run(path: Path) -> RunManifest:
    """Read the manifest of a run; MbrError when it is not one."""
    try:
        return RunManifest.model_validate_json(path.read_text())
    except OSError as error:
        raise MbrError(f"{path}: cannot be read ({error.strerror}). Expected the {RUN_SUFFIX} of a run.") from error
    except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MbrError(
            f"{path}: this is not the {RUN_SUFFIX} of a run. Give the file that a live run wrote."
        ) from error


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


def versions() -> dict[str, str]:
    """Versions of everything that a label depends on."""
    names = ("mbr-live", "numpy", "opencv-python-headless", "openvino", "av", "pyzmq")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
