"""How far the animal is from the border of where it has been: the distance to the wall, as far as frames tell.

A crop around the animal throws away where the walls are, and rearing in the open and against a wall differ by just
that. An animal walks along the walls of what it lives in, so the places it has been to outline the arena. The outline
is the furthest it has been in each of DIRECTIONS directions (support function of the convex hull), which is all that is
remembered: memory and cost stay the same however long it goes on. In the first minutes the outline is too small, which
is what `span` tells a network. Pure, causal, incremental.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DIRECTIONS = 16  # a multiple of 4, so that a mirrored recording has the same ones
GROWTH = 0.1  # windows: the most that the outline moves out in a frame, so that a slip of the tracker is no wall
FAR = 1.5  # windows: further away, a distance says no more
SPAN_MAX = 8.0

NAMES = ("wall", "wall_beyond", "arena_span")
"""Distance from the border; how far the body reaches beyond it; the narrowest width of the outline. In windows."""

Points = NDArray[np.float32]
"""Places in the frame, float32 [N, 2], px."""

_ANGLES = np.arange(DIRECTIONS) * (2 * math.pi / DIRECTIONS)
_OUTWARD = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)]).astype(np.float32)  # [2, DIRECTIONS]


@dataclass(frozen=True, slots=True)
class Walls:
    """The outline of where the animal has been: how far in each direction, px of the frame; empty before the first."""

    reach: tuple[float, ...] = ()


NO_WALLS = Walls()


def distances(x_px: float, y_px: float, body: Points, window_px: int, state: Walls) -> tuple[tuple[float, ...], Walls]:
    """The values of NAMES for an animal with its centre at (x, y) that covers the points `body`, and the next state."""
    here = (np.array([x_px, y_px], np.float32) @ _OUTWARD).astype(np.float64)
    reach = np.array(state.reach) if state.reach else here
    reach = np.maximum(reach, np.minimum(here, reach + GROWTH * window_px))
    beyond = (body @ _OUTWARD).max(axis=0) - reach
    span = (reach + np.roll(reach, DIRECTIONS // 2)).min() / window_px
    values = (
        min(max(float((reach - here).min()) / window_px, -FAR), FAR),
        min(max(float(beyond.max()) / window_px, -FAR), FAR),
        min(float(span), SPAN_MAX),
    )
    return values, Walls(tuple(reach.tolist()))
