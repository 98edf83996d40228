"""Several jobs at the same time, each in a process of its own, with word of how far they are."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import cv2

from mbr_live.types import MbrError

J = TypeVar("J")
R = TypeVar("R")

Far = Callable[[int, int | None], None]
"""Called with what is done of a job, and how much there will be as far as is known."""

Told = Callable[[int, int, int | None], None]
"""The same, with the number of the job first."""


@dataclass(frozen=True, slots=True)
class Killed:
    """What became of a job whose process is gone, and of all that no process was left for."""


@dataclass(frozen=True, slots=True)
class _Far:
    done: int
    total: int | None


def done_apart(
    open_work: Callable[[], Callable[[J, Far], R]], jobs: Sequence[J], at_once: int, told: Told
) -> Generator[tuple[int, R | MbrError | Killed], None, None]:
    """What became of every job, by its number, as they end; `at_once` at the same time.

    Each process calls `open_work` once, and what that gives for job after job; both are sent to it, and so are the
    results. An MbrError is the result of its job and stops nothing. Closing this ends the processes.
    """
    context = multiprocessing.get_context("spawn")  # a process with threads must not be forked
    todo = deque(enumerate(jobs))
    at_work: dict[Connection, int] = {}  # the job that each process is at
    processes = []
    try:
        for _ in range(min(at_once, len(jobs))):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(open_work, there), daemon=True)
            process.start()
            processes.append(process)
            there.close()  # so that the end of the process is the end of what can be received
            at_work[here] = _give(here, todo)
        while at_work:
            ready = wait(list(at_work))
            for connection in [each for each in at_work if each in ready]:
                said: R | MbrError | Killed | _Far = _received(connection)
                if isinstance(said, _Far):
                    told(at_work[connection], said.done, said.total)
                    continue
                number = at_work.pop(connection)
                yield number, said
                if todo and not isinstance(said, Killed):
                    at_work[connection] = _give(connection, todo)
                else:
                    connection.close()
        yield from ((number, Killed()) for number, _ in todo)
    finally:
        for connection in at_work:
            connection.close()  # whoever speaks into it next comes to an end, and leaves nothing half-written
        for process in processes:
            process.join()


def _give(connection: Connection, todo: deque[tuple[int, J]]) -> int:
    number, job = todo.popleft()
    connection.send(job)
    return number


def _received(connection: Connection) -> Any:  # what was pickled
    """What a process says: how far it is, or in the end what became of its job."""
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError):
        return Killed()


def _work(open_work: Callable[[], Callable[[J, Far], R]], connection: Connection) -> None:
    """The life of one process: job after job, until there are no more or nobody listens any longer."""
    cv2.setNumThreads(1)  # the other cores have processes of their own
    try:
        work = open_work()
        while True:
            connection.send(outcome(work, connection.recv(), lambda *far: connection.send(_Far(*far))))
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        return


def outcome(work: Callable[[J, Far], R], job: J, far: Far) -> R | MbrError:
    """The result of a job, or the error that it ended with."""
    try:
        return work(job, far)
    except MbrError as error:
        return error
