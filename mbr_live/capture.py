"""The capture process of one camera: take every frame it delivers, keep 10 a second, send them to inference.

It never waits for anybody but the camera. What it chose goes into the frame journal before it is sent, so that every
frame can be accounted for, and so that a capture that was killed goes on with the same grid of ticks.
"""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections.abc import Iterator
from contextlib import closing
from io import FileIO
from pathlib import Path

from mbr_live.cameras import open_camera
from mbr_live.config import Camera, Config, Loss, VideoSource
from mbr_live.keys import load_keys
from mbr_live.processes import notify, stop_signal
from mbr_live.recorder import Recorder
from mbr_live.sampler import SamplerState, sample
from mbr_live.sinks import append, cut_torn_row
from mbr_live.sources import JOURNAL_HEADER, JOURNAL_SUFFIX, journal_ends
from mbr_live.types import Frame, SourceFrame
from mbr_live.wire import CaptureCounts, FrameSender

HEARTBEAT_S = 1.0
_log = logging.getLogger(__name__)


def capture(config: Config, camera: Camera) -> None:
    """Run until the camera ends or the process is told to stop (SIGTERM, SIGINT); then say so to inference."""
    keys = load_keys(config.wire.keys)
    config.out.mkdir(parents=True, exist_ok=True)
    with (
        closing(Journal(config.out / f"{camera.name}{JOURNAL_SUFFIX}")) as journal,
        closing(FrameSender(config.wire.frames, camera.name, secrets.token_hex(8), keys)) as sender,
        closing(Recorder(config.out, camera.name, camera.record, config.recording)) as recorder,
        stop_signal() as stop,
    ):
        work = _Capture(camera, journal, sender, recorder)
        notify("READY=1")
        for frame in open_camera(camera.name, camera.source, after_ns=journal.last_time_ns):
            work.take(frame)
            if stop.requested:
                break
        work.finish()


class _Capture:
    """One camera's way from frames to messages."""

    def __init__(self, camera: Camera, journal: Journal, sender: FrameSender, recorder: Recorder) -> None:
        self._camera, self._journal, self._sender, self._recorder = camera.name, journal, sender, recorder
        self._losses = _losses(camera.loss)
        self._state = journal.resume
        # A camera counts from 0 again when it is opened again; its numbers go on where the journal ends.
        self._first_number = 0 if isinstance(camera.source, VideoSource) else journal.next_source_frame
        self._counts: dict[str, int] = dict.fromkeys(CaptureCounts.model_fields, 0)
        self._next_beat_s = 0.0

    def take(self, source_frame: SourceFrame) -> None:
        """Sample, journal, send and record one frame of the source."""
        self._beat()
        self._counts["source_frames"] += 1
        index, self._state = sample(source_frame.time_ns, self._state)
        if index is None:
            return
        frame = Frame(
            self._camera,
            index,
            self._first_number + source_frame.number,
            source_frame.time_ns,
            self._state.origin_ns,
            source_frame.picture(),
        )
        captured_ns = time.monotonic_ns()
        self._journal.note(frame)
        self._counts["sampled"] += 1
        self._send(frame, captured_ns)
        self._recorder.keep(frame)
        self._counts.update(recorded=self._recorder.recorded, unrecorded=self._recorder.unrecorded)

    def finish(self) -> None:
        """Tell inference that no more frames follow."""
        last_index, origin_ns = (self._state.last_index, self._state.origin_ns) if self._state else (-1, 0)
        if not self._sender.end(last_index, origin_ns, CaptureCounts(**self._counts)):
            _log.warning("%s: inference did not take the end of the session", self._camera)
        _log.info("%s: %s", self._camera, self._counts)

    def _send(self, frame: Frame, captured_ns: int) -> None:
        if next(self._losses):
            self._sender.skip()
            self._counts["dropped_on_purpose"] += 1
        elif self._sender.send(frame, captured_ns):
            self._counts["sent"] += 1
        else:
            self._counts["dropped_queue_full"] += 1

    def _beat(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_beat_s:
            self._next_beat_s = now_s + HEARTBEAT_S
            notify("WATCHDOG=1")
            self._sender.heartbeat(CaptureCounts(**self._counts))


def _losses(loss: Loss | None) -> Iterator[bool]:
    """For every frame, whether it is to be lost on purpose."""
    generator = random.Random(loss.seed if loss else 0)
    while True:
        yield loss is not None and generator.random() < loss.fraction


class Journal:
    """The frame journal `<camera>.frames.csv`: one row per sampled frame, written before the frame is sent."""

    def __init__(self, path: Path) -> None:
        """Begin a journal, or go on with the one that an earlier process left."""
        self.resume: SamplerState | None = None
        self.next_source_frame = 0
        self.last_time_ns: int | None = None
        self._path = path
        self._file: FileIO | None = None  # opened by the first frame: a camera that never opens leaves nothing behind
        if not path.exists():
            return
        cut_torn_row(path)
        first, last = journal_ends(path)
        if first is not None and last is not None:
            self.resume = SamplerState(first[2], last[0], None)
            self.next_source_frame = last[1] + 1
            self.last_time_ns = last[2]

    def note(self, frame: Frame) -> None:
        """Append the row of one frame."""
        if self._file is None:
            self._file = FileIO(self._path, "a")
            if self._path.stat().st_size == 0:
                append(self._file, JOURNAL_HEADER + "\n")
        append(self._file, f"{frame.index},{frame.source_frame},{frame.time_ns}\n")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
