"""What a frame tells of posture and movement, as a small vector of named channels. Pure, causal, incremental.

Lengths are in units of the crop window, grey levels in units of 128 (light) or 64 (movement). No channel knows left
from right, so a mirrored recording gives the same values. They are features for a network, not measurements to publish.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from mbr_live.stages import walls
from mbr_live.stages.background import Grey
from mbr_live.stages.silhouette import SIDE, Silhouette, view
from mbr_live.stages.walls import NO_WALLS, Walls
from mbr_live.types import MbrError

VERSION = 1
"""Of what the channels mean; a network is run on the channels that it was trained on, or not at all."""

TRAIL_FRAMES = 10  # places that `travel_1s` looks back on
REFERENCE_FRAMES = 100  # time constant of the running means of posture and place
LIGHT_FRAMES = 300  # ... and of grey levels, which tell of the camera what they do not tell of behaviour

_SCALED = ("height", "width", "band1", "band2", "band3", "band4")
_SQUARE_5 = np.ones((5, 5), np.uint8)
_ABSOLUTE = (*_SCALED, "size", "y_ref", "grey_top", "grey_middle")

ALL = (
    "height", "width", "log_aspect",  # of the body's bounding box
    "size", "fill",  # root of the body's area; the area's share of the box
    "log_elongation", "upright", "tilt",  # from its second moments
    "top_share", "skew",  # of the centre in the box: how far from its top, and from its middle across
    "band1", "band2", "band3", "band4",  # mean width of four slices, from the top down
    "speed", "rise",  # of the centre since the frame before; rise is upward
    "travel_1s", "bottom_move",  # of the centre in a second; of the lowest point since the frame before
    "motion", "motion_top", "motion_middle", "motion_bottom", "motion_edge",  # change of grey in the body, its thirds
    "overlap", "overlap_centred",  # with the body of the frame before, in the frame, and laid on each other
    "log_height_ref", "log_size_ref", "y_ref",  # against their running means
    "grey_top", "grey_middle",  # of the upper and the middle third
)  # fmt: skip
"""Channels that are best where a model is used on the camera that it was trained on."""

_OF_SIZE = tuple(f"{name}_of_size" for name in _SCALED)
_LIGHT = ("grey_top_ref", "grey_middle_ref")  # against their running means

SHAPE = (*_OF_SIZE, *(name for name in ALL if name not in _ABSOLUTE), *_LIGHT)
"""Channels without scale, place and the light of the room, for a camera that a model was not trained on."""

ARENA = walls.NAMES
"""Channels of where the animal is in its arena, for what differs by that: rearing in the open and against a wall."""

SETS = {"all": ALL, "shape": SHAPE, "arena": ARENA}
"""The channels by the name of their set."""

CHANNELS = (*ALL, *_OF_SIZE, *_LIGHT, *ARENA)
"""All channels that are computed, in this order."""

Channels = NDArray[np.float32]
"""One value per channel, float32 [len(CHANNELS)]."""


@dataclass(frozen=True, slots=True)
class KinematicState:
    """All that is remembered of the frames before."""

    before: Silhouette | None = None  # None: no frame yet
    trail: tuple[tuple[float, float], ...] = ()  # centres of the body in the last second, px of the frame
    bottom_px: float = 0.0
    references: tuple[float, ...] = (0.0, 0.0, 0.0)  # means of log height, log size and y, in windows
    light: tuple[float, ...] = (0.0, 0.0)  # means of the grey of the upper and the middle third
    frames: int = 0  # until all are means over their time constants
    walls: Walls = NO_WALLS

    def after_reset(self) -> KinematicState:
        """What is left when a lane is reset: the walls, which do not depend on an unbroken sequence."""
        return KinematicState(walls=self.walls)


@dataclass(frozen=True, slots=True)
class _Form:
    """Measures of a body; lengths in cells."""

    left: int
    top: int
    width: int
    height: int
    area: float
    x: float  # of the centre
    y: float
    xx: float  # second moments about it
    xy: float
    yy: float


def columns(names: Sequence[str], version: int) -> NDArray[np.intp]:
    """Where in `Channels` the named ones are; MbrError where a model was trained on other channels than these."""
    strangers = sorted(set(names) - set(CHANNELS))
    if strangers or (names and version != VERSION):
        found = f"version {version}" + (f" with {', '.join(strangers)}" if strangers else "")
        raise MbrError(
            f"Bundle: its kinematic channels are of {found}, this program computes version {VERSION}. "
            "Use the program version that the bundle was made for, or train it anew."
        )
    return np.array([CHANNELS.index(name) for name in names], np.intp)


def kinematics(now: Silhouette, state: KinematicState) -> tuple[Channels, KinematicState]:
    """The channels of the next frame of a lane, and the next state. `state` is not changed."""
    form = _measured(now.body)
    cell = now.window_px / SIDE
    middle = (SIDE - 1) / 2
    x, y = now.x_px + (form.x - middle) * cell, now.y_px + (form.y - middle) * cell
    bottom_px = y + (form.top + form.height - form.y) * cell
    levels = (math.log(form.height / SIDE), math.log(math.sqrt(form.area) / SIDE), y / now.window_px)
    references = _means(levels, state.references, state.frames, REFERENCE_FRAMES)
    grey = _light(now, form)
    light = _means(grey, state.light, state.frames, LIGHT_FRAMES)
    trail = (*state.trail, (x, y))[-TRAIL_FRAMES:]
    values = (
        *_posture(form, now.body),
        *_travel(trail, bottom_px, now.window_px, state),
        *_motion(now, form, state.before),
        *_overlaps(now, form, state),
        levels[0] - references[0],
        levels[1] - references[1],
        _clipped(levels[2] - references[2], 1.0),
        *grey,
    )
    known = dict(zip(ALL, values, strict=True))
    size = max(known["size"], 0.02)
    known |= {f"{name}_of_size": min(known[name] / size, 4.0) for name in _SCALED}
    known |= {name: level - mean for name, level, mean in zip(_LIGHT, grey, light, strict=True)}
    where, outline = walls.distances(x, y, _outline_px(now), now.window_px, state.walls)
    known |= zip(ARENA, where, strict=True)
    frames = min(state.frames + 1, LIGHT_FRAMES)
    after = KinematicState(now, trail, bottom_px, references, light, frames, outline)
    return np.array(tuple(known.values()), np.float32), after


def _outline_px(now: Silhouette) -> walls.Points:
    """Corners of the body's convex hull, px of the frame."""
    cells = np.asarray(cv2.convexHull(cv2.findNonZero(now.body)), np.float32)[:, 0]
    middle, cell = (SIDE - 1) / 2, now.window_px / SIDE
    return np.asarray(np.array((now.x_px, now.y_px)) + (cells - middle) * cell, np.float32)


def _measured(body: Grey) -> _Form:
    moments = cv2.moments(body, binaryImage=True)
    area = moments["m00"]
    xx, xy, yy = (moments[name] / area for name in ("mu20", "mu11", "mu02"))
    left, top, width, height = cv2.boundingRect(body)
    return _Form(left, top, width, height, area, moments["m10"] / area, moments["m01"] / area, xx, xy, yy)


def _posture(form: _Form, body: Grey) -> tuple[float, ...]:
    root = math.hypot((form.xx - form.yy) / 2, form.xy)
    mean = (form.xx + form.yy) / 2
    spread = max(2 * mean, 1e-6)
    return (
        form.height / SIDE,
        form.width / SIDE,
        math.log(form.height / form.width),
        math.sqrt(form.area) / SIDE,
        form.area / (form.width * form.height),
        0.5 * math.log((mean + root + 0.1) / (max(mean - root, 0.0) + 0.1)),
        (form.yy - form.xx) / spread,
        2 * abs(form.xy) / spread,
        (form.y - form.top) / form.height,
        abs(form.x - form.left - (form.width - 1) / 2) / form.width,
        *(cv2.countNonZero(body[rows]) / max(rows.stop - rows.start, 1) / SIDE for rows in _slices(form, 4)),
    )


def _slices(form: _Form, count: int) -> list[slice]:
    """The rows of a body in `count` parts of about the same height."""
    bounds = [form.top + round(part * form.height / count) for part in range(count + 1)]
    return [slice(*pair) for pair in pairwise(bounds)]


def _travel(
    trail: Sequence[tuple[float, float]], bottom_px: float, window_px: int, state: KinematicState
) -> tuple[float, ...]:
    (x, y), (x_before, y_before), (x_first, y_first) = trail[-1], trail[max(len(trail) - 2, 0)], trail[0]
    dropped = abs(bottom_px - state.bottom_px) / window_px if state.before else 0.0
    return (
        4 * min(math.hypot(x - x_before, y - y_before) / window_px, 0.5),
        4 * _clipped((y_before - y) / window_px, 0.3),
        min(math.hypot(x - x_first, y - y_first) / window_px, 1.5),
        4 * min(dropped, 0.3),
    )


def _motion(now: Silhouette, form: _Form, before: Silhouette | None) -> tuple[float, ...]:
    """Change of grey since the frame before at the same places of the frame, in the body and its parts."""
    if before is None:
        return (0.0,) * 5
    change = cv2.absdiff(now.grey, view(before.surroundings, now.x_px, now.y_px, now.window_px))
    edge = cv2.morphologyEx(now.body, cv2.MORPH_GRADIENT, _SQUARE_5)
    thirds = (cv2.mean(change[rows], mask=now.body[rows])[0] for rows in _slices(form, 3))
    means = (cv2.mean(change, mask=now.body)[0], *thirds, cv2.mean(change, mask=edge)[0])
    return tuple(min(mean / 64, 2.0) for mean in means)


def _overlaps(now: Silhouette, form: _Form, state: KinematicState) -> tuple[float, float]:
    before = state.before
    if before is None:
        return 1.0, 1.0
    (x, y), cells, middle = state.trail[-1], SIDE / now.window_px, (SIDE - 1) / 2
    in_frame = ((before.x_px - now.x_px) * cells, (before.y_px - now.y_px) * cells)
    laid_on = (form.x - middle - (x - before.x_px) * cells, form.y - middle - (y - before.y_px) * cells)
    return _overlap(now.body, before.body, *in_frame), _overlap(now.body, before.body, *laid_on)


def _overlap(body: Grey, other: Grey, dx: float, dy: float) -> float:
    """What two bodies share, of all that they cover, when the other is moved by whole cells."""
    matrix = np.array([[1.0, 0.0, round(dx)], [0.0, 1.0, round(dy)]])
    moved = cv2.warpAffine(other, matrix, (SIDE, SIDE), flags=cv2.INTER_NEAREST)
    shared = cv2.countNonZero(cv2.bitwise_and(body, moved))
    return shared / max(cv2.countNonZero(cv2.bitwise_or(body, moved)), 1)


def _light(now: Silhouette, form: _Form) -> tuple[float, float]:
    top, middle, _ = (cv2.mean(now.grey[rows], mask=now.body[rows])[0] / 128 for rows in _slices(form, 3))
    return top, middle


def _means(levels: Sequence[float], means: Sequence[float], frames: int, constant_frames: int) -> tuple[float, ...]:
    """Running means of one more frame than `frames`: plain means at first, then with a fixed time constant."""
    rate = max(1 / (frames + 1), 1 / constant_frames)
    return tuple(mean + rate * (level - mean) for mean, level in zip(means, levels, strict=True))


def _clipped(value: float, limit: float) -> float:
    return min(max(value, -limit), limit)
