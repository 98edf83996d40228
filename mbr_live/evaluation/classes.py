"""One class a frame, or a clip, where behaviours exclude each other; and clips labelled as a whole.

Axes: N ticks or clips, K behaviours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mbr_live.annotation.marks import Marks
from mbr_live.evaluation import scoring
from mbr_live.evaluation.comparison import Compared, Truth
from mbr_live.evaluation.metrics import BinaryScores, ClipResult, ClipScores, MultiClass
from mbr_live.evaluation.scoring import Counts
from mbr_live.types import UNKNOWN

NONE = "none"  # the class of a tick on which no behaviour is shown
_CLIP_THRESHOLD = 0.5


def exclusive_of(behaviours: Sequence[str], truths: Sequence[Truth]) -> list[str]:
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


def confusion_of_frames(
    behaviours: Sequence[str], exclusive: Sequence[str], compared: Sequence[Compared]
) -> MultiClass | None:
    if not exclusive:
        return None
    chosen = [behaviours.index(name) for name in exclusive]
    truth = [_classes(each.marks[:, chosen], each.marks[:, chosen])[each.judged] for each in compared]
    labels = [_classes(each.labels[:, chosen], each.probabilities[:, chosen])[each.judged] for each in compared]
    return _confusion([*exclusive, NONE], np.concatenate(truth), np.concatenate(labels))


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


def score_clips(behaviours: Sequence[str], exclusive: Sequence[str], clips: Sequence[Compared]) -> ClipScores | None:
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
            name: BinaryScores.of(
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
