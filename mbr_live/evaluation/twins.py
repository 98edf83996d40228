"""What does not looking ahead cost? Causal models beside models that know the rest of their stretch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from mbr_live.evaluation import scoring
from mbr_live.evaluation.metrics import LookaheadCost, ModelScores, SetBehaviour
from mbr_live.evaluation.scoring import Counts


def lookahead_costs(behaviours: Sequence[str], models: Sequence[ModelScores]) -> list[LookaheadCost]:
    """For every causal model, every one that looks ahead and every behaviour: what the second has more."""
    return [
        _cost(causal, ahead, name)
        for causal in models
        if causal.causal
        for ahead in models
        if ahead.causal is False
        for name in behaviours
    ]


def _cost(causal: ModelScores, ahead: ModelScores, behaviour: str) -> LookaheadCost:
    now, later = (model.pooled.behaviours[behaviour] for model in (causal, ahead))
    return LookaheadCost(
        causal=causal.name,
        ahead=ahead.name,
        behaviour=behaviour,
        f1=_more(later.frames.f1, now.frames.f1),
        f1_interval=scoring.f1_gain_interval(_counts_by_group(causal, ahead, behaviour)),
        pr_auc=_more(later.frames.pr_auc, now.frames.pr_auc),
        bout_f1=_more(_bout_f1(later), _bout_f1(now)),
        onset_ms=_more(_onset_ms(now), _onset_ms(later)),
    )


def _more(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _bout_f1(scores: SetBehaviour) -> float | None:
    return scores.bouts["0.5"].f1 if scores.bouts else None


def _onset_ms(scores: SetBehaviour) -> float | None:
    onset = scores.bouts["0.5"].onset if scores.bouts else None
    return onset.median_ms if onset else None


def _counts_by_group(causal: ModelScores, ahead: ModelScores, behaviour: str) -> list[tuple[Counts, Counts]]:
    """Frames of every group as the two models label them; clips, which have no row of their own, are not in it."""
    found: dict[str, tuple[Counts, Counts]] = defaultdict(lambda: (Counts(), Counts()))
    for one, other in zip(causal.recordings, ahead.recordings, strict=True):
        before = found[one.group]
        found[one.group] = (
            before[0] + one.behaviours[behaviour].frames.counts,
            before[1] + other.behaviours[behaviour].frames.counts,
        )
    return list(found.values())
