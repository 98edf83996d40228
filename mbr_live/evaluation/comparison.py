"""Label logs laid beside what people have marked, tick by tick. Axes: N ticks, K behaviours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mbr_live.annotation.marks import Annotations, Marks
from mbr_live.sinks.label_log import LABELS_SUFFIX, logged_behaviours, read_labels
from mbr_live.sinks.run_manifest import RUN_SUFFIX, RunManifest, read_run
from mbr_live.types import CROP_PX, RATE_FPS, UNKNOWN, MbrError

_USUAL_GAP_FRAMES = RATE_FPS // 2  # of a log whose run does not say it


@dataclass(frozen=True, slots=True)
class Truth:
    """One recording and what people have marked in it."""

    recording: str
    log_name: str  # its label log is <log_name>.labels.csv
    group: str  # animal, cage or day: what must not straddle a split, and what is drawn when spread is estimated
    condition: str
    camera: str
    clip: bool  # so short that it carries one mark as a whole
    annotations: Annotations
    videos: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class LabelFolder:
    """The label logs of one model."""

    name: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Compared:
    """The label log of one recording beside its truth, tick by tick."""

    truth: Truth
    ticks: NDArray[np.int64]  # [N]
    source_frames: NDArray[np.int64]  # [N]; UNKNOWN: no frame served the tick
    times_ns: NDArray[np.int64]  # [N] capture time
    positions: NDArray[np.float64]  # [N, 2] x and y in px; NaN where not found
    status: Counter[str]
    probabilities: NDArray[np.float64]  # [N, K]; NaN where unknown
    labels: Marks  # [N, K]
    marks: Marks  # [N, K] the truth
    judged: NDArray[np.bool_]  # [N] the marks are somebody's judgement of this tick, not held from an earlier one
    window_px: int  # side of the square around the animal that the model saw
    causal: bool | None  # False: the labels look ahead; None: the log has no run manifest
    max_gap_frames: int  # an unknown stretch up to this long does not end a bout of the log

    @property
    def of_stills(self) -> bool:
        """Whether people judged stills; else they judged every tick."""
        return self.truth.annotations.judged is not None


def label_logs(folder: LabelFolder, truths: Sequence[Truth]) -> dict[str, Path]:
    """The label log of every recording."""
    logs = {truth.recording: folder.folder / f"{truth.log_name}{LABELS_SUFFIX}" for truth in truths}
    missing = [recording for recording, log in logs.items() if not log.is_file()]
    if missing:
        raise MbrError(
            f"{folder.folder}: found no label log of {_some(missing)}; expected {logs[missing[0]].name}. "
            "Label these recordings into the folder with `mbr-live batch`, or restrict the evaluation with --split."
        )
    return logs


def compare(log: Path, truth: Truth) -> Compared:
    """Read a label log and lay the truth beside it; behaviours in the truth's order."""
    wanted, logged = truth.annotations.behaviours, logged_behaviours(log)
    lacking = [name for name in wanted if name not in logged]
    if lacking:
        raise MbrError(
            f"{log}: found labels of {', '.join(logged)}, expected {', '.join(wanted)}; "
            f"{', '.join(lacking)} is missing. Label the recording with a bundle of "
            "these behaviours, or take the others out of the dataset file."
        )
    rows = list(read_labels(log))
    ticks = np.array([row.index for row in rows], np.int64)
    if not rows or np.any(np.diff(ticks) != 1):
        raise MbrError(
            f"{log}: expected every tick exactly once, found {_unordered(ticks)}. Label the recording again."
        )
    order = [logged.index(name) for name in wanted]
    unknown = (np.nan,) * len(logged)
    source_frames = np.array([row.source_frame for row in rows], np.int64)
    run = _run(log)
    return Compared(
        truth=truth,
        ticks=ticks,
        source_frames=source_frames,
        times_ns=np.array([row.time_ns for row in rows], np.int64),
        positions=np.array([(row.x_px, row.y_px) for row in rows]),
        status=Counter(row.status for row in rows),
        probabilities=np.array([row.probabilities or unknown for row in rows])[:, order],
        labels=np.array([row.labels for row in rows], np.int8)[:, order],
        marks=truth.annotations.at(_held(source_frames)),
        judged=truth.annotations.judged_at(source_frames),
        window_px=(run.window_px if run else None) or CROP_PX,
        causal=run.causal if run else None,
        max_gap_frames=_USUAL_GAP_FRAMES if run is None or run.max_gap_frames is None else run.max_gap_frames,
    )


def _run(log: Path) -> RunManifest | None:
    run = log.with_name(log.name.removesuffix(LABELS_SUFFIX) + RUN_SUFFIX)
    return read_run(run) if run.is_file() else None


def _unordered(ticks: NDArray[np.int64]) -> str:
    if not len(ticks):
        return "no rows"
    row = int(np.flatnonzero(np.diff(ticks) != 1)[0])
    return f"tick {ticks[row + 1]} after tick {ticks[row]}"


def _held(source_frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """Source frames [N], where there is none the one before; UNKNOWN before the first."""
    last_served = np.maximum.accumulate(np.where(source_frames == UNKNOWN, -1, np.arange(len(source_frames))))
    return np.where(last_served < 0, UNKNOWN, source_frames[last_served])


def notes_on(behaviours: Sequence[str], compared: Sequence[Compared], logs: dict[str, Path]) -> Iterable[str]:
    ignored = sorted({name for log in logs.values() for name in logged_behaviours(log)} - set(behaviours))
    if ignored:
        yield f"Not scored, since the dataset does not mark it: {', '.join(ignored)}."
    whole = [each for each in compared if not each.truth.clip]
    unmarked = [each.truth.recording for each in compared if not np.any(each.truth.annotations.marks != UNKNOWN)]
    if unmarked:
        yield f"Nothing is marked in {_some(unmarked)}; such a recording counts nowhere."
    early = [f"{each.truth.recording} ({share:.0%})" for each in whole if (share := _marked_beyond(each)) >= 0.01]
    if early:
        yield f"The labels end early in {_some(early)}; the marked frames after their end, in brackets, are not scored."


def _marked_beyond(compared: Compared) -> float:
    """Share of the marked source frames that come more than a second after the last one of the log."""
    annotated = np.flatnonzero((compared.truth.annotations.marks != UNKNOWN).any(axis=1))
    last, frames_per_tick = compared.source_frames.max(), (compared.source_frames.max() + 1) / len(compared.ticks)
    beyond = np.count_nonzero(annotated > last + RATE_FPS * frames_per_tick)
    return float(beyond / len(annotated)) if len(annotated) else 0.0


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many there are beyond them."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
