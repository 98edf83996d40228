"""The outline of where the animal has been, and distances from it: pure, bounded, and right once it has been around."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbr_live.stages.walls import DIRECTIONS, FAR, GROWTH, NAMES, NO_WALLS, SPAN_MAX, Points, Walls, distances

WINDOW = 100
HALF = 10.0  # px, half of the animal's side


def body(x: float, y: float) -> Points:
    """The corners of a square animal."""
    return np.array([(x + dx, y + dy) for dx in (-HALF, HALF) for dy in (-HALF, HALF)], np.float32)


def at(x: float, y: float, state: Walls) -> tuple[dict[str, float], Walls]:
    values, state = distances(x, y, body(x, y), WINDOW, state)
    return dict(zip(NAMES, values, strict=True)), state


def walked(places: list[tuple[float, float]], state: Walls = NO_WALLS) -> Walls:
    for x, y in places:
        _, state = at(x, y, state)
    return state


def around_a_box(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    return [
        (x0 + (x1 - x0) * step / 40, y0 + (y1 - y0) * step / 40)
        for (x0, y0), (x1, y1) in pairwise(corners)
        for step in range(40)
    ]


def test_an_animal_that_has_been_along_the_walls_knows_how_far_they_are() -> None:
    state = walked(around_a_box(50, 40, 250, 190))
    middle, _ = at(150, 115, state)
    assert middle["wall"] == pytest.approx(0.75, abs=0.01) and middle["wall_beyond"] == pytest.approx(-0.65, abs=0.01)
    assert middle["arena_span"] == pytest.approx(1.5, abs=0.01)
    beside, _ = at(250, 100, state)
    assert beside["wall"] == pytest.approx(0.0, abs=1e-3) and beside["wall_beyond"] == pytest.approx(0.1, abs=1e-3)


def test_a_round_arena() -> None:
    turns = [(200 + 120 * math.cos(k / 20), 150 + 120 * math.sin(k / 20)) for k in range(130)]
    found, _ = at(200 + 70 * math.cos(0.2), 150 + 70 * math.sin(0.2), walked(turns))
    assert found["wall"] == pytest.approx(0.5, abs=0.03) and found["arena_span"] == pytest.approx(2.4, abs=0.03)


def test_at_first_nothing_is_known() -> None:
    found, _ = at(70, 70, NO_WALLS)
    assert found["wall"] == 0 and found["arena_span"] == pytest.approx(0.0, abs=1e-6)


def test_a_slip_of_the_tracker_is_no_wall() -> None:
    box = around_a_box(50, 40, 250, 190)
    state = walked(box)
    _, slipped = at(600, 500, state)
    before, after = np.array(state.reach), np.array(slipped.reach)
    assert np.all(after - before <= GROWTH * WINDOW + 1e-6)
    assert at(150, 115, slipped)[0]["wall"] < at(150, 115, state)[0]["wall"] + GROWTH + 1e-6


places = st.tuples(st.floats(0, 4000), st.floats(0, 3000))


@given(st.lists(places, min_size=1, max_size=30))
def test_values_are_bounded_and_the_outline_only_grows(where: list[tuple[float, float]]) -> None:
    state = NO_WALLS
    for x, y in where:
        found, after = at(x, y, state)
        assert -FAR <= found["wall"] <= FAR and -FAR <= found["wall_beyond"] <= FAR
        assert 0 <= found["arena_span"] + 1e-3 <= SPAN_MAX + 1e-3
        assert len(after.reach) == DIRECTIONS
        assert not state.reach or np.all(np.array(after.reach) >= np.array(state.reach))
        state = after
