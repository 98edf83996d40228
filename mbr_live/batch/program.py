"""`mbr-live batch`: many files, a bar for each at work, a table at the end, an exit code that says whether all is well.

Several files are labelled at the same time, each in a process of its own: the files of a process would wait for each
other, and on a machine with many cores one file cannot use them all.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mbr_live.batch.batch import Job, Replayed, is_done, jobs_of, refuse_others
from mbr_live.batch.workers import Labeller, labelled
from mbr_live.bundle import load_bundle
from mbr_live.engines.choice import cores, kind_of
from mbr_live.places import check_writable
from mbr_live.progress import bars
from mbr_live.sinks.run_manifest import RunManifest, read_run
from mbr_live.types import DEFAULT_ENGINE, EngineWish, MbrError

EXIT_SOME_FAILED = 1
_ALL = "recordings"

_log = logging.getLogger(__name__)


def batch_program(
    videos: Sequence[Path],
    out: Path,
    bundle_path: Path,
    *,
    join: str | None = None,
    drops: Path | None = None,
    window_px: int | None = None,
    wish: EngineWish | None = None,
    at_once: int | None = None,
    skip_done: bool = False,
) -> int:
    """Label every file, `at_once` at the same time (None: as many as there are cores).

    0 when all went well, 1 when some could not be read (they are named on stderr)."""
    bundle = load_bundle(bundle_path)
    jobs = jobs_of(videos, join)
    check_writable(out)
    refuse_others(jobs, out)
    lived = _lived(drops, jobs) if drops else None
    replayed = Replayed(lived.drops, lived.restarts) if lived else None
    recorded = kind_of(lived.engine) if lived else None
    labeller = Labeller(bundle, out, wish or recorded or DEFAULT_ENGINE, recorded, replayed, window_px)
    if lived and labeller.engine().name != lived.engine:
        _log.warning(
            "%s was labelled by %s; this is %s: labels may differ",
            lived.recording, lived.engine, labeller.engine().name,
        )  # fmt: skip
    if skip_done:
        jobs = _left(jobs, labeller)
    done: dict[int, RunManifest] = {}
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    with bars(over=_ALL) as show:
        show(_ALL, 0, len(jobs))

        def far(number: int, frames: int, total: int | None) -> None:
            show(jobs[number].name, frames, total)

        for count, (number, ended) in enumerate(labelled(labeller, jobs, at_once or cores(), far), start=1):
            show(jobs[number].name, 1, 1)
            show(_ALL, count, len(jobs))
            if isinstance(ended, RunManifest):
                done[number] = ended
            else:
                errors.print(f"mbr-live: {ended}")
    if done:
        _tell([done[number] for number in sorted(done)], out, errors)
    failed = [job.name for number, job in enumerate(jobs) if number not in done]
    if done and failed:  # the table may have pushed what was said of them out of sight
        names = ", ".join(failed)
        errors.print(f"mbr-live: {len(failed)} of {len(jobs)} could not be labelled, as told above: {names}.")
    return EXIT_SOME_FAILED if failed else 0


def _tell(runs: Sequence[RunManifest], out: Path, errors: Console) -> None:
    Console().print(_table(runs))
    if not runs[0].causal:
        print(f"bundle {runs[0].bundle} looks ahead: these labels are not what a live camera would get")
    for run in runs:
        if run.drifted:
            errors.print(f"{run.recording}: {', '.join(run.drifted)} unlike training; see drift in its .run.json")
    print(f"labels, bouts and manifests: {out}")


def _left(jobs: Sequence[Job], labeller: Labeller) -> list[Job]:
    """The jobs that are not done."""
    engine = labeller.engine().name
    left = [job for job in jobs if not is_done(job, labeller.out, labeller.bundle, engine, labeller.window_px)]
    print(f"{len(jobs) - len(left)} of {len(jobs)} were labelled before")
    return left


def _lived(path: Path, jobs: Sequence[Job]) -> RunManifest:
    """The live run that is replayed."""
    run = read_run(path)
    if len(jobs) != 1:
        raise MbrError(f"{path}: --drops is of one recording ({run.recording}), but {len(jobs)} were given. Give one.")
    if run.exit_status == "running":
        raise MbrError(
            f"{path}: this run did not come to its end, so what it lost is not known yet. Let it go on and end: "
            "mbr-live run with the same configuration."
        )
    return run


def _table(runs: Sequence[RunManifest]) -> Table:
    table = Table(title="labelled recordings")
    for column in ("recording", "frames", "ok", "unknown", "bouts", "frames/s"):
        table.add_column(column, justify="left" if column in ("recording", "bouts") else "right")
    for run in runs:
        frames, ok = sum(run.rows.values()), run.rows.get("ok", 0)
        bouts = ", ".join(f"{count} {name}" for name, count in run.bouts.items())
        speed = f"{run.timings['output_frames_per_s']:.0f}"
        table.add_row(escape(run.recording), str(frames), str(ok), str(frames - ok), bouts, speed)
    return table
