"""How well probabilities and labels agree with the truth. Pure functions; axes: N frames, R recordings.

None stands for what is not defined: the recall of a behaviour that does not occur, the precision of one that is never
claimed. A zero would be taken for a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve

Truth = NDArray[np.bool_]

_RESAMPLES = 2000
_CURVE_STEP = 0.005  # of recall, between the points of a curve


@dataclass(frozen=True, slots=True)
class Counts:
    """Frames by what was claimed and what was there."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    @classmethod
    def of(cls, labels: Truth, truth: Truth) -> Counts:
        tp, claimed, there = (int(np.count_nonzero(each)) for each in (labels & truth, labels, truth))
        return cls(tp, claimed - tp, there - tp, len(truth) - claimed - there + tp)

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def frames(self) -> int:
        return self.tp + self.fp + self.fn + self.tn

    @property
    def prevalence(self) -> float | None:
        return _share(self.tp + self.fn, self.frames)

    @property
    def accuracy(self) -> float | None:
        return _share(self.tp + self.tn, self.frames)

    @property
    def precision(self) -> float | None:
        return _share(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        return _share(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float | None:
        return _share(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def kappa(self) -> float | None:
        """Agreement beyond chance (Cohen 1960); None where both say the same of every frame."""
        by_chance = (self.tp + self.fp) * (self.tp + self.fn) + (self.fn + self.tn) * (self.fp + self.tn)
        return _share(self.frames * (self.tp + self.tn) - by_chance, self.frames**2 - by_chance)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def average_precision(probabilities: NDArray[np.floating], truth: Truth) -> float | None:
    """Area under the precision-recall curve, as the step-wise sum of precision over gains in recall (the usual
    definition of average precision; frames of equal probability count as one threshold).

    None where the behaviour does not occur, since recall is then undefined.
    """
    return float(average_precision_score(truth, probabilities)) if truth.any() else None


def f1(labels: Truth, truth: Truth) -> float | None:
    """Harmonic mean of precision and recall; None where the behaviour is neither there nor claimed."""
    return Counts.of(labels, truth).f1


def pr_curve(probabilities: NDArray[np.floating], truth: Truth) -> list[tuple[float, float, float]]:
    """Recall, precision and threshold by falling threshold, about 200 points; empty where the behaviour is absent."""
    if not truth.any():
        return []
    precision, recall, thresholds = precision_recall_curve(truth, probabilities, drop_intermediate=True)
    # The last point (recall 0, precision 1) has no threshold: no label was ever given by it.
    points = np.column_stack((recall[:-1], precision[:-1], thresholds))[::-1]
    _, kept = np.unique(np.round(points[:, 0] / _CURVE_STEP), return_index=True)
    return [(round(float(r), 4), round(float(p), 4), round(float(t), 4)) for r, p, t in points[kept]]


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """The frames whose probability lies in one tenth of 0..1."""

    frames: int
    mean_p: float
    share: float  # of these frames that show the behaviour


def calibration(probabilities: NDArray[np.floating], truth: Truth, bins: int = 10) -> list[CalibrationBin]:
    """What became of frames of about the same probability; bins of equal width, empty ones left out."""
    of_bin = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    frames = np.bincount(of_bin, minlength=bins)
    sum_p, shown = (np.bincount(of_bin, weights=each, minlength=bins) for each in (probabilities, truth))
    return [
        CalibrationBin(int(frames[b]), float(sum_p[b] / frames[b]), float(shown[b] / frames[b]))
        for b in np.flatnonzero(frames)
    ]


def calibration_error(bins: Sequence[CalibrationBin]) -> float | None:
    """Expected calibration error (Naeini et al. 2015): mean distance of probability and share, by frames."""
    frames = sum(each.frames for each in bins)
    return sum(each.frames * abs(each.mean_p - each.share) for each in bins) / frames if frames else None


@dataclass(frozen=True, slots=True)
class Limits:
    """Bias of a measurement and its 95 % limits of agreement (Bland & Altman 1986)."""

    bias: float
    lower: float | None  # None with fewer than three differences
    upper: float | None


def limits_of_agreement(differences: Sequence[float]) -> Limits | None:
    """Of prediction minus truth [R]; None where there is nothing to compare."""
    if not differences:
        return None
    bias = float(np.mean(differences))
    if len(differences) < 3:
        return Limits(bias, None, None)
    reach = 1.96 * float(np.std(differences, ddof=1))
    return Limits(bias, bias - reach, bias + reach)


def f1_interval(counts: Sequence[Counts]) -> tuple[float, float] | None:
    """95 % interval of the F1 of all counts together, by drawing whole units (animals, recordings) with replacement.

    Frames of one animal resemble each other, so they are never drawn one by one (cluster bootstrap, Field & Welsh
    2007). Always the same draws. None with fewer than three units, or where F1 is not defined.
    """
    return _interval(_drawn_f1(counts)) if len(counts) >= 3 else None


def f1_gain_interval(counts: Sequence[tuple[Counts, Counts]]) -> tuple[float, float] | None:
    """95 % interval of the F1 of the second counts less that of the first, each unit drawn for both at once."""
    if len(counts) < 3:
        return None
    before, after = (_drawn_f1([pair[place] for pair in counts]) for place in (0, 1))
    return _interval(after - before)


def _drawn_f1(counts: Sequence[Counts]) -> NDArray[np.float64]:
    """F1 of every draw; NaN where it is not defined."""
    each = np.array([(unit.tp, unit.fp + unit.fn) for unit in counts], np.float64)
    draws = np.random.default_rng(0).integers(0, len(each), (_RESAMPLES, len(each)))
    tp, wrong = each[draws].sum(axis=1).T
    found = 2 * tp + wrong
    values: NDArray[np.float64] = np.divide(2 * tp, found, out=np.full(_RESAMPLES, np.nan), where=found > 0)
    return values


def _interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, (0.025, 0.975))
    return float(low), float(high)
