"""Several recordings at the same time, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2

from mbr_live.batch.batch import Job, Replayed, estimated_frames, run_job
from mbr_live.bundle import Bundle
from mbr_live.engines.choice import open_engine
from mbr_live.engines.protocol import Engine
from mbr_live.jobs import Ended, Failed, Far, Killed, Told, done_apart, outcome
from mbr_live.sinks.run_manifest import RunManifest
from mbr_live.types import DEFAULT_ENGINE, EngineKind, EngineWish, MbrError

_TELL_EVERY_FRAMES = 50  # telling must not slow the labelling down


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

    def opened(self, processes: int) -> Callable[[Job, Far], RunManifest]:
        """What labels, in one of so many processes, one recording after the other."""
        return partial(self.label, self.engine(processes))

    def label(self, engine: Engine, job: Job, far: Far) -> RunManifest:
        """Label one recording; MbrError when it cannot be read to its end. `far` is told source frames."""
        total = estimated_frames(job)
        far(0, total)

        def progress(done: int) -> None:
            if done % _TELL_EVERY_FRAMES == 0:
                far(done, total)

        return run_job(
            job, self.out, self.bundle, engine, replayed=self.replayed, window_px=self.window_px, progress=progress
        )


def labelled(
    labeller: Labeller, jobs: Sequence[Job], at_once: int, told: Told
) -> Iterator[tuple[int, RunManifest | MbrError]]:
    """What became of every job, by its number, as they end; `at_once` at the same time."""
    cv2.setNumThreads(1)  # the stages of one recording are threads already
    engine = labeller.engine()  # what is wrong with it is said before any process is started
    at_once = min(at_once, len(jobs))
    if at_once > 1:
        for number, ended in done_apart(partial(labeller.opened, at_once), jobs, at_once, told):
            yield number, _explained(jobs[number], ended)
        return
    for number, job in enumerate(jobs):
        yield number, _explained(job, outcome(partial(labeller.label, engine), job, partial(told, number)))


def _explained(job: Job, ended: Ended[RunManifest]) -> RunManifest | MbrError:
    if isinstance(ended, Failed):
        return ended.explained(job.name)
    if isinstance(ended, Killed):
        return MbrError(
            f"{job.name}: the process that was to label it was killed, most often for want of memory. "
            "Label fewer files at the same time: --at-once 1."
        )
    return ended
