"""How well probabilities and labels agree with the truth. Axes: N frames."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Truth = NDArray[np.bool_]


def average_precision(probabilities: NDArray[np.floating], truth: Truth) -> float | None:
    """Area under the precision-recall curve, as the step-wise sum of precision over gains in recall (the usual
    definition of average precision; frames of equal probability count as one threshold).

    None where the behaviour does not occur, since recall is then undefined.
    """
    positives = int(np.count_nonzero(truth))
    if not positives:
        return None
    order = np.argsort(-probabilities, kind="stable")
    hits = np.cumsum(truth[order])
    last_of_level = np.append(np.diff(probabilities[order]) != 0, True)
    hits_at_level = hits[last_of_level]
    precision = hits_at_level / (np.flatnonzero(last_of_level) + 1)
    recall = hits_at_level / positives
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def f1(labels: Truth, truth: Truth) -> float | None:
    """Harmonic mean of precision and recall; None where the behaviour is neither there nor claimed."""
    claimed_or_there = int(np.count_nonzero(labels)) + int(np.count_nonzero(truth))
    if not claimed_or_there:
        return None
    return 2 * int(np.count_nonzero(labels & truth)) / claimed_or_there
