"""The 10 fps grid: exact, causal, nothing lost, nothing invented."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbr_live.stages.sampler import SamplerState, sample
from mbr_live.types import TICK_NS

NS = 1_000_000_000


def ticks(times_ns: list[int]) -> list[int | None]:
    """The tick that each frame serves."""
    state, served = None, []
    for time_ns in times_ns:
        index, state = sample(time_ns, state)
        served.append(index)
    return served


def steady(fps: Fraction | int, seconds: float) -> list[int]:
    return [round(n * NS / Fraction(fps)) for n in range(int(seconds * fps))]


def chosen(times_ns: list[int]) -> list[int]:
    return [number for number, tick in enumerate(ticks(times_ns)) if tick is not None]


@pytest.mark.parametrize(
    ("fps", "first"),
    [
        (10, [0, 1, 2, 3, 4]),
        (15, [0, 1, 3, 4, 6]),
        (25, [0, 2, 5, 7, 10]),
        (Fraction(30000, 1001), [0, 3, 6, 9, 12]),
        (30, [0, 3, 6, 9, 12]),
        (120, [0, 12, 24, 36, 48]),
    ],
)
def test_first_frames_of_common_rates(fps: Fraction | int, first: list[int]) -> None:
    assert chosen(steady(fps, 2))[:5] == first


@pytest.mark.parametrize("fps", [10, 15, 25, Fraction(30000, 1001), 30, 120])
def test_a_day_has_every_tick_once_and_does_not_drift(fps: Fraction | int) -> None:
    """Checked on the first, the middle and the last minute of a day: the state in between is a function of time."""
    period_ns = NS / Fraction(fps)
    for start_s in (0, 12 * 3600, 24 * 3600 - 60):
        number = round(start_s * Fraction(fps))
        state: SamplerState | None = None
        if start_s:
            before = tuple(
                round((number - k) * period_ns) - round((number - k - 1) * period_ns) for k in range(15, 0, -1)
            )
            state = SamplerState(0, start_s * 10 - 1, round((number - 1) * period_ns), before)
        served = []
        for n in range(number, number + int(60 * fps)):
            time_ns = round(n * period_ns)
            index, state = sample(time_ns, state)
            if index is not None:
                served.append(index)
                assert abs(time_ns - index * TICK_NS) <= period_ns / 2 + 1 or time_ns - index * TICK_NS <= period_ns
        assert served == list(range(start_s * 10, start_s * 10 + len(served)))
        assert len(served) >= 600 - 1


@given(st.lists(st.floats(-0.02, 0.02), min_size=2, max_size=300))
def test_jitter_of_a_10_fps_camera_loses_nothing(jitter_s: list[float]) -> None:
    times = [round((n / 10 + 1 + jitter) * NS) for n, jitter in enumerate([0.0, *jitter_s])]
    assert ticks(times) == list(range(len(times)))


@given(st.lists(st.integers(1, 400_000_000), min_size=1, max_size=200), st.integers(0, 2**61))
def test_variable_frame_rate_is_exact(intervals_ns: list[int], origin_ns: int) -> None:
    times = [origin_ns]
    for interval in intervals_ns:
        times.append(times[-1] + interval)
    served = [
        (time_ns - origin_ns, tick) for time_ns, tick in zip(times, ticks(times), strict=True) if tick is not None
    ]
    assert served[0] == (0, 0)
    for (_, before), (_, after) in pairwise(served):
        assert after > before
    for time_ns, tick in served:
        # It serves the latest tick that it reaches, and reaches ahead by half a tick at most.
        assert tick * TICK_NS - time_ns <= TICK_NS // 2
        assert time_ns - tick * TICK_NS < TICK_NS


@given(st.lists(st.integers(1, 400_000_000), min_size=2, max_size=100), st.data())
def test_what_comes_later_changes_nothing(intervals_ns: list[int], data: st.DataObject) -> None:
    times = [sum(intervals_ns[:n]) for n in range(len(intervals_ns) + 1)]
    cut = data.draw(st.integers(1, len(times)))
    assert ticks(times)[:cut] == ticks(times[:cut])


def test_a_tick_without_a_frame_stays_without() -> None:
    times = [n * TICK_NS for n in range(10)]
    del times[4:6]
    assert ticks(times) == [0, 1, 2, 3, 6, 7, 8, 9]


def test_a_frame_that_is_not_later_serves_nothing() -> None:
    assert ticks([0, TICK_NS, TICK_NS, TICK_NS // 2, 2 * TICK_NS]) == [0, 1, None, None, 2]


def test_after_a_restart_the_grid_goes_on() -> None:
    state = SamplerState(origin_ns=5, last_index=41, last_time_ns=None)
    index, state = sample(5 + 60 * TICK_NS + 3_000_000, state)
    assert index == 60
    assert state.origin_ns == 5
