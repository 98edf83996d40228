"""Random changes of silhouettes for training: the same animal, doing the same, before another camera.

One draw holds for a whole recording, since a camera stays what it is. Changed are the silhouettes, before kinematic
channels are measured of them: the picture is stretched, sheared and zoomed, its light changes, and the outline lies
further in or out, as it does before a background of other brightness.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mbr_live.datasets.recordings import Section
from mbr_live.stages.background import Grey
from mbr_live.stages.silhouette import SIDE, Silhouette, Surroundings, surrounded, view

_DISC_3 = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
_MIDDLE = (SIDE - 1) / 2


class Variation(Section):
    """How many changed copies of each recording are trained on beside it, and the largest changes."""

    copies: Annotated[int, Field(ge=0, le=16)] = 0
    zoom: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1  # log of the scale of both axes
    stretch: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1  # log of the scale across, of that from top to bottom
    shear: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1  # columns per row
    contrast: Annotated[float, Field(ge=0.0, le=1.0)] = 0.3  # log of the scale of grey levels
    brightness: Annotated[float, Field(ge=0.0, le=100.0)] = 20.0  # grey levels
    outline: Annotated[int, Field(ge=0, le=2)] = 1  # cells further in or out


@dataclass(frozen=True, slots=True)
class Draw:
    """The changes of one recording."""

    stretched: NDArray[np.float64]  # [2, 2] of places of the frame, x before y
    light: Grey  # [256] grey level by the one that it was
    outline: int  # cells further out; negative: in


def draw(settings: Variation, rng: np.random.Generator) -> Draw:
    """One camera at random."""
    zoom, stretch, shear, contrast, brightness = (
        rng.uniform(-limit, limit)
        for limit in (settings.zoom, settings.stretch, settings.shear, settings.contrast, settings.brightness)
    )
    stretched = np.exp(zoom) * np.array([[np.exp(stretch / 2), shear], [0.0, np.exp(-stretch / 2)]])
    levels = np.exp(contrast) * np.arange(256) + brightness
    outline = int(rng.integers(-settings.outline, settings.outline + 1))
    return Draw(stretched, levels.clip(0, 255).round().astype(np.uint8), outline)


def varied(seen: Silhouette, by: Draw) -> Silhouette:
    """The silhouette as another camera would see it; `seen` is not changed."""
    x_px, y_px = (by.stretched @ (seen.x_px, seen.y_px)).tolist()
    surroundings = _stretched(seen, x_px, y_px, by)
    grey = view(surroundings, x_px, y_px, seen.window_px)
    return Silhouette(x_px, y_px, seen.window_px, grey, _body(seen.body, by), surroundings)


def _stretched(seen: Silhouette, x_px: float, y_px: float, by: Draw) -> Surroundings:
    """What lies around the animal at its new place."""
    before = seen.surroundings
    left, top, width, height = surrounded(x_px, y_px, seen.window_px, before.pitch)
    back = np.linalg.inv(by.stretched)
    # From columns and rows of the new picture to places of the new frame, of the old one, and back to its columns.
    first = np.array([left, top]) * before.pitch + before.offset
    origin = (back @ first - before.offset) / before.pitch - (before.left, before.top)
    matrix = np.column_stack((back, origin))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(before.grey, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    grey = np.asarray(cv2.LUT(moved, by.light), dtype=np.uint8)
    return replace(before, grey=grey, left=left, top=top)


def _body(body: Grey, by: Draw) -> Grey:
    """The body about the same middle; as it was where nothing would be left of it."""
    back = np.linalg.inv(by.stretched)
    matrix = np.column_stack((back, _MIDDLE - back @ (_MIDDLE, _MIDDLE)))
    moved = cv2.warpAffine(body, matrix, (SIDE, SIDE), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)
    if by.outline:
        change = cv2.dilate if by.outline > 0 else cv2.erode
        moved = change(moved, _DISC_3, iterations=abs(by.outline))
    return np.asarray(moved, dtype=np.uint8) if cv2.countNonZero(moved) else body
