"""What arrives at inference, seen in a thread of its own: the next picture is looked at while the networks are at the
last one. Which frames can be used is decided here, since what cannot be used must not be looked at either.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mbr_live.drift import Glance, glance_at
from mbr_live.pipeline import Pipeline, Seen, SightState
from mbr_live.types import RATE_FPS
from mbr_live.wire.frames import FrameReceiver
from mbr_live.wire.messages import BadMessage, End, FrameHeader, Header, Heartbeat, frame_of

MAX_JUMP_TICKS = 7 * 24 * 3600 * RATE_FPS  # a longer outage is a new session, and a larger number a damaged header


@dataclass(frozen=True, slots=True)
class SeenFrame:
    """A frame, and what it shows."""

    header: FrameHeader
    received_ns: int  # CLOCK_MONOTONIC
    seen: Seen
    glance: Glance | None  # where somebody wants to know what the animal looks like, and it is there


@dataclass(frozen=True, slots=True)
class RefusedFrame:
    """A frame that cannot be used."""

    header: FrameHeader
    why: str


Arrival = SeenFrame | RefusedFrame | Heartbeat | End | BadMessage


class Eye:
    """One camera up to the networks."""

    def __init__(self, pipeline: Pipeline, last_index: int, *, glances: bool = False) -> None:
        """`last_index` is the last tick that is in the log already."""
        self._pipeline, self._last_index, self._glances = pipeline, last_index, glances
        self._sight = SightState()
        self._size: tuple[int, int] | None = None  # height and width of the first frame
        self.closed = False  # set from the thread that labels: no more frames for now, since nobody could write them

    def look(self, header: FrameHeader, pixels: memoryview) -> SeenFrame | RefusedFrame:
        """What a frame shows, if it can be used."""
        received_ns = time.monotonic_ns()
        refusal = self._refusal(header)
        if refusal is not None:
            return RefusedFrame(header, refusal)
        frame = frame_of(header, pixels)
        seen = self._pipeline.see(frame, self._sight)
        self._sight, self._last_index = seen.after, header.index
        window_px = self._pipeline.window_px(header.camera, seen.after) if self._glances else None
        return SeenFrame(header, received_ns, seen, glance_at(frame.pixels, seen, window_px))

    def end(self, message: End) -> None:
        """Heed the end of a session, after which no frame of its ticks is expected any more."""
        if message.last_index - self._last_index <= MAX_JUMP_TICKS:
            self._last_index = max(self._last_index, message.last_index)

    def _refusal(self, header: FrameHeader) -> str | None:
        """Why this frame cannot be used; None when it can."""
        if header.index <= self._last_index:
            return "late"  # its tick is in the log already
        if header.index - self._last_index > MAX_JUMP_TICKS:
            return "jump"
        if self.closed:
            return "disk_full"  # before it is looked at: what is remembered of the picture must be as if it never came
        size = (header.height, header.width)
        self._size = self._size or size
        return None if size == self._size else "size"


def arrivals(receiver: FrameReceiver, eyes: Mapping[str, Eye], timeout_s: float) -> Iterator[Arrival | None]:
    """What arrives, in order and for ever; None where nothing came for `timeout_s`."""
    while True:
        try:
            received = receiver.receive(timeout_s)
            yield None if received is None else _arrival(*received, eyes)
        except BadMessage as error:
            yield error


def _arrival(header: Header, pixels: memoryview | None, eyes: Mapping[str, Eye]) -> Arrival:
    eye = eyes.get(header.camera)
    if eye is None:
        return BadMessage(f"camera {header.camera!r} is not in the configuration")
    match header:
        case FrameHeader():
            return BadMessage("frame without pixels") if pixels is None else eye.look(header, pixels)
        case End():
            eye.end(header)
    return header
