"""Probabilities that mean what they say: a scale and an offset of the logits of each behaviour.

`platt` fits both (Platt 1999, with his targets, which keep a perfect split from an infinite scale); `temperature` the
scale alone (Guo et al. 2017). The scale is positive, so that the order of the frames, and with it every
precision-recall curve, stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from mbr_live.datasets.settings import CalibrationKind

_LOG_SCALE = (np.log(0.02), np.log(20.0))  # further away, the model says nothing or the recordings are too few
_OFFSET = (-20.0, 20.0)
_RIDGE = 0.01  # of the weights of an ensemble, from their mean; against cross-entropy per frame


@dataclass(frozen=True, slots=True)
class Calibration:
    """A logit becomes scale * logit + offset."""

    kind: CalibrationKind = "none"
    scale: float = 1.0
    offset: float = 0.0


def fit_calibration(kind: CalibrationKind, logits: NDArray[np.float32], truth: NDArray[np.bool_]) -> Calibration:
    """Fit to logits [N] of frames that show a behaviour or not [N].

    Frames of one kind alone say nothing of the other: then, and for "none", everything stays as it is.
    """
    shown = int(np.count_nonzero(truth))
    if kind == "none" or shown in (0, len(truth)):
        return Calibration()
    yes, no = (shown + 1) / (shown + 2), 1 / (len(truth) - shown + 2)
    target, values = np.where(truth, yes, no), logits.astype(np.float64)
    free = 2 if kind == "platt" else 1

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Mean cross-entropy, and its slope along log scale and offset."""
        scale, offset = float(np.exp(parameters[0])), float(parameters[1]) if free == 2 else 0.0
        calibrated = scale * values + offset
        error = 1.0 / (1.0 + np.exp(-calibrated.clip(-60.0, 60.0))) - target
        entropy = np.logaddexp(0.0, calibrated) - target * calibrated
        slope = np.array([np.mean(error * scale * values), np.mean(error)])
        return float(np.mean(entropy)), slope[:free]

    start = np.zeros(free)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[_LOG_SCALE, _OFFSET][:free])
    best = found.x if found.fun <= loss(start)[0] else start
    offset = float(best[1]) if free == 2 else 0.0
    return Calibration(kind, round(float(np.exp(best[0])), 6), round(offset, 6))


def fit_weights(logits: NDArray[np.float32], truth: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
    """Weights [E] and an offset for the logits [N, E] of the members of an ensemble, by frames that show a behaviour or
    not [N]: stacking (Wolpert 1992) with weights that are not negative (Breiman 1996), drawn towards their mean.

    Frames of one kind alone say nothing: then every member counts alike.
    """
    members = logits.shape[1]
    alike = np.full(members, 1 / members)
    shown = int(np.count_nonzero(truth))
    if shown in (0, len(truth)):
        return alike, 0.0
    target = np.where(truth, (shown + 1) / (shown + 2), 1 / (len(truth) - shown + 2))
    values = logits.astype(np.float64)

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, offset = parameters[:-1], parameters[-1]
        said = values @ weights + offset
        error = 1.0 / (1.0 + np.exp(-said.clip(-60.0, 60.0))) - target
        entropy = np.mean(np.logaddexp(0.0, said) - target * said) + _RIDGE * np.sum((weights - alike) ** 2)
        slope = np.append(values.T @ error / len(truth) + 2 * _RIDGE * (weights - alike), np.mean(error))
        return float(entropy), slope

    bounds = [(0.0, 20.0)] * members + [_OFFSET]
    found = minimize(loss, np.append(alike, 0.0), jac=True, method="L-BFGS-B", bounds=bounds)
    return found.x[:-1].round(6), round(float(found.x[-1]), 6)
