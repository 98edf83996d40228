"""How labels are decided from logits, fitted to recordings that were kept aside for it, and what they score there.

Never a recording that is tested. What is decided here is decided as the pipeline does it, frame by frame: hysteresis
between two thresholds, then bridging of pauses, then the minimum bout, all of it causal.

What is fitted, in this order, and per behaviour: a calibration (scale and offset of the logits); the thresholds; where
the dataset file asks for it, minimum bout and bridge, and then the thresholds again, until nothing changes. Axes: M
frames of a stretch, K behaviours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from mbr_live.annotation.marks import Marks, runs, where_judged
from mbr_live.datasets.settings import BehaviourSpec, CalibrationKind, ThresholdRule
from mbr_live.evaluation import bouts
from mbr_live.evaluation.scoring import average_precision, calibration, calibration_error, f1
from mbr_live.manifest import Behaviour, Fit, Score
from mbr_live.stages import decide
from mbr_live.training.probability_calibration import Calibration, fit_calibration
from mbr_live.types import RATE_FPS, UNKNOWN

FITTED = "fit"
"""What a dataset file says instead of a number of seconds."""

_SHRINK_BOUTS = 20  # bouts to validate with, at which a fitted threshold is believed half
_ENTER_THRESHOLDS = tuple(round(0.3 + 0.05 * step, 2) for step in range(11))
_CALIBRATED_THRESHOLDS = tuple(round(0.1 + 0.05 * step, 2) for step in range(15))  # best F1 lies at half of it or below
_EXIT_SHARES = (0.4, 0.6, 0.8, 1.0)
_MIN_BOUTS_S = (0.0, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0)
_BRIDGES_S = (0.0, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0)
_START_MIN_BOUT_S, _START_BRIDGE_S = 0.3, 0.2
_ROUNDS = 3  # of thresholds and durations in turn; a second one hardly ever changes anything
_BOUT_IOU = 0.5
_LIMIT = 60.0  # of a logit, as in the pipeline

Asked = TypeVar("Asked", bound=str)


@dataclass(frozen=True, slots=True)
class Validated:
    """What a model says of the M frames of one stretch that the pipeline would label."""

    recording: str  # or the group of a clip
    logits: NDArray[np.float32]  # [M, K]
    marks: Marks  # [M, K] held between judgements; UNKNOWN where nobody judged
    judged: NDArray[np.bool_]  # [M] the mark is somebody's judgement of this frame

    @property
    def truth(self) -> Marks:
        """[M, K] of the judged frames; UNKNOWN in the others."""
        return where_judged(self.marks, self.judged)

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """[M, K], rounded as the label log writes them: `evaluate` finds the same."""
        return probabilities_of(self.logits)


@dataclass(frozen=True, slots=True)
class Fitted:
    """What was fitted, and the validated frames once they are calibrated."""

    behaviours: tuple[Behaviour, ...]  # [K]
    calibrations: tuple[Calibration, ...]  # [K]
    fits: tuple[Fit, ...]  # [K] how it was done, for the card
    validated: tuple[Validated, ...]


@dataclass(frozen=True, slots=True)
class _Track:
    """One behaviour in one stretch."""

    probabilities: NDArray[np.float64]  # [M]
    truth: Marks  # [M] of the judged frames
    marks: Marks  # [M] held in between: bouts are made of these
    max_gap_frames: int  # unknown stretches up to this long do not end a bout


def _track(stretch: Validated, k: int, max_gap_frames: int) -> _Track:
    return _Track(stretch.probabilities[:, k], stretch.truth[:, k], stretch.marks[:, k], max_gap_frames)


def probabilities_of(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sigmoid of logits of any shape, rounded as the pipeline does."""
    probabilities: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-logits.astype(np.float64).clip(-_LIMIT, _LIMIT)))
    return probabilities.round(6)


def fit(
    specs: Sequence[BehaviourSpec],
    rule: ThresholdRule,
    kind: CalibrationKind,
    validated: Sequence[Validated],
    max_gap_frames: int,
) -> Fitted:
    """Fit everything that the dataset file leaves to the validation recordings; without these, it leaves nothing.

    `max_gap_frames` are those of the bundle.
    """
    if not validated:
        return Fitted(tuple(_start(spec, rule) for spec in specs), (Calibration(),) * len(specs), (), ())
    calibrations = []
    for k in range(len(specs)):
        truth = _of_behaviour(k, validated)
        labelled = truth != UNKNOWN
        logits = np.concatenate([stretch.logits[:, k] for stretch in validated])
        calibrations.append(fit_calibration(kind, logits[labelled], truth[labelled] == 1))
    calibrated = tuple(_calibrated(stretch, calibrations) for stretch in validated)
    tracks = [[_track(each, k, max_gap_frames) for each in calibrated] for k in range(len(specs))]
    grid = _ENTER_THRESHOLDS if kind == "none" else _CALIBRATED_THRESHOLDS
    behaviours = tuple(_decided(spec, rule, grid, of) for spec, of in zip(specs, tracks, strict=True))
    fits = tuple(
        _fit_record(spec, rule, calibration, behaviour, of, _error(k, validated))
        for k, (spec, calibration, behaviour, of) in enumerate(
            zip(specs, calibrations, behaviours, tracks, strict=True)
        )
    )
    return Fitted(behaviours, tuple(calibrations), fits, calibrated)


def _calibrated(stretch: Validated, calibrations: Sequence[Calibration]) -> Validated:
    scale = np.array([each.scale for each in calibrations], np.float32)
    offset = np.array([each.offset for each in calibrations], np.float32)
    return replace(stretch, logits=stretch.logits * scale + offset)


def _decided(spec: BehaviourSpec, rule: ThresholdRule, grid: Sequence[float], tracks: Sequence[_Track]) -> Behaviour:
    """Thresholds, minimum bout and bridge of a behaviour: as given, or fitted, or where nothing can be, the usual."""
    behaviour = _start(spec, rule)
    if not _tells(tracks):
        return behaviour
    by_bouts = FITTED in (spec.min_bout_s, spec.bridge_s)
    for _ in range(_ROUNDS if by_bouts else 1):
        before = behaviour
        if not isinstance(rule, float):
            behaviour = _with_thresholds(behaviour, grid, tracks, by_bouts)
        if by_bouts:
            behaviour = _with_durations(behaviour, spec, tracks)
        if behaviour == before:
            break
    return _shrunk(behaviour, tracks) if rule == "shrunk" else behaviour


def _tells(tracks: Sequence[_Track]) -> bool:
    """Whether the recordings show the behaviour, and also something else: else all candidates are as good."""
    return all(any(np.any(track.truth == mark) for track in tracks) for mark in (0, 1))


def _start(spec: BehaviourSpec, rule: ThresholdRule) -> Behaviour:
    threshold = rule if isinstance(rule, float) else 0.5
    min_bout_s = spec.min_bout_s if isinstance(spec.min_bout_s, float) else _START_MIN_BOUT_S
    bridge_s = spec.bridge_s if isinstance(spec.bridge_s, float) else _START_BRIDGE_S
    return Behaviour(name=spec.name, enter=threshold, exit=threshold, min_bout_s=min_bout_s, bridge_s=bridge_s)


def _with_thresholds(
    behaviour: Behaviour, grid: Sequence[float], tracks: Sequence[_Track], by_bouts: bool
) -> Behaviour:
    """The thresholds whose labels agree best with the truth."""
    candidates = [
        behaviour.model_copy(update={"enter": enter, "exit": round(enter * share, 2)})
        for enter in grid
        for share in _EXIT_SHARES
    ]

    def worth(each: Behaviour) -> tuple[float, float, float]:
        # Of thresholds that are as good, the ones nearest to one half: they have most room on both sides.
        return _agreement(each, tracks, by_bouts), -abs(each.enter - 0.5), -abs(each.exit - 0.5)

    return max(candidates, key=worth)


def _with_durations(behaviour: Behaviour, spec: BehaviourSpec, tracks: Sequence[_Track]) -> Behaviour:
    """The minimum bout and bridge whose labels agree best; of those that are as good, the ones with least delay."""
    min_bouts_s = _MIN_BOUTS_S if spec.min_bout_s == FITTED else (behaviour.min_bout_s,)
    bridges_s = _BRIDGES_S if spec.bridge_s == FITTED else (behaviour.bridge_s,)
    candidates = [
        behaviour.model_copy(update={"min_bout_s": min_bout_s, "bridge_s": bridge_s})
        for min_bout_s in min_bouts_s
        for bridge_s in bridges_s
    ]
    return max(candidates, key=lambda each: (_agreement(each, tracks, True), -each.min_bout_s - each.bridge_s))


def _shrunk(fitted: Behaviour, tracks: Sequence[_Track]) -> Behaviour:
    """Thresholds drawn towards one half, the more the fewer bouts they were fitted to."""
    belief = _bouts(tracks) / (_bouts(tracks) + _SHRINK_BOUTS)
    enter = round(0.5 + belief * (fitted.enter - 0.5), 2)
    exit_ = round(enter * (1 - belief * (1 - fitted.exit / fitted.enter)), 2)
    return fitted.model_copy(update={"enter": enter, "exit": exit_})


def _bouts(tracks: Sequence[_Track]) -> int:
    return sum(len(runs(track.truth[track.truth != UNKNOWN])) for track in tracks)


def _agreement(behaviour: Behaviour, tracks: Sequence[_Track], by_bouts: bool) -> float:
    """F1 of frames or, `by_bouts`, the mean of that and the F1 of bouts: what a minimum bout and a bridge are for."""
    labels = [labels_of(behaviour, track.probabilities) for track in tracks]
    truth = np.concatenate([track.truth for track in tracks])
    labelled = truth != UNKNOWN
    of_frames = f1(np.concatenate(labels)[labelled], truth[labelled] == 1) or 0.0
    return (of_frames + _bout_f1(labels, tracks)) / 2 if by_bouts else of_frames


def _bout_f1(labels: Sequence[NDArray[np.bool_]], tracks: Sequence[_Track]) -> float:
    """Of bouts that overlap by half of their union, as `evaluate` counts them."""
    matched, all_bouts = 0, 0
    for found, track in zip(labels, tracks, strict=True):
        both = bouts.comparable(found.astype(np.int8), track.marks, track.max_gap_frames)
        claimed, expected = map(bouts.bouts_of, both)
        matched += len(bouts.matched(expected, claimed, _BOUT_IOU))
        all_bouts += len(expected) + len(claimed)
    return 2 * matched / all_bouts if all_bouts else 0.0


def _fit_record(
    spec: BehaviourSpec,
    rule: ThresholdRule,
    calibrated: Calibration,
    behaviour: Behaviour,
    tracks: Sequence[_Track],
    error_before: float | None,
) -> Fit:
    labels = np.concatenate([labels_of(behaviour, track.probabilities) for track in tracks])
    probabilities = np.concatenate([track.probabilities for track in tracks])
    marks = np.concatenate([track.truth for track in tracks])
    labelled = marks != UNKNOWN
    probabilities, labels, truth = probabilities[labelled], labels[labelled], marks[labelled] == 1
    tells = _tells(tracks)
    return Fit(
        behaviour=spec.name,
        thresholds=_how(rule, tells),
        min_bout=_how(spec.min_bout_s, tells),
        bridge=_how(spec.bridge_s, tells),
        calibration=calibrated.kind,
        scale=calibrated.scale,
        offset=calibrated.offset,
        frames=len(truth),
        bouts=_bouts(tracks),
        pr_auc=_rounded(average_precision(probabilities, truth)),
        f1=_rounded(f1(labels, truth)),
        calibration_error=_rounded(calibration_error(calibration(probabilities, truth))),
        calibration_error_before=_rounded(error_before),
    )


def _how(asked: float | Asked, tells: bool) -> Asked | Literal["given", "usual"]:
    """What the card says of a number that was given, or was asked for so."""
    return "given" if isinstance(asked, float) else asked if tells else "usual"


def _error(k: int, validated: Sequence[Validated]) -> float | None:
    """Expected calibration error of behaviour `k`."""
    truth = _of_behaviour(k, validated)
    probabilities = np.concatenate([stretch.probabilities[:, k] for stretch in validated])
    return calibration_error(calibration(probabilities[truth != UNKNOWN], truth[truth != UNKNOWN] == 1))


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
            each = [stretch.probabilities[:, k] for stretch in of_recording]
            probabilities = np.concatenate(each)
            labels = np.concatenate([labels_of(behaviour, of_stretch) for of_stretch in each])
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
