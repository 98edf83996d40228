"""Does the model still see what it was made for? Histograms of what a lane sees and says, against those of training.

Three kinds of measures, each of one number per frame in which the animal was found:

    brightness    mean grey level of the crop window, 0..255
    size          root of the animal's area, in crop windows: how large the networks see it
    p_<behaviour> the probability, where there is one

Two histograms are compared by the earth mover's distance (Wasserstein's of order 1): by how much, on average, the one
has to be moved to become the other, in units of the measure. It grows with how far apart they are, also where they do
not overlap. The population stability index, which is customary, does not, and takes any single recording, whose light
and animal vary less than those of many together, for drift. Recordings differ from each other without any drift: the
reference keeps the largest distance of one of its groups from the rest, and only what is half as far again, and
further than what matters to nobody, counts as drifted.

Nothing here enters a label. Memory is constant: counts in fixed bins.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mbr_live.bundle import Bundle
from mbr_live.manifest import REFERENCE
from mbr_live.pipeline import Seen
from mbr_live.stages.background import search_stride
from mbr_live.stages.locate import LocateState
from mbr_live.types import Decision, Image, MbrError, Status

LITTLE = {"brightness": 10.0, "size": 0.05}
"""Distances that matter to nobody, by measure."""

_LITTLE_OF_A_PROBABILITY = 0.1
_BEYOND = 1.5  # times the largest distance within the reference: drift

MIN_FRAMES = 600  # a minute: of fewer, nothing is said
MEMORY_FRAMES = 72_000  # two hours: then all counts are halved, so that in weeks of recording the present still counts

BRIGHTNESS, SIZE = "brightness", "size"
_BINS = {BRIGHTNESS: (0.0, 256.0, 64), SIZE: (0.0, 1.0, 50)}
_PROBABILITY_BINS = (0.0, 1.0, 20)
_SAMPLES = 16  # pixels of the crop window that are read along each side

Counts = NDArray[np.float64]

Glance = tuple[float, float]
"""Brightness and size of the animal in one frame."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Histogram(_Record):
    """Frames by the value of a measure, in bins of equal width between `low` and `high`."""

    low: float
    high: float
    counts: tuple[int, ...] = Field(min_length=2)
    within: float | None  # largest distance of one of its groups from the others; None with fewer than two


class Reference(_Record):
    """`reference.json` of a bundle: what its networks saw and said when they were made."""

    format: Literal[1] = 1
    recordings: tuple[str, ...]  # to train on and to validate with; probabilities are of the latter alone
    measures: dict[str, Histogram]


def bins_of(measure: str) -> tuple[float, float, int]:
    """Lowest and highest value of a measure, and the number of bins between them."""
    return _BINS.get(measure, _PROBABILITY_BINS)


def counts_of(measure: str, values: Iterable[float]) -> Counts:
    """Frames per bin; what lies outside counts in the first or last one."""
    low, high, bins = bins_of(measure)
    places = ((np.fromiter(values, np.float64) - low) * (bins / (high - low))).astype(np.int64).clip(0, bins - 1)
    return np.bincount(places, minlength=bins).astype(np.float64)


def distance(measure: str, one: Sequence[float] | Counts, other: Sequence[float] | Counts) -> float:
    """Earth mover's distance of two histograms with frames in them, in units of the measure."""
    low, high, bins = bins_of(measure)
    first, second = (np.cumsum(counts) / np.sum(counts) for counts in (one, other))
    return float(np.abs(first - second).sum() * (high - low) / bins)


def sight(pixels: Image, located: LocateState, window_px: int) -> Glance:
    """Brightness and size of the animal that `locate` has just found in a frame, uint8 [H, W, 3]."""
    height, width = pixels.shape[:2]
    stride, half, step = search_stride(located.shape), window_px // 2, max(1, window_px // _SAMPLES)
    x, y = (min(max(round(at * stride), 0), side - 1) for at, side in zip(located.place, (width, height), strict=True))
    window = pixels[max(y - half, 0) : y + half + 1 : step, max(x - half, 0) : x + half + 1 : step]
    return float(window.mean()), float(np.sqrt(located.last_area)) * stride / window_px


def glance_at(pixels: Image, seen: Seen, window_px: int | None) -> Glance | None:
    """The same of a frame that the pipeline has seen; None where it does not show the animal."""
    if window_px is None or seen.decision.status is not Status.OK:
        return None
    return sight(pixels, seen.after.locate, window_px)


class Drift:
    """What one lane has seen and said lately, against the reference of its bundle."""

    def __init__(self, reference: Reference, behaviours: Sequence[str], memory_frames: int | None = None) -> None:
        """`memory_frames`: what is older counts less and less; None: everything counts alike."""
        self._reference = reference.measures
        self._probabilities = [f"p_{name}" for name in behaviours]
        self._memory_frames = memory_frames
        # Lists, since a single cell of an array costs more to change.
        self._counts = {name: [0.0] * bins_of(name)[2] for name in (BRIGHTNESS, SIZE, *self._probabilities)}
        self._frames = dict.fromkeys(self._counts, 0.0)

    def see(self, glance: Glance) -> None:
        """Take what a frame looked like that shows the animal."""
        for name, value in zip((BRIGHTNESS, SIZE), glance, strict=True):
            self._count(name, value)

    def hear(self, decisions: Sequence[Decision]) -> None:
        """Take what was decided; of a bundle that looks ahead, later than the frames were seen."""
        for decision in decisions:
            for name, value in zip(self._probabilities, decision.probabilities, strict=False):
                self._count(name, value)

    def _count(self, name: str, value: float) -> None:
        low, high, bins = bins_of(name)
        counts = self._counts[name]
        counts[min(max(int((value - low) * bins / (high - low)), 0), bins - 1)] += 1
        self._frames[name] += 1
        if self._memory_frames and self._frames[name] >= self._memory_frames:
            self._counts[name] = [count / 2 for count in counts]
            self._frames[name] /= 2

    def figures(self) -> dict[str, float]:
        """Distance from the reference by measure, of those that have been seen for a minute."""
        return {
            name: round(distance(name, self._reference[name].counts, counts), 4)
            for name, counts in self._counts.items()
            if name in self._reference and self._frames[name] >= MIN_FRAMES
        }

    def drifted(self, figures: Mapping[str, float]) -> list[str]:
        """The measures that are much further from the reference than any of its groups from the others."""
        return [name for name, value in figures.items() if value > self._allowed(name)]

    def _allowed(self, measure: str) -> float:
        little = LITTLE.get(measure, _LITTLE_OF_A_PROBABILITY)
        return max(little, _BEYOND * (self._reference[measure].within or 0.0))


def reference_of(bundle: Bundle) -> Reference | None:
    """The reference of a bundle; None where it has none. MbrError where it can not be understood."""
    if REFERENCE not in bundle.manifest.files:
        return None
    try:
        reference = Reference.model_validate_json(bundle.read(REFERENCE))
    except (ValidationError, json.JSONDecodeError) as error:
        raise _no_reference(bundle, str(error).splitlines()[0]) from error
    for name, histogram in reference.measures.items():
        if (histogram.low, histogram.high, len(histogram.counts)) != bins_of(name) or not sum(histogram.counts):
            raise _no_reference(bundle, f"the histogram of {name} has other bins, or is empty")
    return reference


def _no_reference(bundle: Bundle, why: str) -> MbrError:
    return MbrError(
        f"Bundle {bundle.path}: {REFERENCE} is no reference that this program can compare with ({why}). "
        "Use the program version that the bundle was made for, or train it anew."
    )
