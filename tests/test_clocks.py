"""A camera's clock on the host's: exact intervals, no drift, no step back."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from mbr_live.cameras.clocks import DRIFT, JUMP_NS, OLDEST_STAMP_NS, align, driver_age_ns

MS = 1_000_000
PERIOD_NS = 33 * MS


def aligned(camera_ns: list[int], host_ns: list[int]) -> list[int]:
    """Host times of the frames, as the alignment of their moment gives them."""
    state, times = None, []
    for camera, host in zip(camera_ns, host_ns, strict=True):
        state = align(camera, host, state)
        times.append(camera + state.offset_ns)
    return times


@given(
    st.lists(st.integers(0, 80 * MS), min_size=2, max_size=300),
    st.floats(-0.5 * DRIFT, 0.5 * DRIFT),
    st.integers(0, 10**18),
)
def test_a_frame_is_never_later_than_it_came_and_jitter_goes(delays: list[int], drift: float, start: int) -> None:
    truth = [n * PERIOD_NS for n in range(len(delays))]
    camera = [start + round(t * (1 + drift)) for t in truth]
    times = aligned(camera, [t + delay for t, delay in zip(truth, delays, strict=True)])
    least = list(delays)
    for n, (time_ns, delay) in enumerate(zip(times, delays, strict=True)):
        least[n] = min(delay, least[n - 1]) if n else delay
        assert time_ns <= truth[n] + delay
        # Later than the least delay so far by what a clock may drift in that time, and no more.
        assert time_ns - truth[n] <= least[n] + DRIFT * 2 * truth[n] + 2


def test_intervals_are_the_cameras_own_once_a_frame_has_come_soon() -> None:
    random_ = random.Random(2)
    truth = [n * PERIOD_NS for n in range(3000)]
    times = aligned(truth, [t + round(random_.expovariate(1 / (20 * MS))) for t in truth])
    intervals = [b - a for a, b in pairwise(times[300:])]
    assert max(abs(interval - PERIOD_NS) for interval in intervals) < 2 * MS  # of host times: tens of ms


def test_weeks_of_a_fast_clock_do_not_drift() -> None:
    truth = [n * 1_000_000_000 for n in range(0, 14 * 24 * 3600, 10)]
    state, late_ns = None, 0
    for t in truth:
        camera = t + t // 20_000  # 50 ppm
        state = align(camera, t + 5 * MS, state)
        late_ns = max(late_ns, abs(camera + state.offset_ns - t - 5 * MS))
    assert late_ns < MS


def test_a_clock_that_jumps_is_followed() -> None:
    state = align(1_000, 50_000, None)
    back = align(1_000 - 10 * JUMP_NS, 50_000 + PERIOD_NS, state)
    assert 1_000 - 10 * JUMP_NS + back.offset_ns == 50_000 + PERIOD_NS
    ahead = align(1_000 + 10 * JUMP_NS, 50_000 + PERIOD_NS, state)
    assert 1_000 + 10 * JUMP_NS + ahead.offset_ns == 50_000 + PERIOD_NS


@given(st.integers(PERIOD_NS + 1, 2 * JUMP_NS), st.lists(st.integers(0, 20 * MS), min_size=60, max_size=60))
def test_a_clock_that_is_set_back_costs_no_frame_and_no_time(step_ns: int, delays: list[int]) -> None:
    truth = [n * PERIOD_NS for n in range(len(delays))]
    camera = [t if n < 30 else t - step_ns for n, t in enumerate(truth)]
    times = aligned(camera, [t + delay for t, delay in zip(truth, delays, strict=True)])
    assert all(0 <= time_ns - t <= 20 * MS for time_ns, t in zip(times, truth, strict=True))
    assert all(earlier < later for earlier, later in pairwise(times))


def test_a_burst_after_a_stall_keeps_its_times() -> None:
    """Frames that the network held back for three seconds were taken when the camera says."""
    truth = [n * PERIOD_NS for n in range(200)]
    host = [max(t, 100 * PERIOD_NS) if n > 10 else t for n, t in enumerate(truth)]
    times = aligned(truth, host)
    assert max(abs(time_ns - t) for time_ns, t in zip(times, truth, strict=True)) < MS


def test_a_session_goes_on_by_its_clock_when_the_date_was_set_by_years(tmp_path: Path) -> None:
    """Two processes, between which somebody set the date; a third on a machine that was started again."""
    first = run_process(tmp_path, shift_s=0)
    second = run_process(tmp_path, shift_s=200_000_000)
    assert 0 <= second - first < 60_000_000_000
    kept = json.loads((tmp_path / "cage.clock.json").read_text())
    (tmp_path / "cage.clock.json").write_text(json.dumps(kept | {"monotonic": "of another start"}))
    third = run_process(tmp_path, shift_s=200_000_000)
    assert third - first > 100_000_000_000_000_000


def run_process(out: Path, shift_s: int) -> int:
    """The time that a capture process with the date so much later counts."""
    program = (
        "import sys, time; from pathlib import Path; true = time.time_ns\n"
        f"time.time_ns = lambda: true() + {shift_s} * 1_000_000_000\n"
        "from mbr_live.cameras.clocks import EpochClock\n"
        "from mbr_live.cameras.session_clock import SessionClock\n"
        "clock = SessionClock(Path(sys.argv[1]), 'cage'); clock.take_up(); clock.keep(); print(EpochClock().now_ns())"
    )
    done = subprocess.run([sys.executable, "-c", program, out], capture_output=True, text=True, check=True)
    return int(done.stdout)


@given(st.integers(2 * OLDEST_STAMP_NS, 10**15), st.integers(-(10**12), 10**12))
def test_a_driver_is_believed_if_its_stamp_is_of_the_last_second(now_ns: int, age_ns: int) -> None:
    stamp_ms = (now_ns - age_ns) / 1e6
    found = driver_age_ns(stamp_ms, now_ns)
    near = 1000  # ns; OpenCV gives milliseconds in floating point
    if near <= age_ns < OLDEST_STAMP_NS - near and stamp_ms > 0:
        assert found is not None and abs(found - age_ns) <= near
    elif age_ns < -near or age_ns > OLDEST_STAMP_NS + near:
        assert found is None


def test_other_stamps_of_drivers_are_not_believed() -> None:
    for stamp_ms in (0.0, -1.0, 1.7e12):  # none, not supported, the date
        assert driver_age_ns(stamp_ms, 5 * OLDEST_STAMP_NS) is None
