"""How labels are decided from probabilities, fitted to recordings that were kept aside for it, and their scores.

Never a recording that is tested. What is decided here is decided as the pipeline does it, frame by frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mbr_live import decide
from mbr_live.annotations import Marks, runs
from mbr_live.bundle import Behaviour, Score
from mbr_live.dataset import BehaviourSpec
from mbr_live.scoring import average_precision, f1
from mbr_live.types import RATE_FPS, UNKNOWN

_SHRINK_BOUTS = 20  # bouts to validate with, at which a fitted threshold is believed half
_ENTER_THRESHOLDS = tuple(round(0.3 + 0.05 * step, 2) for step in range(11))
_EXIT_SHARES = (0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, slots=True)
class Validated:
    """What a model says of the M frames of one stretch that the pipeline would label."""

    recording: str  # or the group of a clip
    probabilities: NDArray[np.float64]  # [M, K]
    truth: Marks  # [M, K]; UNKNOWN where nobody judged


def choose_thresholds(
    spec: BehaviourSpec, k: int, validated: Sequence[Validated], rule: Literal["fit", "shrunk"] | float
) -> Behaviour:
    """The enter and exit thresholds of behaviour `k`: as given, or fitted to the validation recordings."""
    if isinstance(rule, float):
        return _behaviour(spec, rule, rule)
    fitted = _fitted_thresholds(spec, k, validated)
    if rule == "fit":
        return fitted
    bouts = sum(len(runs(truth[truth != UNKNOWN])) for truth in (stretch.truth[:, k] for stretch in validated))
    belief = bouts / (bouts + _SHRINK_BOUTS)
    enter = round(0.5 + belief * (fitted.enter - 0.5), 2)
    return _behaviour(spec, enter, round(enter * (1 - belief * (1 - fitted.exit / fitted.enter)), 2))


def _behaviour(spec: BehaviourSpec, enter: float, exit_: float) -> Behaviour:
    return Behaviour(name=spec.name, enter=enter, exit=exit_, min_bout_s=spec.min_bout_s, bridge_s=spec.bridge_s)


def _fitted_thresholds(spec: BehaviourSpec, k: int, validated: Sequence[Validated]) -> Behaviour:
    """The thresholds whose labels, decided as the pipeline does, agree best with the truth."""
    truth = _of_behaviour(k, validated)
    labelled = truth != UNKNOWN

    def agreement(behaviour: Behaviour) -> float:
        labels = np.concatenate([labels_of(behaviour, stretch.probabilities[:, k]) for stretch in validated])
        return f1(labels[labelled], truth[labelled] == 1) or 0.0

    candidates = [
        _behaviour(spec, enter, round(enter * share, 2)) for enter in _ENTER_THRESHOLDS for share in _EXIT_SHARES
    ]
    # Of thresholds that are as good, the one nearest to one half: it has most room on both sides.
    return max(candidates, key=lambda behaviour: (agreement(behaviour), -abs(behaviour.enter - 0.5)))


def pr_auc(k: int, validated: Sequence[Validated]) -> float | None:
    """Average precision of behaviour `k` over all labelled frames; None where it does not occur."""
    truth = _of_behaviour(k, validated)
    probabilities = np.concatenate([stretch.probabilities[:, k] for stretch in validated])
    return average_precision(probabilities[truth != UNKNOWN], truth[truth != UNKNOWN] == 1)


def _of_behaviour(k: int, validated: Sequence[Validated]) -> NDArray[np.int8]:
    return np.concatenate([stretch.truth[:, k] for stretch in validated])


def labels_of(behaviour: Behaviour, probabilities: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Labels [M] of one behaviour from its probabilities [M] in the frames of a stretch, as the pipeline decides."""
    rule = decide.Rule(
        behaviour.enter, behaviour.exit, round(behaviour.min_bout_s * RATE_FPS), round(behaviour.bridge_s * RATE_FPS)
    )
    state = decide.RuleState()
    labels = np.zeros(len(probabilities), np.bool_)
    for frame, probability in enumerate(probabilities.tolist()):
        labels[frame], state = decide.decide(probability, rule, state)
    return labels


def scores(behaviours: Sequence[Behaviour], validated: Sequence[Validated]) -> Iterator[Score]:
    """Of every recording and behaviour that somebody judged."""
    for name in sorted({stretch.recording for stretch in validated}):
        of_recording = [stretch for stretch in validated if stretch.recording == name]
        for k, behaviour in enumerate(behaviours):
            probabilities = np.concatenate([stretch.probabilities[:, k] for stretch in of_recording])
            labels = np.concatenate([labels_of(behaviour, stretch.probabilities[:, k]) for stretch in of_recording])
            marks = _of_behaviour(k, of_recording)
            labelled = marks != UNKNOWN
            if not labelled.any():
                continue  # nobody knows
            probabilities, labels, truth = probabilities[labelled], labels[labelled], marks[labelled] == 1
            yield Score(
                recording=name,
                behaviour=behaviour.name,
                frames=len(truth),
                prevalence=round(float(truth.mean()), 4),
                pr_auc=_rounded(average_precision(probabilities, truth)),
                f1=_rounded(f1(labels, truth)),
            )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
