"""Random changes of crops for training: the same animal at another place, in other light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mbr_live.datasets.recordings import Section

_NOISE_MARGIN_PX = 64


class Augmentation(Section):
    """Largest changes of a crop. Mirroring along both axes and their swap are always drawn."""

    turn_deg: float = 15.0
    zoom: float = 0.25
    shift_px: float = 8.0
    brightness: float = 30.0
    contrast: float = 0.3
    noise: float = 8.0


class RecordingAugmentation(Section):
    """Largest changes of a whole recording, the same for all of its frames; of each copy, and of each clip that
    fine-tuning sees. Half of them are mirrored, left to right.
    """

    copies: Annotated[int, Field(ge=0, le=32)] = 0  # of each recording to train on, beside the recording itself
    turn_deg: float = 0.0
    zoom: float = 0.25
    brightness: float = 30.0
    contrast: float = 0.3
    noise: float = 8.0
    mirror: bool = True


@dataclass(frozen=True, slots=True)
class Change:
    """One draw of a RecordingAugmentation."""

    linear: tuple[tuple[float, float], tuple[float, float]]  # about the middle of the crop
    contrast: float
    brightness: float
    noise: float  # standard deviation, grey levels
    seed: int  # of the noise

    def of(self, crops: NDArray[np.uint8], first: int = 0) -> NDArray[np.uint8]:
        """Crops uint8 [N, H, W, 3], changed; they are the frames from number `first` on, and every frame has noise of
        its own that does not depend on which others are given with it.
        """
        side = crops.shape[1]
        linear, middle = np.array(self.linear), np.full(2, (side - 1) / 2)
        matrix = np.column_stack((linear, middle - linear @ middle))
        tone = _tone(self.contrast, self.brightness)
        changed = np.empty_like(crops)
        for number, picture in enumerate(crops):
            moved = cv2.warpAffine(picture, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE)
            rng = np.random.default_rng((self.seed, first + number))
            noise = rng.standard_normal(picture.shape, np.float32) * np.float32(self.noise)
            changed[number] = np.clip(cv2.LUT(moved, tone) + noise, 0.0, 255.0)
        return changed


def drawn_change(settings: RecordingAugmentation, rng: np.random.Generator) -> Change:
    """One draw for a recording."""
    angle = np.deg2rad(rng.uniform(-settings.turn_deg, settings.turn_deg))
    zoom = float(np.exp(rng.uniform(-settings.zoom, settings.zoom)))
    mirrored = -1.0 if settings.mirror and rng.random() < 0.5 else 1.0
    cos, sin = zoom * float(np.cos(angle)), zoom * float(np.sin(angle))
    return Change(
        linear=((mirrored * cos, -sin), (mirrored * sin, cos)),
        contrast=float(np.exp(rng.uniform(-settings.contrast, settings.contrast))),
        brightness=float(rng.uniform(-settings.brightness, settings.brightness)),
        noise=float(rng.uniform(0.0, settings.noise)),
        seed=int(rng.integers(2**32)),
    )


def augment(crops: NDArray[np.uint8], settings: Augmentation, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Crops uint8 [B, H, W, 3] -> the same, each with a random change of place, light and noise of its own."""
    side = crops.shape[1]
    # One field of noise, laid at a new place for each crop, is as good as fresh noise and far cheaper.
    field = rng.standard_normal((side + _NOISE_MARGIN_PX, side + _NOISE_MARGIN_PX, 3), np.float32)
    changed = np.empty_like(crops)
    for crop, picture in enumerate(crops):
        matrix = _random_motion(side, settings, rng)
        moved = cv2.warpAffine(picture, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE)
        top, left = rng.integers(0, _NOISE_MARGIN_PX, 2)
        noise = field[top : top + side, left : left + side] * np.float32(rng.uniform(0.0, settings.noise))
        changed[crop] = np.clip(cv2.LUT(moved, _random_tone(settings, rng)) + noise, 0.0, 255.0)
    return changed


def _random_motion(side: int, settings: Augmentation, rng: np.random.Generator) -> NDArray[np.float64]:
    """Affine 2 x 3 matrix: mirrored, turned and zoomed about the middle, then shifted."""
    angle = np.deg2rad(rng.uniform(-settings.turn_deg, settings.turn_deg))
    zoom = np.exp(rng.uniform(-settings.zoom, settings.zoom))
    linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = linear @ np.diag(rng.choice((-1.0, 1.0), 2))
    if rng.random() < 0.5:
        linear = linear[:, ::-1]
    middle = np.full(2, (side - 1) / 2)
    shift = rng.uniform(-settings.shift_px, settings.shift_px, 2)
    return np.column_stack((linear, middle + shift - linear @ middle))


def _random_tone(settings: Augmentation, rng: np.random.Generator) -> NDArray[np.float32]:
    """Look-up table float32 [256] of contrast about mid-grey, and brightness."""
    contrast = np.exp(rng.uniform(-settings.contrast, settings.contrast))
    brightness = rng.uniform(-settings.brightness, settings.brightness)
    return _tone(contrast, brightness)


def _tone(contrast: float, brightness: float) -> NDArray[np.float32]:
    levels = np.arange(256, dtype=np.float32)
    return np.asarray((levels - 128.0) * contrast + 128.0 + brightness, np.float32)
