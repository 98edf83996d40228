"""`mbr-live batch`: many files, a progress bar each, a table at the end, an exit code that says whether all is well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from mbr_live.batch import Job, Replayed, estimated_frames, jobs_of, run_job
from mbr_live.bundle import load_bundle
from mbr_live.engine import OpenVinoEngine
from mbr_live.sinks import RunManifest, read_run
from mbr_live.types import MbrError

EXIT_SOME_FAILED = 1


def batch_program(
    videos: Sequence[Path],
    out: Path,
    bundle_path: Path,
    *,
    join: str | None = None,
    drops: Path | None = None,
    window_px: int | None = None,
) -> int:
    """Label every file; 0 when all went well, 1 when some could not be read (they are named on stderr)."""
    bundle = load_bundle(bundle_path)
    jobs = jobs_of(videos, join)
    replayed = _replayed(drops, jobs) if drops else None
    engine = OpenVinoEngine(bundle)
    done: list[RunManifest] = []
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        for job in jobs:
            bar = bars.add_task(job.name, total=None)
            try:
                bars.update(bar, total=estimated_frames(job))
                run = run_job(
                    job, out, bundle, engine, replayed=replayed, window_px=window_px, progress=_advance(bars, bar)
                )
            except MbrError as error:
                bars.update(bar, description=f"{job.name}: failed")
                errors.print(f"mbr-live: {error}")
                continue
            bars.update(bar, total=1, completed=1)
            done.append(run)
    if done:
        Console().print(_table(done))
        if not bundle.manifest.causal:
            print(f"bundle {bundle.manifest.name} looks ahead: these labels are not what a live camera would get")
        for run in done:
            if run.drifted:
                errors.print(f"{run.recording}: {', '.join(run.drifted)} unlike training; see drift in its .run.json")
        print(f"labels, bouts and manifests: {out}")
    return 0 if len(done) == len(jobs) else EXIT_SOME_FAILED


def _advance(bars: Progress, bar: TaskID) -> Callable[[int], None]:
    """Moves a bar, not for every frame: drawing it must not slow the labelling down."""
    return lambda done: bars.update(bar, completed=done) if done % 50 == 0 else None


def _replayed(path: Path, jobs: Sequence[Job]) -> Replayed:
    run = read_run(path)
    if len(jobs) != 1:
        raise MbrError(f"{path}: --drops is of one recording ({run.recording}), but {len(jobs)} were given. Give one.")
    if run.exit_status == "running":
        raise MbrError(
            f"{path}: this run did not come to its end, so what it lost is not known yet. Let it go on and end: "
            "mbr-live run with the same configuration."
        )
    return Replayed(run.drops, run.restarts)


def _table(runs: Sequence[RunManifest]) -> Table:
    table = Table(title="labelled recordings")
    for column in ("recording", "frames", "ok", "unknown", "bouts", "frames/s"):
        table.add_column(column, justify="left" if column in ("recording", "bouts") else "right")
    for run in runs:
        frames, ok = sum(run.rows.values()), run.rows.get("ok", 0)
        bouts = ", ".join(f"{count} {name}" for name, count in run.bouts.items())
        speed = f"{run.timings['output_frames_per_s']:.0f}"
        table.add_row(run.recording, str(frames), str(ok), str(frames - ok), bouts, speed)
    return table
