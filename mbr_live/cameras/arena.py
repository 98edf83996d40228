"""Where the arena is in a picture without the animal: a light floor in darker surroundings, or the other way round."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from mbr_live.cameras.calibration import Arena, Circle, Polygon
from mbr_live.stages.background import Grey
from mbr_live.types import Image, MbrError

_LOOK_PX = 320
_LEAST, _MOST = 0.1, 0.95  # of the picture
_MIDDLE = 0.8  # of the middle fifth that an arena fills
_BORDERING = 0.4  # of its edge that may lie along the border of the picture
_LEVELS = 16
_ROUND = 0.94  # of its circle that a round arena fills; a square fills 0.64
_SOLID = 0.85  # of its convex hull that an arena fills
_CLEAR = 15.0  # grey levels between the two sides of its edge, at least


def find_arena(picture: Image) -> Arena | None:
    """The arena in a picture without the animal, uint8 [H, W, 3] RGB; None where nothing looks like one.

    Of the parts lighter, or darker, than some level that hold the middle of the picture and are of simple form, the one
    with the clearest edge.
    """
    scale = picture.shape[1] / _LOOK_PX
    size = (_LOOK_PX, max(1, round(picture.shape[0] / scale)))
    grey = cv2.GaussianBlur(cv2.cvtColor(cv2.resize(picture, size), cv2.COLOR_RGB2GRAY), (0, 0), 2)
    low, high = np.percentile(grey, (2, 98))
    best, clearest = None, _CLEAR
    for kind in (cv2.THRESH_BINARY, cv2.THRESH_BINARY_INV):
        for level in np.linspace(float(low), float(high), _LEVELS + 2)[1:-1]:
            _, mask = cv2.threshold(grey, level, 255, kind)
            outline = _outline(np.asarray(mask, dtype=np.uint8))
            contrast = 0.0 if outline is None else _contrast(np.asarray(grey, dtype=np.uint8), outline)
            if contrast > clearest:
                best, clearest = outline, contrast
    return None if best is None else _simplest(best, scale)


def parse_arena(text: str) -> Arena:
    """What a user gave: `x,y,radius`, `left,top,right,bottom`, or `x,y,x,y,x,y,...` of corners, in pixels."""
    try:
        numbers = [float(part) for part in text.split(",")]
        if len(numbers) == 3:
            return Circle(x_px=numbers[0], y_px=numbers[1], radius_px=numbers[2])
        if len(numbers) == 4:
            left, top, right, bottom = numbers
            return Polygon(corners_px=((left, top), (right, top), (right, bottom), (left, bottom)))
        return Polygon(corners_px=tuple(zip(numbers[::2], numbers[1::2], strict=True)))
    except ValueError as error:
        raise MbrError(
            f"--arena: found {text!r}, expected x,y,radius of a circle, left,top,right,bottom of a rectangle, or x,y "
            "of three or more corners, in pixels and without spaces."
        ) from error


def check_in_picture(arena: Arena, picture: Image) -> None:
    """MbrError for an arena whose middle the picture does not show: most often its numbers are of another camera."""
    height, width = picture.shape[:2]
    x_px, y_px = arena.middle_px
    if not (0 <= x_px < width and 0 <= y_px < height):
        raise MbrError(
            f"--arena: its middle is at {x_px:.0f}, {y_px:.0f}, expected one within the picture of {width} x {height} "
            "pixels. Measure it in a picture of this camera, from its upper left corner."
        )


def _outline(mask: Grey) -> NDArray[np.int32] | None:
    """The outline of the part of a mask that holds the middle, [N, 1, 2]; None where it cannot be an arena."""
    height, width = mask.shape
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))
    closed = cv2.morphologyEx(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, kernel), cv2.MORPH_OPEN, kernel)
    contours, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for contour in sorted(contours, key=cv2.contourArea, reverse=True):
        area = cv2.contourArea(contour)
        if not _LEAST < area / mask.size < _MOST:
            continue
        middle = (slice(2 * height // 5, 3 * height // 5), slice(2 * width // 5, 3 * width // 5))
        filled = cv2.drawContours(np.zeros_like(mask), [contour], -1, 255, cv2.FILLED)
        if np.mean((filled[middle] > 0) & (closed[middle] > 0)) < _MIDDLE:
            continue
        if area > _SOLID * cv2.contourArea(cv2.convexHull(contour)):
            return np.asarray(contour, dtype=np.int32)
    return None


def _contrast(grey: Grey, outline: NDArray[np.int32]) -> float:
    """Mean difference of grey between the two sides of an outline; along the border of the picture there is none."""
    inside = cv2.drawContours(np.zeros_like(grey), [outline], -1, 255, cv2.FILLED)
    kernel = np.ones((11, 11), np.uint8)
    rim_in = cv2.subtract(inside, cv2.erode(inside, kernel))
    rim_out = cv2.subtract(cv2.dilate(inside, kernel), inside)
    if not rim_out.any():
        return 0.0
    height, width = grey.shape
    x, y = outline[:, 0, 0], outline[:, 0, 1]
    bordering = float(np.mean((x <= 1) | (y <= 1) | (x >= width - 2) | (y >= height - 2)))
    if bordering > _BORDERING:
        return 0.0
    return (1 - bordering) * abs(cv2.mean(grey, mask=rim_in)[0] - cv2.mean(grey, mask=rim_out)[0])


def _simplest(outline: NDArray[np.int32], scale: float) -> Arena:
    """A circle if it fills one, else the polygon of its corners; in pixels of the frame."""
    hull = cv2.convexHull(outline)
    (x, y), radius = cv2.minEnclosingCircle(hull)
    area = cv2.contourArea(hull)
    if area > _ROUND * math.pi * radius**2:
        return Circle(
            x_px=round(x * scale, 1), y_px=round(y * scale, 1), radius_px=round(math.sqrt(area / math.pi) * scale, 1)
        )
    corners = hull
    for tolerance in (0.01, 0.02, 0.03, 0.05):
        corners = cv2.approxPolyDP(hull, tolerance * cv2.arcLength(hull, True), True)
        if len(corners) <= 8:
            break
    return Polygon(corners_px=tuple((round(px * scale, 1), round(py * scale, 1)) for px, py in corners[:, 0].tolist()))
