"""Jobs in processes of their own: none is lost, whatever becomes of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial

import pytest

from mbr_live.jobs import Far, Killed, done_apart
from mbr_live.types import MbrError


def opened(twice: int) -> Callable[[str, Far], tuple[int, str]]:
    return partial(work, twice)


def work(factor: int, job: str, far: Far) -> tuple[int, str]:
    far(1, None)
    if job == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "wrong":
        raise MbrError("no good")
    far(2, 2)
    return os.getpid(), job * factor


def test_every_job_ends_once_and_tells_how_far_it_is() -> None:
    jobs = ["a", "wrong", "b", "c", "d"]
    told: list[tuple[int, int, int | None]] = []
    ended = dict(done_apart(partial(opened, 2), jobs, 2, lambda *far: told.append(far)))
    assert sorted(ended) == [0, 1, 2, 3, 4]
    assert isinstance(ended[1], MbrError) and str(ended[1]) == "no good"
    results = {number: result for number, result in ended.items() if isinstance(result, tuple)}
    assert {number: word for number, (_, word) in results.items()} == {0: "aa", 2: "bb", 3: "cc", 4: "dd"}
    processes = {process for process, _ in results.values()}
    assert 1 <= len(processes) <= 2 and os.getpid() not in processes
    assert sorted(told) == sorted([(n, 1, None) for n in range(5)] + [(n, 2, 2) for n in range(5) if n != 1])


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_killed_process_takes_its_job_with_it_and_no_other_that_a_process_is_left_for(at_once: int) -> None:
    jobs = ["a", "killed", "b", "c"]
    ended = dict(done_apart(partial(opened, 1), jobs, at_once, lambda *far: None))
    killed = [number for number, result in ended.items() if isinstance(result, Killed)]
    assert sorted(ended) == [0, 1, 2, 3]
    assert killed == ([1] if at_once == 2 else [1, 2, 3])


def test_none_is_none() -> None:
    assert not list(done_apart(partial(opened, 1), [], 2, lambda *far: None))
