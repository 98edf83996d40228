"""Several jobs at the same time, each in a process of its own, with word of how far they are."""

from __future__ import annotations

import logging
import multiprocessing
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeAlias, TypeVar

import cv2

from mbr_live.logs import go_on_logging
from mbr_live.types import MbrError

J = TypeVar("J")
R = TypeVar("R")

_log = logging.getLogger(__name__)

Far = Callable[[int, int | None], None]
"""Called with what is done of a job, and how much there will be as far as is known."""

Told = Callable[[int, int, int | None], None]
"""The same, with the number of the job first."""


@dataclass(frozen=True, slots=True)
class Killed:
    """What became of a job whose process is gone, and of all that no process was left for."""


@dataclass(frozen=True, slots=True)
class Failed:
    """What became of a job that ended with an error other than MbrError: a defect, or a machine that fails."""

    error: str  # its kind and text, in a line
    trace: str  # as Python prints it

    def explained(self, subject: str) -> MbrError:
        """What to tell people; the trace goes to the log."""
        _log.error("%s: %s", subject, self.trace)
        return MbrError(f"{subject}: ended by an error that mbr-live does not foresee: {self.error}. Please report it.")


Ended: TypeAlias = R | MbrError | Failed | Killed


@dataclass(frozen=True, slots=True)
class _Far:
    done: int
    total: int | None


@dataclass(frozen=True, slots=True)
class _Gone:
    """A process takes no more jobs."""

    why: MbrError | Failed | Killed
    begun: bool  # it had begun its job; else another can have it


def done_apart(
    open_work: Callable[[], Callable[[J, Far], R]], jobs: Sequence[J], at_once: int, told: Told
) -> Generator[tuple[int, Ended[R]], None, None]:
    """What became of every job, by its number, as they end; `at_once` at the same time.

    Each process calls `open_work` once, and what that gives for job after job; both are sent to it, and so are the
    results. An error is the result of its job and stops nothing. A process that is killed, or in which `open_work`
    fails, leaves the rest to the others; what no process is left for ends as the last process did. Closing this ends
    the processes.
    """
    context = multiprocessing.get_context("spawn")  # a process with threads must not be forked
    todo = deque(enumerate(jobs))
    processes: dict[Connection, SpawnProcess] = {}
    at_work: dict[Connection, int] = {}  # the job that each process is at
    last: MbrError | Failed | Killed = Killed()
    try:
        for _ in range(min(at_once, len(jobs))):
            here, there = context.Pipe()
            processes[here] = context.Process(target=_work, args=(open_work, there), daemon=True)
            processes[here].start()
            there.close()  # so that the end of the process is the end of what can be received
            at_work[here] = _give(here, todo)
        while at_work:
            ready = wait(list(at_work))
            for connection in [each for each in at_work if each in ready]:
                said: R | MbrError | Failed | _Far | _Gone = _received(connection)
                if isinstance(said, _Far):
                    told(at_work[connection], said.done, said.total)
                    continue
                number = at_work.pop(connection)
                if not isinstance(said, _Gone):
                    yield number, said
                    if todo:
                        at_work[connection] = _give(connection, todo)
                    else:
                        connection.close()
                    continue
                last = said.why
                if said.begun:
                    yield number, last
                else:
                    todo.appendleft((number, jobs[number]))
        yield from ((number, last) for number, _ in todo)
    finally:
        for connection in processes:
            connection.close()  # whoever speaks into it next comes to an end, and leaves nothing half-written
        for process in processes.values():
            process.join()


def _give(connection: Connection, todo: deque[tuple[int, J]]) -> int:
    number, job = todo.popleft()
    with suppress(BrokenPipeError, ConnectionResetError):  # killed while it waited: that is received next
        connection.send(job)
    return number


def _received(connection: Connection) -> Any:  # what was pickled
    """What a process says: how far it is, what became of its job, or that it is gone."""
    try:
        return connection.recv()
    except (EOFError, OSError):  # OSError: killed in the middle of a word
        return _Gone(Killed(), begun=True)


def _work(open_work: Callable[[], Callable[[J, Far], R]], connection: Connection) -> None:
    """The life of one process: job after job, until there are no more or nobody listens any longer."""
    cv2.setNumThreads(1)  # the other cores have processes of their own
    go_on_logging()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        work = outcome(lambda _, __: open_work(), None, lambda *_: None)
        if isinstance(work, (MbrError, Failed)):
            connection.send(_Gone(work, begun=False))
            return
        while True:
            connection.send(outcome(work, connection.recv(), lambda *far: connection.send(_Far(*far))))


def outcome(work: Callable[[J, Far], R], job: J, far: Far) -> R | MbrError | Failed:
    """The result of a job, or the error that it ended with."""
    try:
        return work(job, far)
    except MbrError as error:
        return MbrError(str(error))  # of this kind, whatever it was: others may need more to be made anew elsewhere
    except Exception as error:  # noqa: BLE001 - told as the result; other jobs can be done
        return Failed(" ".join(f"{type(error).__name__}: {error}".split()), traceback.format_exc())
