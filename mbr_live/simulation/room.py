"""The simulated arena and the room around it, painted once at twice the size and reduced.

Arrays of points are [N, 2] pixels of the frame, colours RGB under full light.
"""

from __future__ import annotations

import math
from itertools import pairwise

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mbr_live.types import Image

Pixels = NDArray[np.float32]
Points = NDArray[np.float64]
Colour = tuple[float, float, float]

_THINGS = 18  # on the desk around an arena in a cluttered room
_CABLES = 6
_FALL = np.array((5.0, 7.0))  # where shadows fall


def canvas(width: int, height: int, colour: Colour) -> Image:
    """An even surface, twice the frame's size."""
    return np.full((2 * height, 2 * width, 3), np.rint(colour), np.uint8)


def paint_things(picture: Image, rng: Generator) -> None:
    """Sheets, cases, cups and cables lying about, dark and bright, each with its shadow."""
    height, width = picture.shape[0] / 2, picture.shape[1] / 2
    outlines = [_outline(rng, width, height) for _ in range(_THINGS)]
    cables = [_cable(rng, width, height) for _ in range(_CABLES)]
    shadow = np.zeros(picture.shape[:2], np.uint8)
    for outline in outlines:
        _fill(shadow, outline + _FALL, (255, 255, 255))
    for cable in cables:
        _line(shadow, cable + 0.6 * _FALL, (255, 255, 255), 8)
    _darken(picture, shadow, 7.0, 0.5)
    for outline in outlines:
        grey = rng.uniform(18, 70) if rng.random() < 0.6 else rng.uniform(150, 225)
        tint = grey + rng.uniform(-0.09, 0.09, 3) * grey
        _fill(picture, outline, _colour(tint))
        middle = outline.mean(axis=0)
        _fill(picture, middle + (outline - middle) * rng.uniform(0.7, 0.93), _colour(tint * rng.uniform(0.85, 1.2)))
    for cable in cables:
        grey, thick = rng.choice((22.0, 28.0, 160.0)), int(rng.integers(5, 12))
        _line(picture, cable, _colour(np.full(3, grey)), thick)
        _line(picture, cable - (0.5, 0.5), _colour(np.full(3, grey * 1.5 + 12)), max(thick // 4, 1))


def paint_walls(picture: Image, floor: Points, rim: Points, colour: Points, lamp: tuple[float, ...]) -> None:
    """The inner sides of the walls between the floor's edge and the rim, lit by where they face."""
    shadow = np.zeros(picture.shape[:2], np.uint8)
    middle = rim.mean(axis=0)
    _fill(shadow, middle + (rim - middle) * 1.05 + _FALL, (255, 255, 255))
    _darken(picture, shadow, 12.0, 0.55)
    levels = [level / 6 for level in range(7)]
    for corner in range(len(floor)):
        pair = [corner, (corner + 1) % len(floor)]
        along = floor[pair[1]] - floor[pair[0]]
        facing = np.array((-along[1], along[0])) / np.linalg.norm(along)  # into the arena: corners go clockwise
        lit = 0.85 + 0.4 * float(facing @ lamp[:2])
        for low, high in pairwise(levels):
            strip = np.concatenate(
                [(1 - low) * floor[pair] + low * rim[pair], ((1 - high) * floor + high * rim)[pair[::-1]]]
            )
            _fill(picture, strip, _colour(colour * lit * (0.75 + 0.3 * low)))
    edge = np.concatenate([rim, rim[:1]])
    _line(picture, edge, _colour(colour * 0.5), 7)
    _line(picture, edge - 0.6, _colour(colour * 1.35), 3)


def paint_floor(picture: Image, floor: Points, colour: Colour, rng: Generator) -> None:
    """The floor with the marks of use: scratches, droppings, a dark joint where it meets the walls."""
    _fill(picture, floor, colour)
    low, high = floor.min(axis=0) + 12, floor.max(axis=0) - 12
    for _ in range(int(rng.integers(6, 16))):
        start = rng.uniform(low, high)
        heading, length = rng.uniform(0, math.tau), rng.uniform(20, 140)
        bend = rng.uniform(-0.3, 0.3)
        steps = np.linspace(0, 1, 12)[:, None]
        away = np.array((math.cos(heading), math.sin(heading))) * length
        aside = np.array((-away[1], away[0])) * bend
        scratch = start + steps * away + steps * (1 - steps) * aside
        inside = [point for point in scratch if cv2.pointPolygonTest(floor.astype(np.float32), tuple(point), True) > 3]
        if len(inside) > 1:
            _line(picture, np.array(inside), _colour(np.array(colour) * rng.uniform(0.9, 1.05)), 1)
    _litter(picture, floor, colour, rng)
    _line(picture, np.concatenate([floor, floor[:1]]), _colour(np.array(colour) * 0.55), 3)


def textured(picture: Image, floor: Points, rng: Generator) -> Pixels:
    """The canvas reduced to the frame's size, float32, with stains, grain and corners that get less light."""
    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.rint(floor).astype(np.int32)], 1)
    away = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    shade = 1.0 - mask * (0.22 * np.exp(away / -14.0) + 0.08 * np.exp(away / -50.0))
    stains = _cloud(rng, height, width, 30.0, 0.014) + _cloud(rng, height, width, 6.0, 0.008)
    brushed = cv2.GaussianBlur(rng.standard_normal((height, width), np.float32), (0, 0), 20.0, sigmaY=0.8)
    grain = rng.standard_normal((height, width), np.float32) * np.float32(0.008)
    shade *= 1.0 + stains + brushed * np.float32(0.01 / brushed.std()) + grain
    return np.asarray(small * shade[..., None], np.float32)


def _cloud(rng: Generator, height: int, width: int, size_px: float, spread: float) -> Pixels:
    coarse = rng.standard_normal((int(height / size_px) + 2, int(width / size_px) + 2), np.float32)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * np.float32(spread))


def _litter(picture: Image, floor: Points, colour: Colour, rng: Generator) -> None:
    """Droppings, small and dark, rather near the walls."""
    middle = floor.mean(axis=0)
    for _ in range(int(rng.integers(3, 12))):
        corner = int(rng.integers(len(floor)))
        share = rng.random()
        edge = (1 - share) * floor[corner] + share * floor[(corner + 1) % len(floor)]
        place = middle + (edge - middle) * math.sqrt(rng.uniform(0.2, 0.9))
        at, size = np.rint(place * 2).astype(int).tolist(), (int(rng.integers(4, 7)), int(rng.integers(2, 4)))
        tint = _colour(np.array(colour) * rng.uniform(0.3, 0.55))
        cv2.ellipse(picture, at, size, float(rng.uniform(0, 180)), 0, 360, tint, -1, cv2.LINE_AA)


def _outline(rng: Generator, width: float, height: float) -> Points:
    """A rectangle or a disc anywhere in the frame."""
    middle = rng.uniform((0, 0), (width, height))
    if rng.random() < 0.25:
        angles = np.linspace(0, math.tau, 40, endpoint=False)
        return np.asarray(middle + rng.uniform(14, 38) * np.stack([np.cos(angles), np.sin(angles)], axis=1))
    half, angle = rng.uniform(14, 75, 2), rng.uniform(-0.6, 0.6)
    turn = np.array([(math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))])
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
    return np.asarray(middle + corners @ turn.T)


def _cable(rng: Generator, width: float, height: float) -> Points:
    """A cubic curve from one side of the frame into it."""
    frame = np.array((width, height))
    points = rng.uniform(-0.1, 1.1, (4, 2)) * frame
    points[0, int(rng.integers(2))] = -10.0
    t = np.linspace(0, 1, 48)[:, None]
    weights = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)
    return np.asarray(weights @ points)


def _darken(picture: Image, shadow: NDArray[np.uint8], blur_px: float, strength: float) -> None:
    """Takes light away where the shadow lies; blurred at a quarter of the size."""
    small = cv2.resize(shadow, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    soft = cv2.resize(cv2.GaussianBlur(small, (0, 0), blur_px / 2), shadow.shape[::-1]).astype(np.float32)
    picture[:] = picture * (1.0 - strength / 255 * soft)[..., None]


def _colour(tint: NDArray[np.float64]) -> Colour:
    red, green, blue = np.clip(tint, 0, 255).tolist()
    return red, green, blue


def _fill(picture: Image, outline: Points, colour: Colour) -> None:
    cv2.fillPoly(picture, [_fixed(outline)], colour, cv2.LINE_AA, 4)


def _line(picture: Image, points: Points, colour: Colour, thick: int) -> None:
    cv2.polylines(picture, [_fixed(points)], False, colour, thick, cv2.LINE_AA, 4)


def _fixed(points: Points) -> NDArray[np.int32]:
    """Frame pixels as the canvas's fixed-point coordinates with 4 fractional bits."""
    return np.rint(points * 32 + 8).astype(np.int32)
