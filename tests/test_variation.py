"""Changed silhouettes: another camera, the same animal doing the same."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbr_live.datasets.variation import Draw, Variation, draw, varied
from mbr_live.stages.kinematics import CHANNELS, KinematicState, kinematics
from mbr_live.stages.locate import LocateState
from mbr_live.stages.silhouette import Silhouette, silhouette
from mbr_live.types import Sighting

HEIGHT, WIDTH, WINDOW = 160, 200, 96
NOTHING = Variation(zoom=0, stretch=0, shear=0, contrast=0, brightness=0, outline=0)


def cut(x: float, y: float, axes: tuple[int, int] = (20, 10)) -> Silhouette:
    """A dark animal on a floor with a pattern."""
    floor = (150 + (np.add.outer(np.arange(HEIGHT) // 8, np.arange(WIDTH) // 8) % 2 * 10)).astype(np.uint8)
    picture, mask = np.repeat(floor[..., None], 3, axis=2), np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(picture, (round(x), round(y)), axes, 0, 0, 360, (40,) * 3, -1)
    cv2.ellipse(mask, (round(x), round(y)), axes, 0, 0, 360, 1, -1)
    state = LocateState(shape=(HEIGHT, WIDTH), known=floor, animal=mask, sign=-1)
    return silhouette(picture, Sighting(True, x, y, 1.0, 600.0, 40.0, 2.0), state, WINDOW)


def drawn(seed: int, **limits: float) -> Draw:
    return draw(NOTHING.model_copy(update=limits), np.random.default_rng(seed))


def channels(*silhouettes: Silhouette) -> dict[str, float]:
    """Of the last one."""
    state = KinematicState()
    for each in silhouettes:
        values, state = kinematics(each, state)
    return dict(zip(CHANNELS, values.tolist(), strict=True))


@given(st.floats(30, WIDTH - 30), st.floats(30, HEIGHT - 30))
@settings(max_examples=20)
def test_no_change_changes_nothing(x: float, y: float) -> None:
    seen = cut(x, y)
    same = varied(seen, drawn(1))
    assert (same.x_px, same.y_px, same.window_px) == (seen.x_px, seen.y_px, seen.window_px)
    assert np.array_equal(same.body, seen.body)
    assert np.abs(same.grey.astype(int) - seen.grey).max() <= 2  # roundings


@given(st.integers(0, 2**32 - 1), st.floats(0, WIDTH - 1), st.floats(0, HEIGHT - 1))
@settings(max_examples=40)
def test_any_draw_leaves_a_body_and_the_silhouette_as_it_was(seed: int, x: float, y: float) -> None:
    seen, other = cut(x, y), cut(x + 5, y)
    kept = pickle.dumps((seen, other))
    by = draw(Variation(zoom=0.5, stretch=0.5, shear=0.5, outline=2), np.random.default_rng(seed))
    found = channels(varied(seen, by), varied(other, by))
    assert pickle.dumps((seen, other)) == kept
    assert all(np.isfinite(value) for value in found.values())
    again = draw(Variation(zoom=0.5, stretch=0.5, shear=0.5, outline=2), np.random.default_rng(seed))
    assert channels(varied(seen, again), varied(other, again)) == found


@pytest.mark.parametrize("seed", range(6))
def test_a_stretched_animal_is_one_of_other_proportions(seed: int) -> None:
    by = drawn(seed, zoom=0.3, stretch=0.3)
    found = channels(varied(cut(100, 80), by))
    across, down = np.diag(by.stretched)
    expected = channels(cut(100, 80, (round(20 * across), round(10 * down))))
    assert found["width"] == pytest.approx(expected["width"], abs=0.05)
    assert found["height"] == pytest.approx(expected["height"], abs=0.05)


def test_who_sits_still_does_so_in_every_copy_and_who_walks_goes_as_far_as_the_picture_is_wide() -> None:
    by = drawn(3, zoom=0.3, stretch=0.3, contrast=0.3, brightness=20.0, outline=1)
    still = channels(varied(cut(100, 80), by), varied(cut(100, 80), by))
    assert still["motion"] == still["speed"] == 0.0 and still["overlap"] == 1.0
    walked, as_was = channels(varied(cut(100, 80), by), varied(cut(110, 80), by)), channels(cut(100, 80), cut(110, 80))
    assert walked["travel_1s"] == pytest.approx(as_was["travel_1s"] * by.stretched[0, 0], rel=0.1)


def test_the_outline_lies_further_out_or_in() -> None:
    seen = cut(100, 80)
    outlines = {drawn(seed, outline=1).outline: varied(seen, drawn(seed, outline=1)).body.sum() for seed in range(12)}
    assert sorted(outlines) == [-1, 0, 1] and outlines[-1] < outlines[0] == seen.body.sum() < outlines[1]


def test_light_changes_grey_and_not_the_outline() -> None:
    seen = cut(100, 80)
    levels = np.arange(256)
    by = Draw(np.eye(2), (levels // 2 + 40).astype(np.uint8), 0)
    lighter = varied(seen, by)
    assert np.array_equal(lighter.body, seen.body)
    assert np.abs(lighter.grey.astype(int) - by.light[seen.grey]).max() <= 2  # roundings
    assert lighter.grey.mean() != pytest.approx(seen.grey.mean(), abs=10)
