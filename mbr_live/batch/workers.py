"""Several recordings at the same time, each in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import cv2

from mbr_live.batch.batch import Job, Replayed, estimated_frames, run_job
from mbr_live.bundle import Bundle
from mbr_live.engines.choice import open_engine
from mbr_live.engines.protocol import Engine
from mbr_live.sinks import RunManifest
from mbr_live.types import DEFAULT_ENGINE, EngineKind, EngineWish, MbrError

_TELL_EVERY_FRAMES = 50  # telling must not slow the labelling down

Told = Callable[[int, int, int | None], None]
"""Called with the number of a job, its source frames that are done, and how many there will be as far as is known."""


@dataclass(frozen=True)
class Labeller:
    """How recordings are labelled, whichever they are."""

    bundle: Bundle
    out: Path
    wish: EngineWish = DEFAULT_ENGINE
    recorded: EngineKind | None = None  # what labelled the live run that is replayed
    replayed: Replayed | None = None
    window_px: int | None = None

    def engine(self, processes: int = 1) -> Engine:
        """What computes the networks of one of so many processes."""
        return open_engine(self.bundle, self.wish, recorded=self.recorded, processes=processes)

    def label(self, engine: Engine, number: int, job: Job, told: Told) -> RunManifest:
        """Label one recording; MbrError when it cannot be read to its end."""
        total = estimated_frames(job)
        told(number, 0, total)

        def progress(done: int) -> None:
            if done % _TELL_EVERY_FRAMES == 0:
                told(number, done, total)

        return run_job(
            job, self.out, self.bundle, engine, replayed=self.replayed, window_px=self.window_px, progress=progress
        )


def labelled(
    labeller: Labeller, jobs: Sequence[Job], at_once: int, told: Told
) -> Iterator[tuple[int, RunManifest | MbrError]]:
    """What became of every job, by its number, as they end; `at_once` at the same time."""
    cv2.setNumThreads(1)  # the stages of one recording are threads already
    engine = labeller.engine()  # what is wrong with it is said before any process is started
    if min(at_once, len(jobs)) > 1:
        yield from _in_processes(labeller, jobs, min(at_once, len(jobs)), told)
        return
    for number, job in enumerate(jobs):
        yield number, _outcome(labeller, engine, number, job, told)


def _outcome(labeller: Labeller, engine: Engine, number: int, job: Job, told: Told) -> RunManifest | MbrError:
    try:
        return labeller.label(engine, number, job, told)
    except MbrError as error:
        return error


def _in_processes(
    labeller: Labeller, jobs: Sequence[Job], at_once: int, told: Told
) -> Iterator[tuple[int, RunManifest | MbrError]]:
    context = multiprocessing.get_context("spawn")  # a process with threads must not be forked
    todo = deque(enumerate(jobs))
    at_work: dict[Connection, int] = {}  # the job that each process is at
    processes = []
    try:
        for _ in range(at_once):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(labeller, at_once, there), daemon=True)
            process.start()
            processes.append(process)
            there.close()  # so that the end of the process is the end of what can be received
            at_work[here] = _give(here, todo)
        while at_work:
            ready = wait(list(at_work))
            for connection in [each for each in at_work if each in ready]:
                said = _received(connection)
                if isinstance(said, tuple):
                    told(*said)
                    continue
                number = at_work.pop(connection)
                yield number, said or _killed(jobs[number])
                if todo and said is not None:
                    at_work[connection] = _give(connection, todo)
                else:
                    connection.close()
        yield from ((number, _killed(job)) for number, job in todo)
    finally:
        for connection in at_work:
            connection.close()  # whoever speaks into it next comes to an end, and leaves nothing half-written
        for process in processes:
            process.join()


_Said = tuple[int, int, int | None] | RunManifest | MbrError
"""What a process says: how far it is, or in the end what became of its job."""


def _give(connection: Connection, todo: deque[tuple[int, Job]]) -> int:
    number, job = todo.popleft()
    connection.send((number, job))
    return number


def _received(connection: Connection) -> _Said | None:
    """None from a process that is gone."""
    try:
        said: _Said = connection.recv()
    except (EOFError, ConnectionResetError):
        return None
    return said


def _killed(job: Job) -> MbrError:
    return MbrError(
        f"{job.name}: the process that was to label it was killed, most often for want of memory. "
        "Label fewer files at the same time: --at-once 1."
    )


def _work(labeller: Labeller, processes: int, connection: Connection) -> None:
    """The life of one of so many processes: job after job, until there are no more or nobody listens any longer."""
    cv2.setNumThreads(1)
    try:
        engine = labeller.engine(processes)
        while True:
            number, job = connection.recv()
            connection.send(_outcome(labeller, engine, number, job, lambda *far: connection.send(far)))
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        return
