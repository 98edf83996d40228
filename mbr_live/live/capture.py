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
from pathlib import Path

from mbr_live.appending import Unwritable, WaitingRows
from mbr_live.cameras.calibration import load_reference
from mbr_live.cameras.health import LOOK_EVERY_S, Reference, assess, look_at, opened_anew, taken_up
from mbr_live.cameras.live_camera import CameraHangs, LiveCamera, SessionEnd
from mbr_live.cameras.log import CAMERA_LOG_SUFFIX, CameraLog
from mbr_live.cameras.reader import Chosen, Passed
from mbr_live.cameras.session_clock import SessionClock
from mbr_live.config import Camera, Config, Loss
from mbr_live.files import cut_torn_row
from mbr_live.holding import capture_of, held
from mbr_live.keys import load_keys
from mbr_live.processes import begin_afresh, end_now, notify, stop_signal
from mbr_live.stages.blindness import BlindState, is_blind
from mbr_live.stages.sampler import SamplerState
from mbr_live.types import Frame
from mbr_live.video.journal import JOURNAL_HEADER, JOURNAL_SUFFIX, journal_ends
from mbr_live.video.recorder import Recorder
from mbr_live.wire.frames import FrameSender
from mbr_live.wire.messages import CaptureCounts

HEARTBEAT_S = 1.0
_LOOK_EVERY_S = 0.1  # whether to stop, and whether a heartbeat is due
_log = logging.getLogger(__name__)


def capture(config: Config, camera: Camera) -> None:
    """Run until the camera ends or the process is told to stop (SIGTERM, SIGINT); then say so to inference."""
    try:
        hangs = _capture(config, camera)
    except CameraHangs:
        _log.warning("%s: a call of the camera's library does not return; this process begins afresh", camera.name)
        begin_afresh()
    if hangs:
        end_now()


def _capture(config: Config, camera: Camera) -> bool:
    """True if a thread was left behind that hangs."""
    keys = load_keys(config.wire.keys)
    config.out.mkdir(parents=True, exist_ok=True)
    with (
        held(config.out, capture_of(camera.name)),
        closing(Journal(config.out / f"{camera.name}{JOURNAL_SUFFIX}")) as journal,
        closing(CameraLog(config.out / f"{camera.name}{CAMERA_LOG_SUFFIX}")) as outages,
        closing(FrameSender(config.wire.frames, camera.name, secrets.token_hex(8), keys)) as sender,
        closing(Recorder(config.out, camera.name, camera.record, config.recording)) as recorder,
        stop_signal() as stop,
    ):
        work = _Capture(camera, journal, sender, recorder)
        health = Health(camera.name, outages, load_reference(config.calibration, camera.name))
        notify("READY=1")
        clock = SessionClock(config.out, camera.name)
        if journal.end is not None:
            clock.take_up()
        with closing(LiveCamera(camera, outages, journal.end)) as live:
            while not (stop.requested or live.ended):
                chosen = live.poll(_LOOK_EVERY_S)
                work.count(live.passed())
                if chosen is not None:
                    work.take(chosen)
                    clock.keep()
                    health.take(chosen, live.source_fps(time.monotonic()))
                if live.lost is not None:
                    health.lost()
                work.beat(live, health)
                journal.flush()
                outages.flush()
            for chosen in live.end():
                work.take(chosen)
                clock.keep()
        work.count(live.passed())
        work.finish(live, health)
    return live.hangs


class _Capture:
    """One camera's way from frames to messages."""

    def __init__(self, camera: Camera, journal: Journal, sender: FrameSender, recorder: Recorder) -> None:
        self._camera, self._journal, self._sender, self._recorder = camera.name, journal, sender, recorder
        self._losses = _losses(camera.loss)
        self._state = journal.end.state if journal.end else None
        self._counts: dict[str, int] = dict.fromkeys(CaptureCounts.model_fields, 0)
        self._next_beat_s = 0.0

    def take(self, chosen: Chosen) -> None:
        """Journal, send and record one frame that serves a tick."""
        self._state = chosen.state
        self.count(Passed(chosen.source_frames, chosen.unqueued))
        origin_ns = chosen.state.origin_ns
        frame = Frame(self._camera, chosen.index, chosen.number, chosen.time_ns, origin_ns, chosen.pixels)
        self._counts["sampled"] += 1
        try:
            self._journal.note(frame)
        except Unwritable:  # it has been said, and for how long: no frame goes out that nothing knows of
            self._counts["dropped_disk_full"] += 1
            return
        self._send(frame, chosen.captured_ns)
        self._recorder.keep(frame)
        self._counts.update(recorded=self._recorder.recorded, unrecorded=self._recorder.unrecorded)

    def count(self, passed: Passed) -> None:
        """Account for frames of the source, and for those that served a tick and were lost before they got here."""
        self._counts["source_frames"] += passed.source_frames
        self._counts["sampled"] += passed.unqueued
        self._counts["dropped_queue_full"] += passed.unqueued
        self._state = passed.state or self._state

    def finish(self, live: LiveCamera, health: Health) -> None:
        """Tell inference that no more frames follow."""
        last_index, origin_ns = (self._state.last_index, self._state.origin_ns) if self._state else (-1, 0)
        report = live.report(time.monotonic(), health.raised)
        if not self._sender.end(last_index, origin_ns, CaptureCounts(**self._counts), report):
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

    def beat(self, live: LiveCamera, health: Health) -> None:
        """Once a second, tell inference that this process lives, and how the camera is."""
        now_s = time.monotonic()
        if now_s >= self._next_beat_s:
            self._next_beat_s = now_s + HEARTBEAT_S
            notify("WATCHDOG=1")
            self._sender.heartbeat(CaptureCounts(**self._counts), live.report(now_s, health.raised))


class Health:
    """Whether the pictures of the camera are as they should be; what is raised and cleared goes into its log."""

    def __init__(self, camera: str, log: CameraLog, reference: Reference | None) -> None:
        self._camera, self._camera_log, self._reference = camera, log, reference
        self._state, self._blind = taken_up(log.raised), BlindState()
        self._next_look_s = 0.0

    @property
    def raised(self) -> dict[str, str]:
        """Names and texts of the alarms that are raised."""
        return self._state.raised

    def take(self, chosen: Chosen, source_fps: float | None) -> None:
        """Look at a frame, if it is time to."""
        blind, self._blind = is_blind(chosen.pixels, self._blind)
        now_s = time.monotonic()
        if now_s < self._next_look_s:
            return
        self._next_look_s = now_s + LOOK_EVERY_S
        before = self._state.raised
        look = None if blind else look_at(chosen.pixels)
        self._state = assess(now_s, look, self._blind.why, source_fps, self._reference, self._state)
        after = self._state.raised
        for name in sorted(before.keys() ^ after.keys()):
            text = after.get(name, before.get(name, ""))
            self._camera_log.alarm(chosen.time_ns, chosen.index, name, text, raised=name in after)
            _log.warning("%s: %s %s: %s", self._camera, name, "raised" if name in after else "cleared", text)

    def lost(self) -> None:
        """What comes next may be another camera."""
        self._state = opened_anew(self._state)


def _losses(loss: Loss | None) -> Iterator[bool]:
    """For every frame, whether it is to be lost on purpose."""
    generator = random.Random(loss.seed if loss else 0)
    while True:
        yield loss is not None and generator.random() < loss.fraction


class Journal:
    """The frame journal `<camera>.frames.csv`: one row per sampled frame, written before the frame is sent.

    While the disk is full, rows wait in memory and frames go on. Should the process be killed then, the next one goes
    on from the last row that was written, by the same grid.
    """

    def __init__(self, path: Path) -> None:
        """Begin a journal, or go on with the one that an earlier process left."""
        self.end: SessionEnd | None = None  # where to go on
        self._rows = WaitingRows(path, JOURNAL_HEADER + "\n")  # a camera that never opens leaves nothing behind
        if not path.exists():
            return
        cut_torn_row(path)
        first, last = journal_ends(path)
        if first is not None and last is not None:
            self.end = SessionEnd(SamplerState(first[2], last[0], None), last[1] + 1, last[2])

    def note(self, frame: Frame) -> None:
        """Append the row of one frame. Unwritable where too many wait for room on the disk already."""
        self._rows.append(f"{frame.index},{frame.source_frame},{frame.time_ns}\n")

    def flush(self) -> None:
        """Write what had to wait for room on the disk."""
        self._rows.flush()

    def close(self) -> None:
        """Close the file."""
        self._rows.close()
