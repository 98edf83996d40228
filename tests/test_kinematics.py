"""Silhouette and kinematic channels: defined for any picture, pure, bounded, and without left and right."""

from __future__ import annotations

import dataclasses
import pickle

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mbr_live.stages.kinematics import ALL, ARENA, CHANNELS, SHAPE, VERSION, KinematicState, columns, kinematics
from mbr_live.stages.locate import LocateState
from mbr_live.stages.silhouette import SIDE, Silhouette, silhouette
from mbr_live.types import Image, MbrError, Sighting

HEIGHT, WIDTH = 160, 200  # small enough for the search picture to have a pixel for each of the frame's
WINDOW = 96
FLOOR, ANIMAL = 150, 40


def scene(x: float, y: float, axes: tuple[int, int] = (20, 10), angle: float = 0.0) -> tuple[Image, LocateState]:
    """A dark animal on a floor with a pattern, and what `locate` would remember of it."""
    floor = FLOOR + (np.add.outer(np.arange(HEIGHT) // 8, np.arange(WIDTH) // 8) % 2 * 10)
    picture = np.repeat(floor.astype(np.uint8)[..., None], 3, axis=2)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    place = (round(x), round(y))
    cv2.ellipse(picture, place, axes, angle, 0, 360, (ANIMAL,) * 3, -1)
    cv2.ellipse(mask, place, axes, angle, 0, 360, 1, -1)
    state = LocateState(shape=(HEIGHT, WIDTH), known=floor.astype(np.uint8), animal=mask, sign=-1)
    return picture, state


def sighting(x: float, y: float) -> Sighting:
    return Sighting(True, x, y, 1.0, 600.0, 40.0, 2.0)


def cut(x: float, y: float, axes: tuple[int, int] = (20, 10), angle: float = 0.0) -> Silhouette:
    picture, state = scene(x, y, axes, angle)
    return silhouette(picture, sighting(x, y), state, WINDOW)


def named(values: NDArray[np.float32]) -> dict[str, float]:
    return dict(zip(CHANNELS, values.tolist(), strict=True))


def film(*silhouettes: Silhouette) -> list[dict[str, float]]:
    state, found = KinematicState(), []
    for each in silhouettes:
        values, state = kinematics(each, state)
        found.append(named(values))
    return found


places = st.tuples(st.floats(0, WIDTH - 1), st.floats(0, HEIGHT - 1))


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from([-1, 1]), st.lists(places, min_size=2, max_size=3), st.integers(16, 700)
)
def test_channels_are_finite_for_any_picture_and_states_stay_as_they_were(
    seed: int, sign: int, where: list[tuple[float, float]], window_px: int
) -> None:
    rng = np.random.default_rng(seed)
    state = KinematicState()
    for x, y in where:
        low, high = sorted(rng.integers(0, 256, 2))
        picture = rng.integers(low, high + 1, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        located = LocateState(
            shape=(HEIGHT, WIDTH),
            known=rng.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8),
            animal=(rng.random((HEIGHT, WIDTH)) < rng.choice([0.0, 0.5, 1.0])).astype(np.uint8),
            sign=sign,
        )
        found = silhouette(picture, sighting(x, y), located, window_px)
        assert found.grey.shape == found.body.shape == (SIDE, SIDE) and found.body.any()
        kept = pickle.dumps(state)
        values, after = kinematics(found, state)
        assert pickle.dumps(state) == kept
        assert values.shape == (len(CHANNELS),) and values.dtype == np.float32 and np.isfinite(values).all()
        assert np.abs(values).max() < 100
        state = after


def test_the_body_is_the_animal_without_its_shadow() -> None:
    picture, state = scene(100, 80)
    shadow = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(shadow, (100, 95), (22, 8), 0, 0, 360, 1, -1)
    shadow *= 1 - state.animal
    picture[shadow > 0] = (picture[shadow > 0] * 0.75).astype(np.uint8)
    with_shadow = dataclasses.replace(state, animal=state.animal | shadow)
    alone, shadowed = (
        silhouette(picture, sighting(100, 80), each, WINDOW).body.astype(bool) for each in (state, with_shadow)
    )
    assert (alone & shadowed).sum() > 0.97 * (alone | shadowed).sum()


def test_measures_of_a_body() -> None:
    lying, standing = film(cut(100, 80))[0], film(cut(100, 80, (10, 20)))[0]
    assert lying["width"] == pytest.approx(41 / WINDOW, abs=0.03) == standing["height"]
    assert lying["height"] == pytest.approx(21 / WINDOW, abs=0.03)
    assert lying["upright"] < -0.4 and standing["upright"] > 0.4
    assert lying["size"] == pytest.approx(np.sqrt(np.pi * 20 * 10) / WINDOW, abs=0.02)
    assert lying["height_of_size"] == pytest.approx(lying["height"] / lying["size"], rel=1e-5)
    assert film(cut(100, 80, angle=45))[0]["tilt"] > 0.4 > 0.05 > lying["tilt"]


def test_movement_is_signed_only_upwards() -> None:
    up, down = film(cut(100, 80), cut(100, 74))[1], film(cut(100, 80), cut(100, 86))[1]
    assert up["rise"] == pytest.approx(4 * 6 / WINDOW, abs=0.03) and down["rise"] == pytest.approx(
        -up["rise"], abs=0.03
    )
    right, left = film(cut(100, 80), cut(106, 80))[1], film(cut(100, 80), cut(94, 80))[1]
    for each in (up, down, right, left):
        assert each["speed"] == pytest.approx(4 * 6 / WINDOW, abs=0.03)
        assert each["motion_edge"] > 0.1 and each["overlap"] < 0.9 < each["overlap_centred"]


def test_motion_is_of_the_frame_not_of_the_window() -> None:
    """A window that is moved over a picture in which nothing changes sees no motion."""
    picture, state = scene(100, 80)
    still = [silhouette(picture, sighting(100 + dx, 80 + dy), state, WINDOW) for dx, dy in ((0, 0), (7.3, -5.6))]
    after = film(*still)[1]
    assert after["motion"] < 0.02 and after["overlap"] > 0.93
    assert after["speed"] == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("angle", [0.0, 30.0, 75.0])
def test_a_mirrored_recording_gives_the_same_channels(angle: float) -> None:
    original, mirrored = KinematicState(), KinematicState()
    for frame in range(12):
        x, y = 90 + 3 * frame, 80 - 2 * (frame % 4)
        picture, state = scene(x, y, (20, 9), angle + 4 * frame)
        values, original = kinematics(silhouette(picture, sighting(x, y), state, WINDOW), original)
        flipped = dataclasses.replace(state, known=state.known[:, ::-1].copy(), animal=state.animal[:, ::-1].copy())
        seen = silhouette(np.ascontiguousarray(picture[:, ::-1]), sighting(WIDTH - 1 - x, y), flipped, WINDOW)
        others, mirrored = kinematics(seen, mirrored)
        np.testing.assert_allclose(values, others, atol=0.06)


def test_what_is_remembered_is_bounded() -> None:
    def size(state: KinematicState) -> int:
        assert state.before is not None
        return state.before.surroundings.grey.nbytes + state.before.grey.nbytes + 16 * len(state.trail)

    state = KinematicState()
    sizes = []
    for frame in range(150):
        _, state = kinematics(cut(100 + frame % 10, 80), state)
        sizes.append(size(state))
    assert max(sizes[20:]) <= max(sizes[:20]) < 40_000


def test_a_lighter_camera_changes_grey_and_not_grey_against_its_mean() -> None:
    darker = [cut(100, 80), cut(102, 80), cut(104, 80)]
    lighter = [dataclasses.replace(each, grey=each.grey + np.uint8(30)) for each in darker]
    for before, after in zip(film(*darker), film(*lighter), strict=True):
        for name in ("grey_top", "grey_middle"):
            assert after[name] == pytest.approx(before[name] + 30 / 128, abs=1e-4)
            assert after[f"{name}_ref"] == pytest.approx(before[f"{name}_ref"], abs=1e-4)


def test_light_that_stays_is_what_grey_is_measured_against() -> None:
    still = cut(100, 80)
    switched = dataclasses.replace(still, grey=still.grey + np.uint8(30))
    found = [each["grey_top_ref"] for each in film(*[still] * 50, *[switched] * 1000)]
    assert found[49] == pytest.approx(0.0, abs=1e-5)
    assert found[50] == pytest.approx(30 / 128, rel=0.05) and abs(found[-1]) < 0.1 * found[50]


def test_sets_of_channels() -> None:
    assert len(ALL) == 30 and len(SHAPE) == 28 and len(set(CHANNELS)) == len(CHANNELS)
    assert set(CHANNELS) >= {*ALL, *SHAPE, *ARENA}
    assert [CHANNELS[at] for at in columns(SHAPE, VERSION)] == list(SHAPE)
    assert len(columns((), 0)) == 0
    for names, version, message in ((("whisking",), VERSION, "whisking"), (ALL, VERSION + 1, "version")):
        with pytest.raises(MbrError, match=f"kinematic channels are of.*{message}"):
            columns(names, version)
