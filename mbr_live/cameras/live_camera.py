"""A camera that comes back: opened anew with growing pauses whenever frames stop, by its own watchdog.

No library's timeout is trusted. A reader that delivers nothing for `stall_s` is abandoned and another one opened. One
that does not even return may still hold the device: then only a new process helps, and `CameraHangs` asks for it.
Every stretch without frames goes into the outage log, with its cause.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from mbr_live.cameras.clocks import EpochClock
from mbr_live.cameras.errors import CameraLost, Cause
from mbr_live.cameras.log import CameraLog
from mbr_live.cameras.opening import open_camera
from mbr_live.cameras.reader import Chosen, Passed, Reader, SourceEnded, both
from mbr_live.config import Camera, VideoSource
from mbr_live.stages.sampler import SamplerState
from mbr_live.types import RATE_FPS
from mbr_live.wire.messages import MAX_DETAIL, CameraReport, check_size

FIRST_FRAME_WITHIN_S = 15.0  # of opening: some cameras send a picture to begin with only every ten seconds
CLOSE_WITHIN_S = 1.5
RATE_OVER_S = 5.0
SLOW_END_S = 3.0  # from here on it is said that it hangs
HANGING_S = 10.0  # a reader that was abandoned so long ago will not return
OPEN_WITHIN_S = 5.0  # of a network camera of which nothing is known
QUICKEST_OPEN_S, OPEN_FACTOR, PATIENT_EVERY = 1.0, 2.0, 8
SHORTEST_PAUSE_S, LONGEST_PAUSE_S, PAUSE_SHARE = 0.2, 2.0, 0.1

_log = logging.getLogger(__name__)


class CameraHangs(Exception):
    """A library's call does not return; the process must begin afresh."""


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """Where the frames of a session have come to."""

    state: SamplerState
    next_number: int  # of the source's frames
    time_ns: int  # capture time of the last frame


@dataclass(frozen=True, slots=True)
class Lost:
    """The present outage."""

    cause: Cause
    text: str
    since_s: float  # on the monotonic clock
    attempts: int = 0


def pause_s(outage_s: float) -> float:
    """From the beginning of an attempt to the next, after so long an outage: short at first, and never long."""
    return min(max(PAUSE_SHARE * outage_s, SHORTEST_PAUSE_S), LONGEST_PAUSE_S)


def open_within_s(opened_in_s: float | None, attempt: int) -> float:
    """How long an attempt may take, counted from 0, of a camera that has once been opened in so many seconds.

    Attempts at a dead address should be short, since the camera may be back in the middle of one; but one in a few is
    patient, for a camera that has become slower.
    """
    if opened_in_s is None or attempt % PATIENT_EVERY == PATIENT_EVERY - 1:
        return OPEN_WITHIN_S
    return min(max(OPEN_FACTOR * opened_in_s, QUICKEST_OPEN_S), OPEN_WITHIN_S)


class SourceRate:
    """How many frames a second the camera itself delivers."""

    def __init__(self) -> None:
        self._frames: deque[tuple[float, int]] = deque(maxlen=round(RATE_OVER_S * RATE_FPS) + 1)

    def add(self, frames: int, now_s: float) -> None:
        """So many frames came since the call before."""
        self._frames.append((now_s, frames))

    def fps(self, now_s: float) -> float:
        """Frames a second over the last seconds; 0 where there are none yet."""
        recent = [(at_s, frames) for at_s, frames in self._frames if now_s - at_s <= RATE_OVER_S]
        if len(recent) < 2:
            return 0.0
        # From the first to the last, so that a camera that has just begun is not called slow.
        return round(sum(frames for _, frames in recent[1:]) / max(recent[-1][0] - recent[0][0], 1e-3), 1)


class LiveCamera:
    """Frames of one camera, whatever happens to it."""

    def __init__(self, camera: Camera, outages: CameraLog, end: SessionEnd | None) -> None:
        """`end` is of the session so far; None where it begins."""
        self._camera, self._outages, self._end = camera, outages, end
        self._is_file = isinstance(camera.source, VideoSource)
        self._reader: Reader | None = None
        self._abandoned: list[tuple[Reader, float]] = []
        self._passed = Passed()
        self._opened_s = 0.0  # when the reader was opened
        self._silent_s = 0.0  # how long it has been waited for in vain; a process that is held up does not wait
        self._delivered = False  # whether it has since it was opened
        self._opened_in_s: float | None = None  # until the first frame, when it was opened last
        self._retry_at_s = 0.0
        self._clock = ""
        self._rate = SourceRate()
        self.lost: Lost | None = None
        self.ended = False
        if end is None or self._is_file:
            return
        EpochClock.go_on_after(end.time_ns)
        if outages.open_cause is None:
            outages.lost(end.time_ns, end.state.last_index, "process", "the capture process was not running")

    def poll(self, timeout_s: float) -> Chosen | None:
        """The next frame that serves a tick, or None after `timeout_s` at most.

        Raises MbrError for a camera that does not open at the beginning of a session, and for whatever trying again
        does not mend; CameraHangs.
        """
        now_s = time.monotonic()
        if self._reader is None:
            if now_s < self._retry_at_s:
                time.sleep(min(timeout_s, self._retry_at_s - now_s))
                return None
            self._open(now_s)
        return self._read(timeout_s)

    def end(self) -> Iterator[Chosen]:
        """Want no further frames, and let go of the camera, as `close` does; the frames that waited to be polled."""
        if self._reader is not None:
            self._reader.abandon()
            self._reader.wait(CLOSE_WITHIN_S)
        while (chosen := self._read(0.0)) is not None:
            yield chosen
        self.close()

    def close(self) -> None:
        """Let go of the camera; a reader that hangs is left behind."""
        self._let_go(CLOSE_WITHIN_S)

    def passed(self) -> Passed:
        """Frames of connections that ended before they could hand on another; each is told of once."""
        passed, self._passed = self._passed, Passed()
        return passed

    @property
    def hangs(self) -> bool:
        """Whether a library's call has still not returned."""
        return bool(self._hanging())

    def source_fps(self, now_s: float) -> float | None:
        """Frames a second that the camera delivers; None while that is not known, and of a file."""
        return None if self._is_file else self._rate.fps(now_s) or None

    def report(self, now_s: float, alarms: dict[str, str]) -> CameraReport:
        """How the camera is at `now_s` of the monotonic clock."""
        lost = self.lost
        return CameraReport(
            clock=self._clock,
            lost=lost.cause if lost else "",
            lost_for_s=round(now_s - lost.since_s, 1) if lost else 0.0,
            detail=lost.text[:MAX_DETAIL] if lost else "",
            outages=dict(self._outages.counts),
            source_fps=self._rate.fps(now_s),
            alarms=alarms,
        )

    def _open(self, now_s: float) -> None:
        self._abandoned = [(reader, since_s) for reader, since_s in self._abandoned if reader.hangs]
        if any(now_s - since_s > HANGING_S for _, since_s in self._abandoned):
            raise CameraHangs
        camera = self._camera
        self._silent_s, self._opened_s, self._delivered = 0.0, now_s, False
        self._reader = Reader(
            camera.name,
            partial(
                open_camera,
                camera.name,
                camera.source,
                after_ns=self._end.time_ns if self._end else None,
                open_within_s=open_within_s(self._opened_in_s, self.lost.attempts if self.lost else 0),
                stall_s=camera.stall_s,
            ),
            self._end.state if self._end else None,
            # A camera counts from 0 again when it is opened again, a file is numbered as it is.
            first_number=self._end.next_number if self._end and not self._is_file else 0,
            patient=self._is_file,
        )

    def _read(self, timeout_s: float) -> Chosen | None:
        reader = self._reader
        if reader is None:
            return None
        try:
            chosen = reader.next(timeout_s)
            if chosen is None:
                self._silent_s += timeout_s
                self._watch()
            else:
                self._check_size(chosen)
        except SourceEnded:
            self.ended = True
            return None
        except CameraLost as error:
            self._lose(error)
            return None
        if chosen is not None:
            self._keep(chosen)
        return chosen

    def _watch(self) -> None:
        limit_s = self._camera.stall_s if self._delivered else FIRST_FRAME_WITHIN_S
        if self._is_file or self._silent_s <= limit_s:
            return
        cause: Cause = "stalled" if self._delivered else "silent"
        what = "no frame for" if self._delivered else "opened, but no frame came within"
        raise CameraLost(
            cause,
            f"camera {self._camera.name}: {what} {limit_s:g} s. Check the camera and its cable or network.",
        )

    def _check_size(self, chosen: Chosen) -> None:
        height, width = chosen.pixels.shape[:2]
        began = self._outages.began
        if began is not None and (width, height) != (began.width_px, began.height_px):
            raise CameraLost(
                "size",
                f"camera {self._camera.name}: pictures of {width} x {height} px, the session began with "
                f"{began.width_px} x {began.height_px} px. Set the camera back, or begin a session in another folder.",
            )
        check_size(self._camera.name, width, height)

    def _lose(self, error: CameraLost) -> None:
        now_s = time.monotonic()
        self._let_go()
        if self._end is None:
            raise error  # it has never delivered: more likely a mistake than a misfortune
        before = self.lost
        cause: Cause = "hung" if any(now_s - since_s > SLOW_END_S for _, since_s in self._hanging()) else error.cause
        if self._outages.open_cause is None:
            self._outages.lost(self._end.time_ns, self._end.state.last_index, error.cause, str(error))
        self.lost = Lost(cause, str(error), before.since_s if before else now_s, (before.attempts if before else 0) + 1)
        if before is None or before.cause != cause:
            _log.warning("lost (%s): %s Trying again.", cause, error)
        # An attempt that waited in vain has been pause enough.
        self._retry_at_s = max(now_s + SHORTEST_PAUSE_S, self._opened_s + pause_s(now_s - self.lost.since_s))

    def _let_go(self, wait_s: float = 0.0) -> None:
        """Abandon the reader, and give it so long to end."""
        if self._reader is None:
            return
        self._reader.abandon()
        self._reader.wait(wait_s)
        self._abandoned.append((self._reader, time.monotonic()))
        self._passed = both(self._passed, self._reader.passed)
        self._reader = None

    def _hanging(self) -> list[tuple[Reader, float]]:
        return [(reader, since_s) for reader, since_s in self._abandoned if reader.hangs]

    def _keep(self, chosen: Chosen) -> None:
        height, width = chosen.pixels.shape[:2]
        now_s = time.monotonic()
        if not self._delivered:
            self._opened_in_s = now_s - self._opened_s
        self._silent_s, self._delivered = 0.0, True
        self._clock = chosen.clock
        self._rate.add(chosen.source_frames, now_s)
        self._end = SessionEnd(chosen.state, chosen.number + 1, chosen.time_ns)
        if self._outages.began is None:
            self._outages.began_with(chosen.time_ns, chosen.index, width, height, chosen.clock)
        if self._outages.open_cause is not None:
            after = f"after {self.lost.attempts} attempts" if self.lost else "with the process"
            self._outages.back(chosen.time_ns, chosen.index, width, height, after)
            if self.lost is not None:
                _log.info("back after %.1f s, %s", now_s - self.lost.since_s, after)
        self.lost = None
