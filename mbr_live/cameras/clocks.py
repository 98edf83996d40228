"""Capture times: the host's clock, and a camera's clock laid on it.

A camera's own times have exact intervals, but start anywhere, run a little fast or slow, and may jump when the camera
is switched off or sets its clock. The host's times are comparable between cameras, but jitter with the network. The
two are joined: frames cannot arrive before they were taken, so the frames that arrived soonest tell how the clocks
stand to each other (the lower envelope of the delays; Paxson 1998, "On calibrating measurements of packet transit
times", does the same with traces), and between these the camera's own intervals hold.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar, Literal

Clock = Literal["host", "driver", "camera", "file", "simulated"]
"""host: taken after the frame was read; driver: by the kernel, when the frame came in; camera: the camera's own
intervals, laid on the host's clock."""

DRIFT = 1e-4  # most that a camera's quartz may run fast: 0.1 ms per second
OLDEST_STAMP_NS = 1_000_000_000
JUMP_NS = 5_000_000_000  # a frame that seems later than this comes from a clock that was set back while none came


class EpochClock:
    """Nanoseconds since the epoch that never step back: the epoch is read once in a process, the rest is monotonic.

    So when the date of the computer is set, a session goes on as it was, through any number of connections.
    """

    _offset_ns: ClassVar[int] = time.time_ns() - time.monotonic_ns()

    def now_ns(self) -> int:
        return time.monotonic_ns() + self._offset_ns

    @classmethod
    def offset_ns(cls) -> int:
        """From the monotonic clock to this one."""
        return cls._offset_ns

    @classmethod
    def go_on_by(cls, offset_ns: int) -> None:
        """Count as an earlier process of this machine did, whatever the date is now."""
        cls._offset_ns = offset_ns

    @classmethod
    def go_on_after(cls, time_ns: int) -> None:
        """A session has come to this time: go on from there where the date was set back before this process began."""
        cls._offset_ns = max(cls._offset_ns, time_ns - time.monotonic_ns())


def driver_age_ns(stamp_ms: float, now_ns: int) -> int | None:
    """How old a frame is by the stamp of a V4L2 driver at `now_ns` (CLOCK_MONOTONIC); None if it is not of that clock.

    Drivers of USB cameras stamp with that clock (V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC), others with the date or not at
    all, and OpenCV hands the stamp on without saying which: it is believed if it is of the last second.
    """
    age_ns = now_ns - int(stamp_ms * 1e6)
    return age_ns if stamp_ms > 0 and 0 <= age_ns < OLDEST_STAMP_NS else None


@dataclass(frozen=True, slots=True)
class Alignment:
    """How a camera's clock stands to the host's."""

    offset_ns: int  # host time = camera time + offset
    camera_ns: int  # of the latest frame


def align(camera_ns: int, host_ns: int, before: Alignment | None) -> Alignment:
    """The alignment after a frame of the camera's time `camera_ns` arrived at the host's time `host_ns`.

    Frames come in their order: a time that goes back means that the camera's clock was set, and begins anew.
    """
    delay_ns = host_ns - camera_ns
    if before is None or camera_ns < before.camera_ns or delay_ns - before.offset_ns > JUMP_NS:
        return Alignment(delay_ns, camera_ns)
    allowed_ns = int((camera_ns - before.camera_ns) * DRIFT)
    return Alignment(min(delay_ns, before.offset_ns + allowed_ns), camera_ns)
