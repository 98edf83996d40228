"""What does not looking ahead cost? Causal models beside models that know the rest of their stretch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from mbr_live.evaluation import scoring
from mbr_live.evaluation.comparison import Compared
from mbr_live.evaluation.metrics import BoutScores, LookaheadCost, ModelScores
from mbr_live.evaluation.scoring import Counts
from mbr_live.evaluation.tracks import Ticks, Track, score_bouts, track_of
from mbr_live.types import UNKNOWN


def lookahead_costs(
    behaviours: Sequence[str], models: Sequence[ModelScores], compared: Sequence[Sequence[Compared]]
) -> list[LookaheadCost]:
    """For every causal model, every one that looks ahead and every behaviour: what the second has more.

    `compared` are the logs of each model. Both are scored on the ticks that both have a label of.
    """
    known = list(zip(models, compared, strict=True))
    return [
        cost
        for causal, of_causal in known
        if causal.causal
        for ahead, of_ahead in known
        if ahead.causal is False
        for cost in _costs(behaviours, (causal.name, ahead.name), of_causal, of_ahead)
    ]


def _costs(
    behaviours: Sequence[str], names: tuple[str, str], causal: Sequence[Compared], ahead: Sequence[Compared]
) -> Iterable[LookaheadCost]:
    of_both = [
        (_where_both_label(one, other), _where_both_label(other, one)) for one, other in zip(causal, ahead, strict=True)
    ]
    for k, behaviour in enumerate(behaviours):
        yield _cost(
            *names, behaviour, [track_of(one, k) for one, _ in of_both], [track_of(one, k) for _, one in of_both]
        )


def _where_both_label(one: Compared, other: Compared) -> Compared:
    """`one` without the labels of ticks that `other` has none of."""
    labels = np.full_like(one.labels, UNKNOWN)
    _, here, there = np.intersect1d(one.ticks, other.ticks, assume_unique=True, return_indices=True)
    labels[here] = np.where(other.labels[there] == UNKNOWN, UNKNOWN, one.labels[here])
    return replace(one, labels=labels)


def _cost(causal: str, ahead: str, behaviour: str, now: Sequence[Track], later: Sequence[Track]) -> LookaheadCost:
    frames_now, frames_later = (Ticks.together([track.judged for track in tracks]).scores for tracks in (now, later))
    bouts_now, bouts_later = _bouts(now), _bouts(later)
    return LookaheadCost(
        causal=causal,
        ahead=ahead,
        behaviour=behaviour,
        f1=_more(frames_later.f1, frames_now.f1),
        f1_interval=scoring.f1_gain_interval(_counts_by_group(now, later)),
        pr_auc=_more(frames_later.pr_auc, frames_now.pr_auc),
        bout_f1=_more(bouts_later.f1, bouts_now.f1) if bouts_now and bouts_later else None,
        onset_ms=_more(_onset_ms(bouts_now), _onset_ms(bouts_later)),
    )


def _more(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _bouts(tracks: Sequence[Track]) -> BoutScores | None:
    """Of recordings at an overlap of 0.5; None where all are clips."""
    whole = [track for track in tracks if not track.truth.clip]
    return score_bouts(whole)["0.5"] if whole else None


def _onset_ms(scores: BoutScores | None) -> float | None:
    return scores.onset.median_ms if scores and scores.onset else None


def _counts_by_group(now: Sequence[Track], later: Sequence[Track]) -> list[tuple[Counts, Counts]]:
    """Frames of every group as the two models label them."""
    found: dict[str, tuple[Counts, Counts]] = defaultdict(lambda: (Counts(), Counts()))
    for one, other in zip(now, later, strict=True):
        before = found[one.truth.group]
        found[one.truth.group] = (before[0] + one.judged.counts, before[1] + other.judged.counts)
    return list(found.values())
