"""The locate stage: properties on drawn scenes, thresholds on real recordings."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbr_live.simulation.camera import Simulation
from mbr_live.stages.background import PARTS_MAX, Grey, Plane, blobs, guess_background
from mbr_live.stages.locate import (
    PATIENCE_FRAMES,
    RESTART_REST_FRAMES,
    RESTARTS_AT_ONCE,
    LocateState,
    crop,
    initial_state,
    locate,
    window_px,
)
from mbr_live.types import CROP_PX, Image, MbrError, Sighting
from mbr_live.video.sources import VideoFile, sampled

HEIGHT, WIDTH = 480, 640
REALDATA = Path(os.environ.get("MBR_REALDATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def floor(level: int = 150, texture: float = 0.0, seed: int = 0) -> Image:
    """An empty arena, lit unevenly from above."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    light = 1.1 - 0.4 * (((x - 320) / 320) ** 2 + ((y - 240) / 240) ** 2) / 2
    grain = cv2.GaussianBlur(rng.normal(0, 1, (HEIGHT, WIDTH)), (0, 0), 4)
    picture = level * light + texture * grain / grain.std()
    return np.repeat(picture.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def noisy(picture: Image, seed: int, sigma: float = 3.0) -> Image:
    noise = np.random.default_rng(seed).normal(0, sigma, picture.shape[:2])
    return (picture + noise[..., None]).clip(0, 255).astype(np.uint8)


def with_animal(picture: Image, x: float, y: float, angle: float = 0.0, level: int = 35) -> Image:
    """A mouse of 76 x 36 px with a tail."""
    drawn = picture.copy()
    turn = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    tail = [tuple(int(v) for v in np.array([x, y]) - turn * r) for r in (34, 80)]
    cv2.line(drawn, tail[0], tail[1], (level,) * 3, 4, cv2.LINE_AA)
    cv2.ellipse(drawn, (round(x), round(y)), (38, 18), angle, 0, 360, (level,) * 3, -1, cv2.LINE_AA)
    return drawn


def walk(frame: int) -> tuple[float, float, float]:
    """Position and heading on a walk around the arena, 6 px per frame."""
    phase = 2 * np.pi * frame / 200
    return (
        320 + 200 * np.cos(phase),
        240 + 140 * np.sin(phase),
        np.degrees(np.arctan2(140 * np.cos(phase), -200 * np.sin(phase))),
    )


def follow(frames: Iterator[Image] | list[Image], state: LocateState) -> tuple[list[Sighting], LocateState]:
    sightings = []
    for pixels in frames:
        sighting, state = locate(pixels, state)
        sightings.append(sighting)
    return sightings, state


def error_px(sighting: Sighting, x: float, y: float) -> float:
    return float(np.hypot(sighting.x_px - x, sighting.y_px - y)) if sighting.found else float("inf")


@pytest.mark.parametrize(("ground", "animal"), [(150, 35), (190, 20), (30, 170), (12, 120)])
def test_one_still_picture_is_enough(ground: int, animal: int) -> None:
    for seed, (x, y) in enumerate([(320, 240), (120, 100), (500, 400), (560, 80)]):
        sighting, _ = locate(noisy(with_animal(floor(ground), x, y, 30 * seed, animal), seed), initial_state())
        assert error_px(sighting, x, y) < 8
        assert 55 < sighting.length_px < 110
        assert 1.3 < sighting.elongation < 3


@pytest.mark.parametrize(("ground", "animal"), [(150, 35), (30, 170)])
def test_walking_animal_is_followed_and_the_window_fits_it(ground: int, animal: int) -> None:
    frames = (noisy(with_animal(floor(ground), *walk(i), level=animal), i) for i in range(120))
    sightings, state = follow(frames, initial_state())
    errors = [error_px(s, *walk(i)[:2]) for i, s in enumerate(sightings)]
    assert np.median(errors) < 4
    assert max(errors) < 20
    side = window_px(state)
    assert side is not None and side % 8 == 0 and 128 <= side <= 184


def test_still_animal_stays_found_for_ten_minutes_bit_identical() -> None:
    background = floor()
    state = follow((with_animal(background, *walk(i)) for i in range(30)), initial_state())[1]
    x, y, angle = walk(30)
    still = with_animal(background, x, y, angle)
    sightings, _ = follow((still for _ in range(6000)), state)
    assert all(error_px(s, x, y) < 4 for s in sightings)


def test_still_animal_stays_found_under_noise_and_does_not_jitter() -> None:
    background = floor()
    still = with_animal(background, 300, 200, 20)
    pictures = [noisy(still, seed) for seed in range(20)]
    sightings, _ = follow((pictures[i % 20] for i in range(1500)), initial_state())
    assert all(error_px(s, 300, 200) < 6 for s in sightings)
    assert np.std([s.x_px for s in sightings]) < 1.0
    assert np.std([s.y_px for s in sightings]) < 1.0


@pytest.mark.parametrize("texture", [0.0, 6.0])
@pytest.mark.parametrize("sigma", [0.0, 4.0])
def test_empty_arena_is_empty(texture: float, sigma: float) -> None:
    background = floor(texture=texture)
    frames = (noisy((background * (1 + 0.1 * np.sin(i / 60))).clip(0, 255), i, sigma) for i in range(200))
    sightings, _ = follow(frames, initial_state())
    assert sum(s.found for s in sightings) <= 2


def test_animal_that_enters_is_found_at_once_and_missed_when_it_leaves() -> None:
    background = floor(texture=4.0)
    state = follow((noisy(background, i) for i in range(50)), initial_state())[1]
    path = [(-40 + 12 * i, 240.0) for i in range(60)]
    sightings, state = follow((noisy(with_animal(background, x, y), i) for i, (x, y) in enumerate(path)), state)
    inside = [(s, x, y) for s, (x, y) in zip(sightings, path, strict=True) if 45 < x < 595]
    assert all(error_px(s, x, y) < 25 for s, x, y in inside)
    sightings, _ = follow((noisy(background, i) for i in range(30)), state)
    assert not any(s.found for s in sightings[10:])


def test_a_jump_of_the_exposure_costs_nothing() -> None:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    arena = ((x - 320) / 270) ** 2 + ((y - 240) / 200) ** 2 < 1  # in a dark room, which shows less of the jump
    ground = np.where(arena[..., None], floor(170, texture=4.0), np.uint8(40))

    def picture(i: int) -> Image:
        exposure = 0.72 if i >= 60 else 1.0
        return noisy((with_animal(ground, *walk(i)) * exposure).clip(0, 255), i)

    sightings, _ = follow((picture(i) for i in range(120)), initial_state())
    assert max(error_px(s, *walk(i)[:2]) for i, s in enumerate(sightings)) < 20


def test_a_known_animal_that_is_put_elsewhere_is_found_at_once() -> None:
    def picture(i: int) -> Image:
        x, y, angle = walk(i)
        return noisy(with_animal(floor(), x, y if i < 80 else 480 - y, angle), i)

    sightings, _ = follow((picture(i) for i in range(100)), initial_state())
    for i in range(80, 100):
        x, y, _ = walk(i)
        assert error_px(sightings[i], x, 480 - y) < 20


def test_light_switch_costs_seconds() -> None:
    bright, dim = floor(170), floor(60)
    state = follow((noisy(with_animal(bright, *walk(i)), i) for i in range(60)), initial_state())[1]
    frames = (noisy(with_animal(dim, *walk(i), level=12), i) for i in range(60, 120))
    sightings, state = follow(frames, state)
    assert all(error_px(s, *walk(i)[:2]) < 20 for i, s in enumerate(sightings[20:], 80))
    frames = (noisy(with_animal(bright, *walk(i)), i) for i in range(120, 180))
    sightings, _ = follow(frames, state)
    assert all(error_px(s, *walk(i)[:2]) < 20 for i, s in enumerate(sightings[20:], 140))


def test_what_moves_wins_over_what_stands() -> None:
    background = with_animal(floor(), 100, 400, level=15)  # a dark thing that never moves
    frames = (noisy(with_animal(background, *walk(i), level=45), i) for i in range(100))
    sightings, _ = follow(frames, initial_state())
    assert all(error_px(s, *walk(i)[:2]) < 20 for i, s in enumerate(sightings[30:], 30))


def test_same_frames_same_bytes_and_nothing_is_mutated() -> None:
    frames = [noisy(with_animal(floor(), *walk(i)), i) for i in range(12)]
    runs = []
    for threads in (1, 4):
        before = cv2.getNumThreads()
        cv2.setNumThreads(threads)
        state = initial_state()
        history = []
        for pixels in frames:
            kept = [np.copy(v) for v in dataclasses.asdict(state).values()]
            pixels.setflags(write=False)
            sighting, after = locate(pixels, state)
            for old, new in zip(kept, dataclasses.asdict(state).values(), strict=True):
                np.testing.assert_array_equal(old, new)
            state = after
            history.append((sighting, [np.asarray(v).tobytes() for v in dataclasses.asdict(state).values()]))
        cv2.setNumThreads(before)
        runs.append(history)
    assert runs[0] == runs[1]


def test_state_is_plain_and_bounded() -> None:
    def size(state: LocateState) -> int:
        values = dataclasses.asdict(state).values()
        assert all(isinstance(v, (np.ndarray, int, float, tuple)) for v in values)
        return sum(np.asarray(v).nbytes for v in values)

    frames = [with_animal(floor(), *walk(i)) for i in range(60)]
    state = follow(frames, initial_state())[1]
    early = size(state)
    state = follow((frames[i % 60] for i in range(600)), state)[1]
    assert size(state) <= early < 2_000_000


def test_window_is_open_at_first_then_fixed() -> None:
    frames = [with_animal(floor(), *walk(i)) for i in range(100)]
    state = follow(frames[:20], initial_state())[1]
    assert window_px(state) is None
    state = follow(frames[20:60], state)[1]
    settled = window_px(state)
    assert settled is not None
    assert window_px(follow(frames[60:], state)[1]) == settled


def test_other_frame_size_is_an_error() -> None:
    _, state = locate(floor(), initial_state())
    with pytest.raises(MbrError, match="640x480"):
        locate(floor()[:240], state)


def stripes(number: int) -> Image:
    """A test pattern that moves: all of the picture changes with every frame."""
    y, x = np.mgrid[:480, :640]
    return np.repeat(((x + y + 70 * number) % 256).astype(np.uint8)[..., None], 3, axis=2)


def test_a_picture_that_changes_as_a_whole_does_not_cost_a_new_background_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guesses = []

    def counted(grey: Grey) -> Plane:
        guesses.append(1)
        return guess_background(grey)

    monkeypatch.setattr("mbr_live.stages.locate.guess_background", counted)
    _, state = follow([stripes(number) for number in range(100)], initial_state())
    assert len(guesses) <= 1 + RESTARTS_AT_ONCE + 100 // RESTART_REST_FRAMES
    scene = [noisy(with_animal(floor(), 100 + 12 * k, 240), k) for k in range(30)]
    sightings, _ = follow(scene, state)
    assert np.hypot(sightings[-1].x_px - (100 + 12 * 29), sightings[-1].y_px - 240) < 20


def test_of_a_pattern_only_the_largest_parts_are_looked_at() -> None:
    y, x = np.mgrid[:200, :200]
    board = ((x // 10 % 2) * (y // 10 % 2) * 200).astype(np.uint8)  # 100 squares that are each large enough
    nothing = np.zeros_like(board)
    found = blobs(board, nothing, nothing, 10.0, (-1, 1), 0.0, (slice(0, 200), slice(0, 200)))
    assert len(found) == PARTS_MAX


@settings(max_examples=60)
@given(x=st.floats(-50, 150), y=st.floats(-50, 120), side=st.integers(8, 300))
def test_crop_is_the_edge_replicated_square(x: float, y: float, side: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    rows = np.clip(round(y - side / 2) + np.arange(side), 0, 69)
    columns = np.clip(round(x - side / 2) + np.arange(side), 0, 99)
    square = picture[rows][:, columns]
    method = cv2.INTER_AREA if side > CROP_PX else cv2.INTER_LINEAR
    np.testing.assert_array_equal(
        crop(picture, x, y, side), cv2.resize(square, (CROP_PX, CROP_PX), interpolation=method)
    )


def real(*parts: str) -> Path:
    path = REALDATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real video not found: {path} (set MBR_REALDATA)")
    return path


def test_real_top_view_follows_the_tracked_positions() -> None:
    with real("topview_arena", "positions.csv").open() as file:
        truth = {int(float(r["frame"])) - 1: (float(r["pos_x"]), float(r["pos_y"])) for r in csv.DictReader(file)}
    errors, state = [], initial_state()
    for frame in sampled(VideoFile(real("topview_arena", "mouse_video.mp4")), "camera"):
        if frame.index == 700:
            break
        sighting, state = locate(frame.pixels, state)
        if frame.source_frame in truth:
            errors.append(error_px(sighting, *truth[frame.source_frame]))
    assert len(errors) > 600
    assert np.median(errors) <= 5
    assert np.mean(np.array(errors) <= 40) >= 0.995


@pytest.mark.parametrize(("camera", "chunk"), [("camera_L", "03500.mp4"), ("camera_E", "17500.mp4")])
def test_real_cylinder_finds_the_mouse_among_dark_tripods(camera: str, chunk: str) -> None:
    small, found, state = [], [], initial_state()
    for frame in sampled(VideoFile(real("cylinder", camera, chunk)), "camera"):
        sighting, state = locate(frame.pixels, state)
        small.append(cv2.cvtColor(cv2.resize(frame.pixels, (221, 174)), cv2.COLOR_RGB2GRAY))
        found.append((sighting.x_px, sighting.y_px))
    background = np.median(small, axis=0).astype(np.uint8)
    errors = []
    for grey, (x, y) in list(zip(small, found, strict=True))[50:]:
        mask = (cv2.blur(cv2.subtract(background, grey), (3, 3)) > 14).astype(np.uint8)
        mask[:96] = 0  # above the arena people walk
        count, _, stats, centres = cv2.connectedComponentsWithStats(mask)
        if count > 1:
            cx, cy = centres[1 + int(np.argmax(stats[1:, 4]))] * 1328 / 221
            errors.append(np.hypot(x - cx, y - cy))
    assert len(errors) > 200
    assert np.mean(np.array(errors) <= 60) >= 0.97


def test_real_white_rats_are_found_without_history() -> None:
    hits = []
    for path in sorted(real("rat_clips").glob("*/*.mkv"))[::20]:
        state = initial_state()
        for frame in sampled(VideoFile(path), "camera"):
            sighting, state = locate(frame.pixels, state)
            grey = cv2.cvtColor(frame.pixels[::9, ::9].copy(), cv2.COLOR_RGB2GRAY)
            bright = (cv2.blur(grey, (5, 5)) > 60).astype(np.uint8)
            body = cv2.morphologyEx(bright, cv2.MORPH_OPEN, np.ones((9, 9), np.uint8))  # no tail, no clips
            _, _, stats, centres = cv2.connectedComponentsWithStats(body)
            x, y = centres[1 + int(np.argmax(stats[1:, 4]))] * 9
            hits.append(error_px(sighting, x, y) < 160)
    assert np.mean(hits) >= 0.95


@pytest.mark.parametrize("condition", ["box", "dark", "clutter"])
def test_simulated_mouse_is_found_within_two_seconds(condition: str) -> None:
    simulation, state, errors = Simulation(condition, 5), initial_state(), []
    for index in range(600):
        truth = simulation.advance()
        if index % 3 == 0:
            sighting, state = locate(simulation.render(), state)
            errors.append(error_px(sighting, truth.x_px, truth.y_px))
    assert np.mean(np.array(errors[20:]) <= 40) >= 0.99


@pytest.mark.parametrize("condition", ["box", "dark"])
def test_simulated_empty_arena_is_empty(condition: str) -> None:
    simulation, state, found = Simulation(condition, 5, empty=True), initial_state(), 0
    for _ in range(60):
        simulation.advance()
        sighting, state = locate(simulation.render(), state)
        found += sighting.found
    assert found == 0


def test_furniture_is_not_an_animal_for_ever() -> None:
    """An arena that is empty but for things: one may be taken for a still animal, until none has stirred for long.

    An animal that comes then is found, and stays found while it sits.
    """
    empty, full = Simulation("clutter", 78, empty=True), Simulation("clutter", 78)
    state = initial_state()
    for _ in range(PATIENCE_FRAMES + 1):
        empty.advance()
        _, state = locate(empty.render(), state)
    for _ in range(30):
        empty.advance()
        sighting, state = locate(empty.render(), state)
        assert not sighting.found
    for _ in range(100):
        for _ in range(3):
            truth = full.advance()
        sighting, state = locate(full.render(), state)
    assert error_px(sighting, truth.x_px, truth.y_px) < 30
    sitting = full.render()
    for seed in range(2 * PATIENCE_FRAMES):
        sighting, state = locate(noisy(sitting, seed, 2.0), state)
    assert error_px(sighting, truth.x_px, truth.y_px) < 30
