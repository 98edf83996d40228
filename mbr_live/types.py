"""The values that travel between the stages: plain, immutable, without behaviour of their own.

Axes, everywhere the same letters: B lanes, T frames, C channels, D features, K behaviours, S packed temporal
state, H height, W width. Units are suffixes of names.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

RATE_FPS = 10
"""Labels per second. Fixed: models, thresholds and logs of different sessions stay comparable."""

TICK_NS = 1_000_000_000 // RATE_FPS
"""Length of one tick of the sampling grid."""

CROP_PX = 160
"""Side of the square crop that the feature network takes."""

UNKNOWN = -1
"""Label of a behaviour that is not known, and source frame of a tick that no frame served."""

Image = NDArray[np.uint8]
"""RGB picture, uint8 [H, W, 3], C-contiguous."""


EngineKind = Literal[
    "openvino-f32", "openvino-bf16", "openvino-int8", "tensorrt-f32", "tensorrt-f16", "tensorrt-int8", "torch"
]
"""What computes the networks: the runtime, and the precision of the feature network."""

EngineWish = Literal[EngineKind, "auto"]
"""An engine by its kind, or the fastest of this machine."""

DEFAULT_ENGINE: EngineKind = "openvino-f32"


class MbrError(Exception):
    """Something the user can mend. The text names the subject, what was found, what was expected, what to do."""

    def __reduce__(self) -> tuple[object, ...]:
        """Its text and what else it knows, since one process tells another, whatever __init__ takes."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class Status(StrEnum):
    """What a row of the label log knows, and if nothing, why."""

    OK = "ok"
    WARMUP = "warmup"  # the temporal network has not seen enough frames yet
    GAP = "gap"  # no frame came for this tick
    LOST = "lost"  # the animal was not found
    BLIND = "blind"  # the picture is dark or frozen


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """One frame as its source delivers it; the picture is made only when somebody asks for it."""

    number: int  # 0-based count of the source's own frames
    time_ns: int  # capture time: since the epoch for a camera, since the first frame for a file
    picture: Callable[[], Image]  # valid until the next frame is taken from the source


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that the sampler chose: the unit of work of everything downstream."""

    camera: str
    index: int  # tick of the 10 fps grid
    source_frame: int
    time_ns: int
    origin_ns: int  # capture time of tick 0, so that a tick without a frame still has its time
    pixels: Image


@dataclass(frozen=True, slots=True)
class Sighting:
    """Where the animal is in one frame. Positions are of its centre, in pixels of the full frame."""

    found: bool
    x_px: float  # NaN when not found
    y_px: float
    confidence: float  # 0..1; 0 when not found
    area_px: float  # pixels of the full frame that belong to the animal
    length_px: float  # long axis of the animal's body
    elongation: float  # long axis over short axis, >= 1


NOT_FOUND = Sighting(False, float("nan"), float("nan"), 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Decision:
    """Everything the pipeline says about one tick of one camera: one row of the label log.

    Only a gap may span more than one tick: it then stands for `ticks` rows, from `index` on.
    """

    camera: str
    index: int
    source_frame: int  # UNKNOWN for a tick without a frame
    time_ns: int
    status: Status
    x_px: float  # NaN when not found
    y_px: float
    probabilities: tuple[float, ...]  # one per behaviour, as written: 6 decimals; empty where nothing is known
    labels: tuple[int, ...]  # one per behaviour: 1, 0 or UNKNOWN
    ticks: int = 1
