"""Bouts of labels and of truth held against each other. Pure functions; axes: N ticks, M bouts.

Labels and truth are int8 [N] of one behaviour: 1, 0 or UNKNOWN. Bouts are int64 [M, 2]: first tick, and the tick after
the last; so a length is a difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from mbr_live.annotation.marks import runs
from mbr_live.types import RATE_FPS, UNKNOWN

Labels = NDArray[np.int8]
Bouts = NDArray[np.int64]


def comparable(labels: Labels, truth: Labels, max_gap_frames: int) -> tuple[Labels, Labels]:
    """Labels and truth on the ticks where both can be held against each other; UNKNOWN elsewhere.

    Where the truth is unlabelled nothing is claimed. Unknown stretches of up to `max_gap_frames` between two 1s become
    1, as in the bout log; where the labels are unknown even then, no truth is expected. Longer stretches cut the bouts
    of both.
    """
    claimed = _bridged(np.where(truth == UNKNOWN, np.int8(UNKNOWN), labels), max_gap_frames)
    return claimed, _bridged(np.where(claimed == UNKNOWN, np.int8(UNKNOWN), truth), max_gap_frames)


def _bridged(labels: Labels, max_gap_frames: int) -> Labels:
    filled = labels.copy()
    for start, stop in runs(labels, UNKNOWN):
        inside = start > 0 and stop < len(labels)
        if inside and stop - start <= max_gap_frames and labels[start - 1] == labels[stop] == 1:
            filled[start:stop] = 1
    return filled


def bouts_of(labels: Labels) -> Bouts:
    """The runs of 1 in labels that `comparable` has returned."""
    return runs(labels)


def overlap(true: Bouts, found: Bouts) -> NDArray[np.float64]:
    """Intersection over union of every true bout with every found one, [M true, M found]."""
    common = np.minimum.outer(true[:, 1], found[:, 1]) - np.maximum.outer(true[:, 0], found[:, 0])
    common = np.maximum(common, 0)
    union = np.add.outer(true[:, 1] - true[:, 0], found[:, 1] - found[:, 0]) - common
    return np.asarray(common / union, np.float64)


def matched(true: Bouts, found: Bouts, iou: float) -> NDArray[np.int64]:
    """Pairs [P, 2] of row numbers: as many one-to-one pairs of overlap `iou` or more as there can be, and of all such
    choices the one that overlaps most."""
    worth = overlap(true, found)
    # One pair more always counts for more than all that overlap can add.
    weights = np.where(worth >= iou, worth + min(worth.shape) + 1, 0.0)
    rows, columns = linear_sum_assignment(weights, maximize=True)
    allowed = worth[rows, columns] >= iou
    return np.column_stack((rows[allowed], columns[allowed]))


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One kind of disagreement: how often, and how many ticks in all."""

    count: int = 0
    frames: int = 0

    def __add__(self, other: Disagreement) -> Disagreement:
        return Disagreement(self.count + other.count, self.frames + other.frames)


@dataclass(frozen=True, slots=True)
class Disagreements:
    """The stretches where labels and truth differ, by what lies on both sides of them."""

    misaligned_boundaries: Disagreement = Disagreement()  # agreed behaviour on one side: begun or ended at another tick
    missed_bouts: Disagreement = Disagreement()  # on neither side, and only the truth has it: not seen at all
    false_bouts: Disagreement = Disagreement()  # on neither side, and only the labels have it
    skipped_breaks: Disagreement = Disagreement()  # on both sides: labels run through a pause of the truth
    false_breaks: Disagreement = Disagreement()  # on both sides: labels pause where the truth goes on

    def __add__(self, other: Disagreements) -> Disagreements:
        return Disagreements(
            self.misaligned_boundaries + other.misaligned_boundaries,
            self.missed_bouts + other.missed_bouts,
            self.false_bouts + other.false_bouts,
            self.skipped_breaks + other.skipped_breaks,
            self.false_breaks + other.false_breaks,
        )


def disagreements(labels: Labels, truth: Labels) -> Disagreements:
    """Sort every stretch of disagreement into its kind; the frames of all kinds are the frames that disagree."""
    missed, false = (labels == 0) & (truth == 1), (labels == 1) & (truth == 0)
    on_in_both = np.pad((labels == 1) & (truth == 1), 1)

    def by_sides(mask: NDArray[np.bool_]) -> list[Disagreement]:
        stretches = runs(mask.view(np.int8))
        sides = on_in_both[stretches[:, 0]].astype(np.int64) + on_in_both[stretches[:, 1] + 1]
        lengths = stretches[:, 1] - stretches[:, 0]
        return [Disagreement(int(np.sum(sides == n)), int(np.sum(lengths[sides == n]))) for n in range(3)]

    (whole_missed, late, pause), (whole_false, early, joined) = by_sides(missed), by_sides(false)
    return Disagreements(late + early, whole_missed, whole_false, joined, pause)


@dataclass(frozen=True, slots=True)
class BoutStatistics:
    """What a study reports of one behaviour in one recording."""

    total_s: float
    count: int
    latency_s: float | None  # from the recording's first tick to the first onset; None: censored, it never came
    mean_s: float | None  # mean length; None without bouts


def statistics(bouts: Bouts) -> BoutStatistics:
    """Duration, number, latency and mean length of the bouts of one recording."""
    total_s = float(np.sum(bouts[:, 1] - bouts[:, 0])) / RATE_FPS
    if not len(bouts):
        return BoutStatistics(total_s, 0, None, None)
    return BoutStatistics(total_s, len(bouts), float(bouts[0, 0]) / RATE_FPS, total_s / len(bouts))
