"""Recorded files through the same pipeline: as many as there are, the same bytes as live.

Results are written under another name and renamed when the file is done, so that a file that turns out to be broken,
or an interruption, leaves nothing half-written; a broken file does not stop the others.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mbr_live.ahead import Ahead
from mbr_live.bundle import Bundle
from mbr_live.drift import Drift, Glance, glance_at, reference_of
from mbr_live.engines.protocol import Engine
from mbr_live.files import PART_SUFFIX
from mbr_live.locks import held
from mbr_live.pipeline import Features, Hindsight, LaneState, Pipeline, Seen, SightState
from mbr_live.places import writing_into
from mbr_live.sinks.bouts import BOUTS_SUFFIX
from mbr_live.sinks.label_log import LABELS_SUFFIX, gap_ranges, read_labels
from mbr_live.sinks.label_segments import closed_segments, segment_folder
from mbr_live.sinks.run_manifest import RUN_SUFFIX, RunManifest, read_run, versions, write_run
from mbr_live.sinks.session_log import SessionLog
from mbr_live.types import Decision, Frame, MbrError, SourceFrame
from mbr_live.video.journal import JOURNAL_SUFFIX
from mbr_live.video.recording import Recording
from mbr_live.video.sources import JoinedFiles, Source, VideoFile, sampled

AHEAD_FRAMES = 8  # decoded ahead: enough to keep all threads busy, little enough to stay small
TOGETHER_FRAMES = 32  # seen ahead, and at most computed in one call, at whose end the threads of the engine wait

Progress = Callable[[int], None]
"""Called with the number of source frames that are done."""


@dataclass(frozen=True, slots=True)
class Job:
    """One recording to label: a file, several joined, or what a live session recorded."""

    name: str
    paths: tuple[Path, ...]

    @property
    def sources(self) -> list[str]:
        """The files, as they are found from whatever folder."""
        return [str(path.absolute()) for path in self.paths]


@dataclass(frozen=True, slots=True)
class Replayed:
    """What happened to a live run and is to happen again: ticks that were lost, and restarts of inference."""

    drops: Sequence[tuple[int, int]] = ()
    restarts: Sequence[int] = ()

    def lost(self, index: int) -> bool:
        """Whether the frame of this tick did not arrive."""
        before = bisect_right(self.drops, (index, 2**63)) - 1
        return before >= 0 and index <= self.drops[before][1]


def jobs_of(paths: Sequence[Path], join: str | None) -> list[Job]:
    """One job per file, or one for all with `join`; MbrError when two would write the same result, or none could."""
    for path in paths:
        if path.is_dir():
            raise _of_folder(path)
    if join is not None:
        if not join.strip() or join.startswith(".") or Path(join).name != join:
            raise MbrError(
                f"--join {join!r}: this cannot name the results. Give a name such as night1, without a folder: "
                "results are written into that of --out."
            )
        return [Job(join, tuple(paths))]
    jobs = [Job(_stem(path), (path,)) for path in paths]
    by_name: dict[str, Path] = {}
    for job in jobs:
        if job.name in by_name:
            raise MbrError(
                f"{job.paths[0]}: its results would have the name of those of {by_name[job.name]} ({job.name}). "
                "Give the two to separate calls with different --out folders."
            )
        by_name[job.name] = job.paths[0]
    return jobs


def refuse_others(jobs: Sequence[Job], out: Path) -> None:
    """MbrError where `out` holds the labels of another recording of the same name, which would be lost."""
    for job in jobs:
        run = _earlier_run(out, job.name)
        if run and run.mode == "batch" and run.sources != job.sources:
            raise MbrError(
                f"{out / job.name}{LABELS_SUFFIX}: these are the labels of another recording of this name, of "
                f"{', '.join(run.sources)}, not of {', '.join(job.sources)}. Give another --out, or take them away."
            )


def is_done(job: Job, out: Path, bundle: Bundle, engine: str, window_px: int | None) -> bool:
    """Whether `out` holds what labelling the job would give: of these files, this bundle, engine and version."""
    run = _earlier_run(out, job.name)
    if run is None or run.mode != "batch" or window_px not in (None, run.window_px):
        return False
    started_s = datetime.fromisoformat(run.started).timestamp()
    return (
        (run.sources, run.bundle_sha256, run.engine, run.versions) == (job.sources, bundle.sha256, engine, versions())
        and not run.restarts
        and all(path.is_file() and path.stat().st_mtime < started_s for path in job.paths)
    )


def _earlier_run(out: Path, name: str) -> RunManifest | None:
    path = out / f"{name}{RUN_SUFFIX}"
    return read_run(path) if path.exists() else None


def _of_folder(path: Path) -> MbrError:
    files = sorted(each.name for each in path.iterdir() if each.is_file())
    others = f" and {len(files) - 1} more" if len(files) > 1 else ""
    found = f"it holds {files[0]}{others}" if files else "it holds no file"
    return MbrError(f"{path}: this is a folder; {found}. Give the recordings in it, such as {path / '*.mp4'}.")


def run_job(
    job: Job,
    out: Path,
    bundle: Bundle,
    engine: Engine,
    *,
    replayed: Replayed | None = None,
    window_px: int | None = None,
    progress: Progress = lambda done: None,
) -> RunManifest:
    """Label one recording into `out`; MbrError when it cannot be read to its end, and nothing is left then."""
    started, wall_s, cpu_s = datetime.now(UTC).isoformat(), time.monotonic(), time.process_time()
    frames = _frames(job, progress)
    _refuse_live_session(out, job.name)
    windows = {job.name: window_px} if window_px else None
    pipeline = Pipeline(bundle.manifest, engine, windows)
    with _parts(out, job.name) as (labels, bouts, manifest):
        with writing_into(out):
            log = SessionLog.create(labels, bouts, bundle.manifest)
        with closing(log):
            drift = _drift(bundle)
            state = _label(frames, job.name, pipeline, log, replayed or Replayed(), drift)
        figures = drift.figures() if drift else {}
        run = RunManifest(
            recording=job.name,
            mode="batch",
            exit_status="complete",
            started=started,
            finished=datetime.now(UTC).isoformat(),
            bundle=bundle.manifest.name,
            bundle_sha256=bundle.sha256,
            causal=bundle.manifest.causal,
            max_gap_frames=bundle.manifest.max_gap_frames,
            engine=engine.name,
            versions=versions(),
            sources=job.sources,
            rows=dict(log.rows),
            bouts=dict(log.bout_counts),
            drops=gap_ranges(read_labels(labels)),
            restarts=list(replayed.restarts) if replayed else [],
            window_px=pipeline.window_px(job.name, state.sight),
            drift=figures,
            drifted=drift.drifted(figures) if drift else [],
            timings=_timings(log, time.monotonic() - wall_s, time.process_time() - cpu_s),
        )
        _refuse_live_session(out, job.name)  # one may have begun meanwhile
        with writing_into(out):
            write_run(manifest, run)
            for part in (labels, bouts, manifest):
                part.replace(part.with_suffix(""))
    return run


@contextmanager
def _parts(out: Path, name: str) -> Iterator[list[Path]]:
    """Where label log, bout log and manifest are written until they are whole, for one process; they are gone then."""
    parts = [out / f"{name}{suffix}{PART_SUFFIX}" for suffix in (LABELS_SUFFIX, BOUTS_SUFFIX, RUN_SUFFIX)]
    with writing_into(out):
        out.mkdir(parents=True, exist_ok=True)
    refusal = (
        f"{out / name}: another process is at the results of a recording of this name, and the two would mix their "
        "rows. Let that one come to its end, or give another --out."
    )
    with held(out / f".{name}.lock", refusal):
        try:
            yield parts
        finally:
            for part in parts:
                part.unlink(missing_ok=True)


def _refuse_live_session(out: Path, name: str) -> None:
    """MbrError where `out` holds the labels of a live session of this name: they are final, and it may still run."""
    labels, run = out / f"{name}{LABELS_SUFFIX}", _earlier_run(out, name)
    if closed_segments(labels):
        raise MbrError(
            f"{segment_folder(labels)}: holds label files of a live session of this name, which would be taken for "
            "a part of these labels. Give another --out."
        )
    if run and run.mode == "live":
        raise MbrError(
            f"{labels}: these are the labels of a live session, which nothing may replace. Give another --out."
        )


def _drift(bundle: Bundle) -> Drift | None:
    reference = reference_of(bundle)
    return Drift(reference, bundle.manifest.behaviour_names) if reference else None


def _label(
    frames: Iterator[Frame],
    name: str,
    pipeline: Pipeline,
    log: SessionLog,
    replayed: Replayed,
    drift: Drift | None,
) -> LaneState:
    """Run all frames through the pipeline into the log; the state in the end.

    Decoding, seeing and the networks each have a thread: what one picture shows needs nothing of what the networks
    say of the one before.
    """
    state = pipeline.start()
    restarts = list(replayed.restarts)
    hindsight = Hindsight(pipeline)
    label = pipeline.label if pipeline.manifest.causal else hindsight.label
    last, origin_ns = -1, 0

    def write(decisions: list[Decision]) -> None:
        log.write_all(decisions)
        if drift:
            drift.hear(decisions)

    with (
        closing(Ahead(frames, AHEAD_FRAMES)) as decoded,
        closing(Ahead(_ticks(decoded, pipeline, replayed, glances=drift is not None), TOGETHER_FRAMES)) as seen,
    ):
        for tick, features in _computed(seen.groups(TOGETHER_FRAMES), pipeline):
            last, origin_ns = tick.index, tick.origin_ns
            if tick.seen is None:
                continue
            while restarts and tick.index > restarts[0]:
                gaps, state = pipeline.gap(name, restarts.pop(0) + 1, origin_ns, state)
                write([*hindsight.flush(), *gaps])
                state = pipeline.start(state.last_index)
            decisions, states = label([tick.seen], [features], {name: state})
            state = states[name]
            write(decisions)
            if drift and tick.glance:
                drift.see(tick.glance)
    gaps, state = pipeline.gap(name, last + 1, origin_ns, state)
    write([*hindsight.flush(), *gaps])
    return state


@dataclass(frozen=True, slots=True)
class _Tick:
    """A tick that a frame of the recording serves."""

    index: int
    origin_ns: int
    seen: Seen | None  # None: the frame was lost live
    glance: Glance | None  # where somebody wants to know what the animal looks like, and it is there


def _ticks(frames: Iterable[Frame], pipeline: Pipeline, replayed: Replayed, *, glances: bool) -> Iterator[_Tick]:
    """What the frames show; a restart forgets what was seen before it."""
    sight, restarts = SightState(), list(replayed.restarts)
    for frame in frames:
        seen, glance = None, None
        if not replayed.lost(frame.index):
            while restarts and frame.index > restarts[0]:
                restarts.pop(0)
                sight = SightState()
            seen = pipeline.see(frame, sight)
            sight = seen.after
            if glances:
                glance = glance_at(frame.pixels, seen, pipeline.window_px(frame.camera, sight))
        yield _Tick(frame.index, frame.origin_ns, seen, glance)


def _computed(groups: Iterable[list[_Tick]], pipeline: Pipeline) -> Iterator[tuple[_Tick, Features | None]]:
    """Every tick with its features; those of a group are computed in one call."""
    for group in groups:
        features = iter(pipeline.features([tick.seen for tick in group if tick.seen]))
        for tick in group:
            yield tick, next(features) if tick.seen else None


def _frames(job: Job, progress: Progress) -> Iterator[Frame]:
    """The 10 fps frames of a job; whatever cannot be opened is an error before anything is written."""
    if any(path.name.endswith(JOURNAL_SUFFIX) for path in job.paths):
        if len(job.paths) > 1:
            raise MbrError(f"{job.name}: a recording of a live session cannot be joined with others. Give it alone.")
        return _counted_frames(Recording(job.paths[0]).frames(job.name), progress)
    files = [VideoFile(path) for path in job.paths]
    source: Source = files[0] if len(files) == 1 else JoinedFiles(job.name, files)
    return sampled(_Counted(source, progress), job.name)


def estimated_frames(job: Job) -> int | None:
    """Source frames of a job as far as the files say, for a progress bar."""
    if job.paths[0].name.endswith(JOURNAL_SUFFIX):
        return Recording(job.paths[0]).estimated_frames
    return JoinedFiles(job.name, [VideoFile(path) for path in job.paths]).estimated_frames


class _Counted:
    """A source that reports how far it is."""

    def __init__(self, source: Source, progress: Progress) -> None:
        self.name, self._source, self._progress = source.name, source, progress

    def __iter__(self) -> Iterator[SourceFrame]:
        for done, frame in enumerate(self._source, 1):
            self._progress(done)
            yield frame


def _counted_frames(frames: Iterator[Frame], progress: Progress) -> Iterator[Frame]:
    for frame in frames:
        progress(frame.index + 1)
        yield frame


def _stem(path: Path) -> str:
    return path.name.removesuffix(JOURNAL_SUFFIX) if path.name.endswith(JOURNAL_SUFFIX) else path.stem


def _timings(log: SessionLog, wall_s: float, cpu_s: float) -> dict[str, float]:
    frames = sum(log.rows.values())
    return {
        "wall_s": round(wall_s, 3),
        "cpu_s": round(cpu_s, 3),
        "output_frames_per_s": round(frames / wall_s, 1),
    }
