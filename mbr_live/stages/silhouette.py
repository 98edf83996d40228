"""The animal cut out of its frame: a small grey picture around it, and which of that picture's cells are its body.

The body is told by how far a cell is from the background towards the animal's own grey: 0 is floor, about 0.3 a
shadow or a reflection, 1 the animal. A difference of grey levels alone would take the shadow for a part of it.

Positions are the indices of pixels of the full frame, as in `mbr_live.stages.locate`. Pictures are read on a grid of
`pitch` pixels that stays where it is in the frame, so that two frames can be compared at the same places of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from mbr_live.stages.background import Grey, search_stride
from mbr_live.stages.locate import LocateState
from mbr_live.types import CROP_PX, Image, Sighting

SIDE = 80
"""Cells of a silhouette along each side, across the crop window."""

AROUND = 1.5  # windows: side of the square that is remembered, to be compared with wherever the animal is next
FINE = 3  # pixels of the frame per cell along each side: of twice as many, every second is read, and so on
BODY_SHARE = 0.62  # of the way from the background to the animal's own grey, from which a cell is body
OWN_SHARE_DARK, OWN_SHARE_LIGHT = 0.2, 0.5  # quantile of the grey inside a dark, a light animal that is its own
REACH_MIN = 25.0  # grey levels: where the background is like the animal, little is believed
_AROUND_11 = np.ones((11, 11), np.uint8)
_DISC_3, _DISC_5 = (cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)) for side in (3, 5))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a frame looked like around the animal."""

    grey: Grey  # [h, w] of the square of AROUND windows, as far as it lies in the frame
    left: int  # column and row of the frame's grid that it begins with
    top: int
    pitch: int  # pixels of the frame per column
    offset: float  # of the middle of the first column, and row, of the frame's grid


@dataclass(frozen=True, slots=True)
class Silhouette:
    """The animal in one frame."""

    x_px: float  # middle of the square that all its pictures are of
    y_px: float
    window_px: int  # side of the square
    grey: Grey  # [SIDE, SIDE]
    body: Grey  # [SIDE, SIDE], 1 where the body is; never empty
    surroundings: Surroundings


def silhouette(pixels: Image, sighting: Sighting, located: LocateState, window_px: int) -> Silhouette:
    """Cut the animal out of a frame, uint8 [H, W, 3] RGB, in which `locate` has just found it."""
    x_px, y_px = sighting.x_px, sighting.y_px
    surroundings = _surroundings(pixels, x_px, y_px, window_px)
    grey = view(surroundings, x_px, y_px, window_px)
    return Silhouette(x_px, y_px, window_px, grey, _body(grey, x_px, y_px, window_px, located), surroundings)


def as_crop(cut: Silhouette) -> Image:
    """The body in white on black, uint8 [CROP_PX, CROP_PX, 3], of the square that `locate.crop` would cut."""
    smooth = cv2.resize(cut.body * np.uint8(255), (CROP_PX, CROP_PX), interpolation=cv2.INTER_LINEAR)
    _, mask = cv2.threshold(smooth, 127, 255, cv2.THRESH_BINARY)
    return np.repeat(np.asarray(mask, dtype=np.uint8)[:, :, None], 3, axis=2)


def view(surroundings: Surroundings, x_px: float, y_px: float, window_px: int) -> Grey:
    """The square of side `window_px` around (x, y), uint8 [SIDE, SIDE]; what lies beyond is as at the border."""
    s = surroundings
    cut = _cut(s.grey, x_px, y_px, window_px, s.pitch, s.offset, (s.left, s.top), cv2.BORDER_REPLICATE)
    return np.asarray(cut, dtype=np.uint8)


def surrounded(x_px: float, y_px: float, window_px: int, pitch: int) -> tuple[int, int, int, int]:
    """What is remembered around a place of an endless frame: first column and row of its grid, width and height."""
    reach = AROUND * window_px / 2
    left, top = math.floor((x_px - reach) / pitch), math.floor((y_px - reach) / pitch)
    right, bottom = math.ceil((x_px + reach) / pitch) + 1, math.ceil((y_px + reach) / pitch) + 1
    return left, top, right - left, bottom - top


def _surroundings(pixels: Image, x_px: float, y_px: float, window_px: int) -> Surroundings:
    """Grey means of 2 x 2 pixels; of a large window these are every second, third, ... pixel of the frame."""
    stride = max(1, window_px // (FINE * SIDE))
    pitch = 2 * stride
    top, bottom = _range(y_px, window_px, pitch, pixels.shape[0])
    left, right = _range(x_px, window_px, pitch, pixels.shape[1])
    square = pixels[top * pitch : bottom * pitch, left * pitch : right * pitch]
    if stride > 1:
        size = (2 * (right - left), 2 * (bottom - top))
        square = np.asarray(cv2.resize(square, size, interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
    grey = cv2.cvtColor(square, cv2.COLOR_RGB2GRAY)
    halved = cv2.resize(grey, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    return Surroundings(np.asarray(halved, dtype=np.uint8), left, top, pitch, stride / 2)


def _range(centre_px: float, window_px: int, pitch: int, size: int) -> tuple[int, int]:
    """First column of the grid, and the one after the last, within reach of a place in a frame of `size` pixels."""
    reach, columns = AROUND * window_px / 2, size // pitch
    first = min(max(math.floor((centre_px - reach) / pitch), 0), columns - 1)
    return first, max(min(math.ceil((centre_px + reach) / pitch) + 1, columns), first + 1)


def _cut(
    picture: Grey,
    x_px: float,
    y_px: float,
    window_px: int,
    pitch: int,
    offset: float,
    corner: tuple[int, int],
    border: int,
) -> cv2.typing.MatLike:
    """The square of the frame around (x, y), [SIDE, SIDE], from a picture on a grid of the frame (see Surroundings)."""
    step = window_px / SIDE / pitch
    x, y = (
        (at - offset) / pitch - first - step * (SIDE - 1) / 2 for at, first in zip((x_px, y_px), corner, strict=True)
    )
    matrix = np.array([[step, 0.0, x], [0.0, step, y]])
    return cv2.warpAffine(
        picture, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=border
    )


def _body(grey: Grey, x_px: float, y_px: float, window_px: int, located: LocateState) -> Grey:
    """The body, uint8 [SIDE, SIDE], in the blob that `locate` took for the animal; a disc where there is none."""
    grid = (x_px, y_px, window_px, search_stride(located.shape), 0.0, (0, 0))
    near = np.asarray(_cut(located.animal * np.uint8(255), *grid, cv2.BORDER_CONSTANT), dtype=np.uint8)
    known = np.asarray(_cut(located.known, *grid, cv2.BORDER_REPLICATE), dtype=np.float32)
    inside = grey[near > 127]
    if not len(inside):
        return _disc()
    sign = np.float32(located.sign)
    rank = int((OWN_SHARE_DARK if sign < 0 else OWN_SHARE_LIGHT) * (len(inside) - 1))
    own = np.float32(np.partition(inside, rank)[rank])
    reach = np.maximum(sign * (own - known), np.float32(REACH_MIN))
    rough = (sign * (grey - known) > np.float32(BODY_SHARE) * reach) & (cv2.dilate(near, _AROUND_11) > 127)
    return _largest_part(rough.astype(np.uint8))


def _largest_part(rough: Grey) -> Grey:
    """Its largest connected part, smoothed; a disc where nothing is left of it."""
    smooth = cv2.morphologyEx(rough, cv2.MORPH_OPEN, _DISC_3)
    smooth = cv2.morphologyEx(smooth, cv2.MORPH_CLOSE, _DISC_5)
    smooth = cv2.morphologyEx(smooth, cv2.MORPH_OPEN, _DISC_5)
    parts, labels, stats, _ = cv2.connectedComponentsWithStats(smooth)
    if parts < 2:
        return _disc()
    return np.asarray(labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax()), dtype=np.uint8)


def _disc() -> Grey:
    """An animal of the usual size in the middle."""
    picture = np.zeros((SIDE, SIDE), np.uint8)
    return np.asarray(cv2.circle(picture, (SIDE // 2, SIDE // 2), SIDE // 5, 1, -1), dtype=np.uint8)
