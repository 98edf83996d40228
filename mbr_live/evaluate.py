"""Label logs held against what people have marked: every figure of an evaluation, as one tree.

What is scored, everywhere the same: a tick counts where the truth is marked and the label is known. How many of the
marked ticks have a label at all is the coverage, which stands beside every figure. A tick that no frame served takes
the mark of the frame before it. Axes: N ticks, K behaviours.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mbr_live import bouts, scoring
from mbr_live.annotations import Annotations, Marks, runs
from mbr_live.bouts import Bouts, Disagreements
from mbr_live.metrics import (
    Agreement,
    BinaryScores,
    BoundaryError,
    BoutScores,
    ClipResult,
    ClipScores,
    Evaluation,
    ModelScores,
    Moment,
    MultiClass,
    RecordingBehaviour,
    RecordingScores,
    SetBehaviour,
    SetScores,
    Spread,
)
from mbr_live.scoring import Counts
from mbr_live.sinks import LABELS_SUFFIX, RUN_SUFFIX, logged_behaviours, read_labels, read_run
from mbr_live.types import CROP_PX, RATE_FPS, UNKNOWN, MbrError

IOUS = (0.25, 0.5, 0.75)
NONE = "none"  # the class of a tick on which no behaviour is shown
SPREAD_OF = ("precision", "recall", "f1", "pr_auc", "kappa", "coverage")
AGREEMENT_OF = ("total_s", "count", "latency_s", "mean_s")
SETS = ("condition", "group", "camera")
_CLIP_THRESHOLD = 0.5
_MOMENTS_OF_A_KIND = 2
_TICK_MS = 1000 / RATE_FPS


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
    window_px: int  # side of the square around the animal that the model saw


@dataclass(frozen=True, slots=True)
class _Track:
    """One behaviour of one recording."""

    truth: Truth
    probabilities: NDArray[np.float64]  # [S] of the ticks that are scored
    labels: NDArray[np.bool_]  # [S]
    shown: NDArray[np.bool_]  # [S]
    marked: int  # ticks with truth
    true_bouts: Bouts
    found_bouts: Bouts
    pairs: dict[float, NDArray[np.int64]]
    disagreements: Disagreements

    @property
    def counts(self) -> Counts:
        return Counts.of(self.labels, self.shown)


def evaluate(
    dataset: str,
    split: str,
    behaviours: Sequence[str],
    truths: Sequence[Truth],
    folders: Sequence[LabelFolder],
    caveats: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Evaluation, list[list[Compared]]]:
    """Score every folder against the truth; also the logs beside the truth, [folders][recordings].

    MbrError when a log is missing, damaged or of other behaviours.
    """
    exclusive = _exclusive(behaviours, truths)
    compared = []
    models = []
    for each in folders:
        progress(each.name)
        logs = _logs(each, truths)
        found = [compare(logs[truth.recording], truth) for truth in truths]
        compared.append(found)
        notes = list(_notes(behaviours, found, logs))
        models.append(_score_model(each.name, behaviours, exclusive, found, notes))
    evaluation = Evaluation(
        dataset=dataset,
        split=split,
        caveats=list(caveats),
        behaviours=list(behaviours),
        exclusive=exclusive,
        models=models,
    )
    return evaluation, compared


def _logs(folder: LabelFolder, truths: Sequence[Truth]) -> dict[str, Path]:
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
        window_px=_window_px(log),
    )


def _window_px(log: Path) -> int:
    run = log.with_name(log.name.removesuffix(LABELS_SUFFIX) + RUN_SUFFIX)
    return (read_run(run).window_px if run.is_file() else None) or CROP_PX


def _unordered(ticks: NDArray[np.int64]) -> str:
    if not len(ticks):
        return "no rows"
    row = int(np.flatnonzero(np.diff(ticks) != 1)[0])
    return f"tick {ticks[row + 1]} after tick {ticks[row]}"


def _held(source_frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """Source frames [N], where there is none the one before; UNKNOWN before the first."""
    last_served = np.maximum.accumulate(np.where(source_frames == UNKNOWN, -1, np.arange(len(source_frames))))
    return np.where(last_served < 0, UNKNOWN, source_frames[last_served])


def _notes(behaviours: Sequence[str], compared: Sequence[Compared], logs: dict[str, Path]) -> Iterable[str]:
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


def _score_model(
    name: str, behaviours: Sequence[str], exclusive: list[str], compared: Sequence[Compared], notes: list[str]
) -> ModelScores:
    tracks = [[_track(each, k) for k in range(len(behaviours))] for each in compared]
    recordings = [
        _score_recording(each, dict(zip(behaviours, of_recording, strict=True)))
        for each, of_recording in zip(compared, tracks, strict=True)
        if not each.truth.clip
    ]

    def score_set(chosen: Sequence[int]) -> SetScores:
        names = {compared[row].truth.recording for row in chosen}
        within = [recording for recording in recordings if recording.recording in names]
        return SetScores(
            recordings=len(chosen),
            ticks=sum(len(compared[row].ticks) for row in chosen),
            behaviours={
                behaviour: _score_together(behaviour, [tracks[row][k] for row in chosen], within)
                for k, behaviour in enumerate(behaviours)
            },
            multiclass=_confusion_of_frames(behaviours, exclusive, [compared[row] for row in chosen]),
        )

    return ModelScores(
        name=name,
        notes=notes,
        pooled=score_set(range(len(compared))),
        sets={
            kind: {value: score_set(rows) for value, rows in members.items()}
            for kind in SETS
            if len(members := _members(kind, compared)) > 1
        },
        recordings=recordings,
        clips=_score_clips(behaviours, exclusive, [each for each in compared if each.truth.clip]),
        worst=_worst_moments(behaviours, compared),
    )


def _members(kind: str, compared: Sequence[Compared]) -> dict[str, list[int]]:
    """Rows of `compared` by condition, group or camera; groups of one recording each tell nothing new."""
    members = defaultdict(list)
    for row, each in enumerate(compared):
        members[getattr(each.truth, kind)].append(row)
    if kind == "group" and all(len(rows) == 1 for rows in members.values()):
        return {}
    return dict(sorted(members.items()))


def _track(compared: Compared, k: int) -> _Track:
    labels, marks = compared.labels[:, k], compared.marks[:, k]
    scored = (labels != UNKNOWN) & (marks != UNKNOWN)
    claimed, expected = bouts.comparable(labels, marks)
    true_bouts, found_bouts = bouts.bouts_of(expected), bouts.bouts_of(claimed)
    return _Track(
        truth=compared.truth,
        probabilities=compared.probabilities[scored, k],
        labels=labels[scored] == 1,
        shown=marks[scored] == 1,
        marked=int(np.count_nonzero(marks != UNKNOWN)),
        true_bouts=true_bouts,
        found_bouts=found_bouts,
        pairs={iou: bouts.matched(true_bouts, found_bouts, iou) for iou in IOUS},
        disagreements=bouts.disagreements(claimed, expected),
    )


def _binary(counts: Counts, marked: int, pr_auc: float | None) -> BinaryScores:
    return BinaryScores(
        scored=counts.frames,
        coverage=counts.frames / marked if marked else None,
        counts=counts,
        prevalence=counts.prevalence,
        accuracy=counts.accuracy,
        precision=counts.precision,
        recall=counts.recall,
        f1=counts.f1,
        kappa=counts.kappa,
        pr_auc=pr_auc,
    )


def _score_recording(compared: Compared, tracks: dict[str, _Track]) -> RecordingScores:
    truth = compared.truth
    return RecordingScores(
        recording=truth.recording,
        group=truth.group,
        condition=truth.condition,
        camera=truth.camera,
        ticks=len(compared.ticks),
        status=dict(compared.status),
        behaviours={
            name: RecordingBehaviour(
                frames=_binary(track.counts, track.marked, scoring.average_precision(track.probabilities, track.shown)),
                bouts=_score_bouts([track]),
                disagreements=track.disagreements,
                truth=bouts.statistics(track.true_bouts),
                labels=bouts.statistics(track.found_bouts),
            )
            for name, track in tracks.items()
        },
    )


def _score_bouts(tracks: Sequence[_Track]) -> dict[str, BoutScores]:
    return {f"{iou:g}": _score_bouts_at(iou, tracks) for iou in IOUS}


def _score_bouts_at(iou: float, tracks: Sequence[_Track]) -> BoutScores:
    true, found = (sum(len(each) for each in kind) for kind in _bouts_of(tracks))
    late = np.concatenate(
        [track.found_bouts[track.pairs[iou][:, 1]] - track.true_bouts[track.pairs[iou][:, 0]] for track in tracks]
    )
    counts = Counts(tp=len(late), fp=found - len(late), fn=true - len(late))
    return BoutScores(
        true=true,
        found=found,
        matched=len(late),
        precision=counts.precision,
        recall=counts.recall,
        f1=counts.f1,
        onset=_boundary_error(late[:, 0]),
        offset=_boundary_error(late[:, 1]),
    )


def _bouts_of(tracks: Sequence[_Track]) -> tuple[list[Bouts], list[Bouts]]:
    return [track.true_bouts for track in tracks], [track.found_bouts for track in tracks]


def _boundary_error(late_frames: NDArray[np.int64]) -> BoundaryError | None:
    if not len(late_frames):
        return None
    late_ms = late_frames * _TICK_MS
    return BoundaryError(median_ms=float(np.median(late_ms)), p95_ms=float(np.quantile(np.abs(late_ms), 0.95)))


def _score_together(name: str, tracks: Sequence[_Track], recordings: Sequence[RecordingScores]) -> SetBehaviour:
    probabilities = np.concatenate([track.probabilities for track in tracks])
    shown = np.concatenate([track.shown for track in tracks])
    by_group: dict[str, Counts] = defaultdict(Counts)
    for track in tracks:
        by_group[track.truth.group] += track.counts
    whole = [track for track in tracks if not track.truth.clip]
    calibration = scoring.calibration(probabilities, shown)
    counts = sum((track.counts for track in tracks), Counts())
    pr_auc = scoring.average_precision(probabilities, shown)
    return SetBehaviour(
        frames=_binary(counts, sum(track.marked for track in tracks), pr_auc),
        f1_interval=scoring.f1_interval(list(by_group.values())),
        bouts=_score_bouts(whole) if whole else None,
        disagreements=sum((track.disagreements for track in whole), Disagreements()) if whole else None,
        spread=dict(_spreads(name, recordings)),
        agreement={figure: _agreement(name, figure, recordings) for figure in AGREEMENT_OF} if whole else {},
        calibration=calibration,
        calibration_error=scoring.calibration_error(calibration),
        pr_curve=scoring.pr_curve(probabilities, shown),
    )


def _spreads(name: str, recordings: Sequence[RecordingScores]) -> Iterable[tuple[str, Spread]]:
    for figure in SPREAD_OF:
        values = {each.recording: getattr(each.behaviours[name].frames, figure) for each in recordings}
        yield from _spread(figure, values)
    yield from _spread("bout_f1", {each.recording: each.behaviours[name].bouts["0.5"].f1 for each in recordings})


def _spread(figure: str, values: dict[str, float | None]) -> Iterable[tuple[str, Spread]]:
    defined = {recording: value for recording, value in values.items() if value is not None}
    if defined:
        q1, median, q3 = (float(q) for q in np.quantile(list(defined.values()), (0.25, 0.5, 0.75)))
        worst = min(defined, key=lambda recording: defined[recording])
        yield (
            figure,
            Spread(recordings=len(defined), median=median, q1=q1, q3=q3, worst=defined[worst], worst_recording=worst),
        )


def _agreement(name: str, figure: str, recordings: Sequence[RecordingScores]) -> Agreement:
    of_both = [
        (getattr(each.behaviours[name].truth, figure), getattr(each.behaviours[name].labels, figure))
        for each in recordings
    ]
    points = [(truth, labels) for truth, labels in of_both if truth is not None and labels is not None]
    return Agreement(
        compared=len(points),
        censored=len(of_both) - len(points),
        limits=scoring.limits_of_agreement([labels - truth for truth, labels in points]),
        points=points,
    )


def _exclusive(behaviours: Sequence[str], truths: Sequence[Truth]) -> list[str]:
    """The behaviours, in order, that no earlier one of these ever occurs together with; at least two, else none."""
    together = np.zeros((len(behaviours), len(behaviours)), np.int64)
    for truth in truths:
        shown = (truth.annotations.marks == 1).astype(np.int64)
        together += shown.T @ shown
    kept: list[int] = []
    for k in range(len(behaviours)):
        if not any(together[k, other] for other in kept):
            kept.append(k)
    return [behaviours[k] for k in kept] if len(kept) > 1 else []


def _confusion_of_frames(
    behaviours: Sequence[str], exclusive: Sequence[str], compared: Sequence[Compared]
) -> MultiClass | None:
    if not exclusive:
        return None
    chosen = [behaviours.index(name) for name in exclusive]
    truth = np.concatenate([_classes(each.marks[:, chosen], each.marks[:, chosen]) for each in compared])
    labels = np.concatenate([_classes(each.labels[:, chosen], each.probabilities[:, chosen]) for each in compared])
    return _confusion([*exclusive, NONE], truth, labels)


def _classes(shown: Marks, weights: NDArray[np.generic]) -> NDArray[np.int64]:
    """Class [N] of rows [N, K]: of the behaviours shown the one of most weight, K for none, UNKNOWN if one is."""
    weighed = np.where(shown == 1, weights, -np.inf)
    classes = np.where((shown == 1).any(axis=1), np.argmax(weighed, axis=1), shown.shape[1])
    return np.where((shown == UNKNOWN).any(axis=1), UNKNOWN, classes)


def _confusion(classes: list[str], truth: NDArray[np.int64], labels: NDArray[np.int64]) -> MultiClass:
    count = len(classes)
    matrix = np.zeros((count, count + 1), np.int64)  # the last column: unknown
    marked = truth != UNKNOWN
    np.add.at(matrix, (truth[marked], np.where(labels[marked] == UNKNOWN, count, labels[marked])), 1)
    known, unknown = matrix[:, :count], matrix[:, count]
    rows, columns, right, total = known.sum(axis=1), known.sum(axis=0), np.diag(known), int(known.sum())
    by_chance = int(rows @ columns)
    of_class = [2 * int(right[n]) / int(rows[n] + columns[n]) for n in np.flatnonzero(rows)]
    return MultiClass(
        classes=classes,
        matrix=known.tolist(),
        unknown=unknown.tolist(),
        accuracy=int(right.sum()) / total if total else None,
        macro_f1=sum(of_class) / len(of_class) if of_class else None,
        kappa=(total * int(right.sum()) - by_chance) / (total**2 - by_chance) if total**2 > by_chance else None,
    )


def _score_clips(behaviours: Sequence[str], exclusive: Sequence[str], clips: Sequence[Compared]) -> ClipScores | None:
    if not clips:
        return None
    marks: Marks = np.stack([np.asarray(each.marks.max(axis=0), np.int8) for each in clips])
    means = np.stack([_mean_of_known(each) for each in clips])
    known = np.asarray(~np.isnan(means).any(axis=1))
    labels = np.where(known[:, None], means >= _CLIP_THRESHOLD, UNKNOWN).astype(np.int8)
    scored = np.asarray((marks != UNKNOWN) & known[:, None])
    return ClipScores(
        clips=len(clips),
        unknown=int(np.count_nonzero(~known)),
        behaviours={
            name: _binary(
                Counts.of(labels[scored[:, k], k] == 1, marks[scored[:, k], k] == 1),
                int(np.count_nonzero(marks[:, k] != UNKNOWN)),
                scoring.average_precision(means[scored[:, k], k], marks[scored[:, k], k] == 1),
            )
            for k, name in enumerate(behaviours)
        },
        multiclass=_confusion_of_clips(behaviours, exclusive, marks, means),
        results=[
            ClipResult(
                recording=each.truth.recording,
                group=each.truth.group,
                truth=_named(behaviours, marks[row]),
                labels=_named(behaviours, labels[row]) if known[row] else None,
                probabilities=dict(zip(behaviours, means[row].tolist(), strict=True)) if known[row] else None,
            )
            for row, each in enumerate(clips)
        ],
    )


def _mean_of_known(clip: Compared) -> NDArray[np.float64]:
    """Mean probabilities [K] over the known frames of a clip; NaN where it has none."""
    known = clip.probabilities[~np.isnan(clip.probabilities).any(axis=1)]
    return np.asarray(known.mean(axis=0) if len(known) else np.full(clip.probabilities.shape[1], np.nan))


def _named(behaviours: Sequence[str], labels: Marks) -> list[str]:
    return [name for name, label in zip(behaviours, labels, strict=True) if label == 1]


def _confusion_of_clips(
    behaviours: Sequence[str], exclusive: Sequence[str], marks: Marks, means: NDArray[np.float64]
) -> MultiClass | None:
    """The most probable class; `none` if no probability reaches one half, unless every clip shows a behaviour."""
    if not exclusive:
        return None
    chosen = [behaviours.index(name) for name in exclusive]
    truth = _classes(marks[:, chosen], marks[:, chosen])
    always_one = bool(np.all(truth[truth != UNKNOWN] < len(exclusive)))
    unknown = np.isnan(means[:, chosen]).any(axis=1)
    shown = (means[:, chosen] >= (0.0 if always_one else _CLIP_THRESHOLD)).astype(np.int8)
    shown[unknown] = UNKNOWN
    return _confusion([*exclusive, *([] if always_one else [NONE])], truth, _classes(shown, means[:, chosen]))


def _worst_moments(behaviours: Sequence[str], compared: Sequence[Compared]) -> list[Moment]:
    """Of every behaviour and kind the stretches that are most wrong, the worst first."""
    worst: list[Moment] = []
    for k, name in enumerate(behaviours):
        for kind in ("missed", "false"):
            moments = [moment for each in compared for moment in _moments(each, k, name, kind)]
            worst += sorted(moments, key=lambda moment: -moment.weight)[:_MOMENTS_OF_A_KIND]
    return sorted(worst, key=lambda moment: -moment.weight)


def _moments(compared: Compared, k: int, behaviour: str, kind: Literal["missed", "false"]) -> Iterable[Moment]:
    label, mark = (0, 1) if kind == "missed" else (1, 0)
    wrong = (compared.labels[:, k] == label) & (compared.marks[:, k] == mark)
    distance = np.abs(compared.probabilities[:, k] - mark)
    for start, stop in runs(wrong.view(np.int8)).tolist():
        yield Moment(
            recording=compared.truth.recording,
            behaviour=behaviour,
            kind=kind,
            start=int(compared.ticks[start]),
            stop=int(compared.ticks[stop - 1]) + 1,
            weight=round(float(distance[start:stop].sum()), 3),
        )
