"""Jobs in processes of their own: none is lost, whatever becomes of it."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mbr_live.appending import Unwritable
from mbr_live.jobs import Failed, Far, Killed, done_apart
from mbr_live.logs import LOG_VARIABLE, LogFormat
from mbr_live.types import MbrError

kept_open = []  # until the process ends


def opened(twice: int) -> Callable[[str, Far], tuple[int, str]]:
    return partial(work, twice)


def work(factor: int, job: str, far: Far) -> tuple[int, str]:
    far(1, None)
    if job == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "wrong":
        raise MbrError("no good")
    if job == "full":
        raise Unwritable("labels.csv", "No space left on device", errno.ENOSPC)
    if job == "bug":
        raise ValueError("odd,\n  very odd")
    if job == "said":
        logging.getLogger("somebody").warning("look here")
    far(2, 2)
    return os.getpid(), job * factor


def untold(number: int, done: int, total: int | None) -> None:
    """Nobody wants to know how far it is."""


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


def test_processes_log_as_the_one_that_started_them(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LOG_VARIABLE, LogFormat.JSON)
    list(done_apart(partial(opened, 2), ["said"], 1, untold))
    assert json.loads(capfd.readouterr().err)["text"] == "look here"


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_killed_process_takes_its_job_with_it_and_no_other_that_a_process_is_left_for(at_once: int) -> None:
    jobs = ["a", "killed", "b", "c"]
    ended = dict(done_apart(partial(opened, 1), jobs, at_once, untold))
    killed = [number for number, result in ended.items() if isinstance(result, Killed)]
    assert sorted(ended) == [0, 1, 2, 3]
    assert killed == ([1] if at_once == 2 else [1, 2, 3])


def test_an_error_that_nobody_foresaw_ends_its_job_and_no_other() -> None:
    ended = dict(done_apart(partial(opened, 1), ["bug", "bug", "full", "bug", "full", "a"], 2, untold))
    assert sorted(ended) == list(range(6))
    for number in (0, 1, 3):
        failed = ended[number]
        assert isinstance(failed, Failed) and failed.error == "ValueError: odd, very odd" and "in work" in failed.trace
        assert "clip: ended by an error" in str(failed.explained("clip")) and failed.error in str(failed.explained(""))
    for number in (2, 4):
        assert isinstance(ended[number], MbrError) and "labels.csv: cannot be written" in str(ended[number])
    assert isinstance(ended[5], tuple)


def test_a_process_that_is_killed_between_two_jobs_is_told_as_such() -> None:
    ended = {}
    for number, result in done_apart(partial(opened, 1), ["a", "b", "c"], 1, untold):
        ended[number] = result
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
    assert isinstance(ended.pop(0), tuple)
    assert ended == {1: Killed(), 2: Killed()}


def unopened() -> Callable[[str, Far], None]:
    raise MbrError("no such engine")


def test_what_cannot_be_opened_is_what_became_of_every_job() -> None:
    ended = dict(done_apart(unopened, ["a", "b", "c"], 2, untold))
    assert {number: str(error) for number, error in ended.items()} == dict.fromkeys(range(3), "no such engine")


def opened_by_one(folder: Path) -> Callable[[str, Far], str]:
    """The second process that asks gets an error, and holds a lock until it has ended."""
    try:
        (folder / "taken").mkdir()
    except FileExistsError:
        kept_open.append((folder / "lock").open("w"))
        fcntl.flock(kept_open[0], fcntl.LOCK_EX)
        (folder / "locked").touch()
        raise MbrError("no room for two") from None
    return partial(work_alone, folder)


def work_alone(folder: Path, job: str, far: Far) -> str:
    while not (folder / "locked").exists():
        time.sleep(0.01)
    with (folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other process has ended
    return job


def test_a_process_that_cannot_be_opened_leaves_its_job_to_the_others(tmp_path: Path) -> None:
    jobs = ["a", "b", "c", "d"]
    assert dict(done_apart(partial(opened_by_one, tmp_path), jobs, 2, untold)) == dict(enumerate(jobs))


def test_whoever_has_heard_enough_ends_the_processes() -> None:
    ended = done_apart(partial(opened, 1), ["a", "b", "c", "d"], 2, untold)
    next(ended)
    ended.close()
    assert not multiprocessing.active_children()


def test_none_is_none() -> None:
    assert not list(done_apart(partial(opened, 1), [], 2, untold))
