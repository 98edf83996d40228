"""Which frames of a source serve the 10 fps grid: one pure, causal function of capture times.

Tick k is k/10 s after the first frame. A frame serves the latest tick that it reaches within half a source period,
if no earlier frame served that tick. So frame 0 is kept, 29.97 fps does not drift, jitter of a 10 fps camera loses
nothing, and a tick that no frame serves stays without a frame: it is a gap, and nobody invents one.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from mbr_live.types import TICK_NS

_INTERVALS_KEPT = 15  # enough for a median that one dropped or late frame cannot move


@dataclass(frozen=True, slots=True)
class SamplerState:
    """All that sampling remembers of a source."""

    origin_ns: int  # capture time of tick 0
    last_index: int  # the latest tick that was served
    last_time_ns: int | None  # capture time of the latest frame seen; None right after a restart
    intervals_ns: tuple[int, ...] = ()  # the latest intervals between frames, oldest first


def sample(time_ns: int, state: SamplerState | None) -> tuple[int | None, SamplerState]:
    """The tick that the frame captured at `time_ns` serves (None: it serves none), and the next state.

    `state` is None for the first frame of a recording. A frame that is not later than the one before serves nothing.
    """
    if state is None:
        return 0, SamplerState(time_ns, 0, time_ns)
    if state.last_time_ns is None:
        intervals = state.intervals_ns
    elif time_ns <= state.last_time_ns:
        return None, state
    else:
        intervals = (*state.intervals_ns, time_ns - state.last_time_ns)[-_INTERVALS_KEPT:]
    tick = (time_ns - state.origin_ns + _period_ns(intervals) // 2) // TICK_NS
    served = tick > state.last_index
    index = tick if served else state.last_index
    return (tick if served else None), SamplerState(state.origin_ns, index, time_ns, intervals)


def _period_ns(intervals_ns: tuple[int, ...]) -> int:
    """Period of the source, at most one tick: a slow source must not reach for a tick that lies ahead of it."""
    if not intervals_ns:
        return 0
    # One interval alone cannot tell a 10 fps camera with jitter from a 15 fps one; taking the slower loses nothing.
    if len(intervals_ns) == 1 and intervals_ns[0] > TICK_NS // 2:
        return TICK_NS
    return min(int(median(intervals_ns)), TICK_NS)
