"""What the pipeline says, in files: the label log, the bout log and the manifest of a run.

The label log is the truth. A row is one write, so a process that is killed leaves whole rows; the bout log is a pure
function of the label log and is made anew from it when a session goes on after a crash.
"""

from __future__ import annotations

import errno
import json
import math
import os
import platform
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mbr_live.appending import Unwritable, WaitingRows, append
from mbr_live.bundle import Manifest
from mbr_live.label_log import label_header, label_rows, last_frame_of_file, read_labels, rows_of_file
from mbr_live.label_segments import LabelFile, Rotation, closed_segments, first_frame_of
from mbr_live.stages.decide import Bout, BoutState, end_bout, follow_bout
from mbr_live.types import RATE_FPS, TICK_NS, UNKNOWN, Decision, MbrError, Status

BOUTS_SUFFIX = ".bouts.csv"
RUN_SUFFIX = ".run.json"
PART_SUFFIX = ".part"

BOUTS_HEADER = "behaviour,start_frame,stop_frame,start_s,stop_s,duration_s,mean_p,complete"
_ROWS_PER_WRITE = 4096


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
    capture: dict[str, int] = {}  # the capture process's own counts
    refused: dict[str, int] = {}  # frames that came but could not be used, by reason
    drift: dict[str, float] = {}  # distance by measure of `mbr_live.drift`; empty where nothing is known
    drifted: list[str] = []  # the measures that are unlike training
    timings: dict[str, float] = {}


def bout_row(bout: Bout) -> str:
    """One row of the bout log. Times are of the 10 fps grid; a bout lasts to the end of its last frame."""
    start_s, stop_s = bout.start_frame / RATE_FPS, (bout.stop_frame + 1) / RATE_FPS
    return (
        f"{bout.behaviour},{bout.start_frame},{bout.stop_frame},{start_s:.1f},{stop_s:.1f},"
        f"{stop_s - start_s:.1f},{bout.mean_p:.4f},{int(bout.complete)}\n"
    )


class BoutFollower:
    """Finds the bouts of all behaviours while the rows of a label log pass by."""

    def __init__(self, manifest: Manifest) -> None:
        self._names = manifest.behaviour_names
        self._max_gap_frames = manifest.max_gap_frames
        self._states = [BoutState()] * len(self._names)

    def follow(self, index: int, labels: tuple[int, ...], probabilities: tuple[float, ...]) -> list[Bout]:
        """Take the row of tick `index`; the bouts that it ends."""
        ended: list[Bout] = []
        for k, name in enumerate(self._names):
            p = probabilities[k] if probabilities else math.nan
            bout, self._states[k] = follow_bout(name, index, labels[k], p, self._max_gap_frames, self._states[k])
            ended += [bout] if bout else []
        return ended

    def follow_gap(self, index: int, labels: tuple[int, ...], ticks: int) -> list[Bout]:
        """Take a gap of `ticks` rows. What lies beyond the longest bridge changes nothing any more."""
        ticks = min(ticks, self._max_gap_frames + 1)
        return [bout for tick in range(ticks) for bout in self.follow(index + tick, labels, ())]

    def end(self) -> list[Bout]:
        """End the open bouts where they were last confirmed."""
        ended = [end_bout(name, state) for name, state in zip(self._names, self._states, strict=True)]
        self._states = [BoutState()] * len(self._names)
        return [bout for bout in ended if bout]


class SessionLog:
    """Label log and bout log of one recording. Every row that `write` took is in the label log when it returns."""

    def __init__(self, labels: LabelFile, bouts: WaitingRows, manifest: Manifest) -> None:
        self._labels, self._bouts, self._follower = labels, bouts, BoutFollower(manifest)
        self.last_index = -1  # the last tick that is in the log
        self.rows: Counter[str] = Counter()
        self.bout_counts: Counter[str] = Counter(dict.fromkeys(manifest.behaviour_names, 0))

    @classmethod
    def create(cls, labels: Path, bouts: Path, manifest: Manifest) -> SessionLog:
        """Begin new files; what stands under these names is overwritten."""
        FileIO(bouts, "w").close()
        _begin(labels, manifest)
        log = cls(LabelFile(labels, label_header(manifest) + "\n", "off", first=None), WaitingRows(bouts), manifest)
        with _closed_on_error(log):
            log._bouts.write(BOUTS_HEADER + "\n")
        return log

    @classmethod
    def resume(cls, labels: Path, bouts: Path, manifest: Manifest, rotation: Rotation = "off") -> SessionLog:
        """Go on with the files of a session that was interrupted; begin them where there are none.

        A last row that was torn off by a power cut goes; the bout log is made anew from the label log.
        """
        if not labels.exists() or labels.stat().st_size == 0:
            _begin(labels, manifest)
        cut_torn_row(labels)
        _mend_newest_segment(labels, manifest)
        remade = bouts.with_name(bouts.name + PART_SUFFIX)
        FileIO(remade, "w").close()
        with labels.open("rb") as file:
            start = next(rows_of_file(file, labels, manifest, 0, growing=False), None)
        first = (start.index, start.time_ns) if start else None
        log = cls(
            LabelFile(labels, label_header(manifest) + "\n", rotation, first=first), WaitingRows(remade), manifest
        )
        with _closed_on_error(log):
            log._bouts.write(BOUTS_HEADER + "\n")
            for row in read_labels(labels, manifest):
                log.rows[row.status] += 1
                for bout in log._follower.follow(row.index, row.labels, row.probabilities):
                    log._bouts.write(bout_row(bout))
                    log.bout_counts[bout.behaviour] += 1
                log.last_index = row.index
            remade.replace(bouts)
        return log

    def write(self, decision: Decision) -> None:
        """Append the rows of a decision, and the bouts that they end.

        Unwritable when the disk does not take all of its rows. It may be tried again: nothing is written twice.
        """
        for piece in self._labels.pieces(decision):
            if piece.index <= self.last_index:
                continue  # there since the last try
            self._labels.make_ready_for(piece)
            self._append(piece)
            self.last_index = piece.index + piece.ticks - 1
            self.rows[piece.status] += piece.ticks
            if piece.status is Status.GAP:
                self._note_bouts(self._follower.follow_gap(piece.index, piece.labels, piece.ticks))
            else:
                self._note_bouts(self._follower.follow(piece.index, piece.labels, piece.probabilities))

    def write_all(self, decisions: Iterable[Decision]) -> None:
        """Append the rows of several decisions."""
        for decision in decisions:
            self.write(decision)

    def close(self) -> None:
        """End the open bouts at their last confirmed frames and close the files. Unwritable if bouts found no room."""
        self._note_bouts(self._follower.end())
        self._labels.close()
        self._bouts.close()
        if self._bouts:
            raise Unwritable(self._bouts.path, f"{len(self._bouts)} bouts are missing", errno.ENOSPC)

    def _note_bouts(self, bouts: list[Bout]) -> None:
        for bout in bouts:
            self._bouts.append(bout_row(bout))
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


def _mend_newest_segment(labels: Path, manifest: Manifest) -> None:
    """What a power cut took of the segment that was closed last becomes a gap, so that every tick keeps its row."""
    segments = closed_segments(labels)
    if not segments:
        return
    newest, header = segments[-1], label_header(manifest) + "\n"
    if not newest.read_bytes().startswith(header.encode()):
        newest.write_text(header)
    cut_torn_row(newest)
    last = last_frame_of_file(newest)
    last = first_frame_of(newest) - 1 if last is None else last
    with labels.open("rb") as file:
        following = next(rows_of_file(file, labels, manifest, 0, growing=False), None)
    with closing(FileIO(newest, "a")) as file:
        if following is not None and last + 1 < following.index:
            ticks, nan = following.index - last - 1, math.nan
            unknown = (UNKNOWN,) * len(manifest.behaviour_names)
            time_ns = following.time_ns - ticks * TICK_NS
            gap = Decision("", last + 1, UNKNOWN, time_ns, Status.GAP, nan, nan, (), unknown, ticks)
            append(file, "".join(label_rows(gap)))
        os.fsync(file.fileno())


@contextmanager
def _closed_on_error(log: SessionLog) -> Iterator[None]:
    try:
        yield
    except BaseException:
        log._labels.close()
        log._bouts.close()
        raise


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`: a reader sees the old file or the new one, never half of it."""
    part = path.with_name(path.name + PART_SUFFIX)
    try:
        part.write_text(text)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def write_run(path: Path, run: RunManifest) -> None:
    """Write the manifest of a run."""
    write_atomically(path, run.model_dump_json(indent=2) + "\n")


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
    """Remove what stands after the last newline of a log: a row that was not written whole."""
    data_end = path.stat().st_size
    with path.open("rb+") as file:
        file.seek(max(0, data_end - 4096))
        tail = file.read()
        if not tail.endswith(b"\n"):
            file.truncate(data_end - len(tail) + tail.rfind(b"\n") + 1)


def versions() -> dict[str, str]:
    """Versions of everything that a label depends on."""
    names = ("mbr-live", "numpy", "opencv-python-headless", "openvino", "av", "pyzmq")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
