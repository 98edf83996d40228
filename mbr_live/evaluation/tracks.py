"""One behaviour of one recording: what is scored of it, and the scores of several together. Axes: N ticks, S of them
scored, K behaviours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mbr_live.evaluation import bouts, scoring
from mbr_live.evaluation.bouts import Bouts, Disagreements
from mbr_live.evaluation.comparison import Compared, Truth
from mbr_live.evaluation.metrics import BinaryScores, BoundaryError, BoutScores
from mbr_live.evaluation.scoring import Counts
from mbr_live.types import RATE_FPS, UNKNOWN

IOUS = (0.25, 0.5, 0.75)
_TICK_MS = 1000 / RATE_FPS


@dataclass(frozen=True, slots=True)
class Ticks:
    """The S ticks of one behaviour that are scored, of one recording or of several."""

    probabilities: NDArray[np.float64]  # [S]
    labels: NDArray[np.bool_]  # [S]
    shown: NDArray[np.bool_]  # [S]
    marked: int  # ticks with truth, whether their label is known or not

    @classmethod
    def of(cls, compared: Compared, k: int, chosen: NDArray[np.bool_]) -> Ticks:
        labels, marked = compared.labels[:, k], chosen & (compared.marks[:, k] != UNKNOWN)
        scored = marked & (labels != UNKNOWN)
        return cls(
            compared.probabilities[scored, k],
            labels[scored] == 1,
            compared.marks[scored, k] == 1,
            int(np.count_nonzero(marked)),
        )

    @classmethod
    def together(cls, parts: Sequence[Ticks]) -> Ticks:
        return cls(
            np.concatenate([part.probabilities for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.shown for part in parts]),
            sum(part.marked for part in parts),
        )

    @property
    def counts(self) -> Counts:
        return Counts.of(self.labels, self.shown)

    @property
    def scores(self) -> BinaryScores:
        pr_auc = scoring.average_precision(self.probabilities, self.shown)
        return BinaryScores.of(self.counts, self.marked, pr_auc)


@dataclass(frozen=True, slots=True)
class Track:
    """One behaviour of one recording."""

    truth: Truth
    judged: Ticks
    held: Ticks | None  # all ticks, where not all were judged
    true_bouts: Bouts
    found_bouts: Bouts
    pairs: dict[float, NDArray[np.int64]]
    disagreements: Disagreements


def track_of(compared: Compared, k: int) -> Track:
    """Behaviour k of a recording, its labels beside its truth."""
    claimed, expected = bouts.comparable(compared.labels[:, k], compared.marks[:, k], compared.max_gap_frames)
    true_bouts, found_bouts = bouts.bouts_of(expected), bouts.bouts_of(claimed)
    return Track(
        truth=compared.truth,
        judged=Ticks.of(compared, k, compared.judged),
        held=Ticks.of(compared, k, np.ones_like(compared.judged)) if compared.of_stills else None,
        true_bouts=true_bouts,
        found_bouts=found_bouts,
        pairs={iou: bouts.matched(true_bouts, found_bouts, iou) for iou in IOUS},
        disagreements=bouts.disagreements(claimed, expected),
    )


def score_bouts(tracks: Sequence[Track]) -> dict[str, BoutScores]:
    """Bouts of one behaviour over recordings together, by the least overlap of a pair."""
    return {f"{iou:g}": _score_at(iou, tracks) for iou in IOUS}


def _score_at(iou: float, tracks: Sequence[Track]) -> BoutScores:
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


def _bouts_of(tracks: Sequence[Track]) -> tuple[list[Bouts], list[Bouts]]:
    return [track.true_bouts for track in tracks], [track.found_bouts for track in tracks]


def _boundary_error(late_frames: NDArray[np.int64]) -> BoundaryError | None:
    if not len(late_frames):
        return None
    late_ms = late_frames * _TICK_MS
    return BoundaryError(median_ms=float(np.median(late_ms)), p95_ms=float(np.quantile(np.abs(late_ms), 0.95)))
