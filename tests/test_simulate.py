"""The simulated camera: reproducible pictures, a truthful truth, and an animal that spends its time as mice do."""

from __future__ import annotations

import csv
import itertools
import math
import tracemalloc
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mbr_live.simulation.behaviour import Floor, Life
from mbr_live.simulation.camera import CONDITIONS, TRUTH_HEADER, Simulation, Truth, record
from mbr_live.types import Image, MbrError

BEHAVIOURS = {"walk", "pause", "groom", "rear_mid", "rear_wall"}
every_condition = pytest.mark.parametrize("condition", list(CONDITIONS))


def frame_at(condition: str, seed: int, number: int, *, empty: bool = False) -> Image:
    simulation = Simulation(condition, seed, empty=empty)
    for _ in range(number + 1):
        simulation.advance()
    return simulation.render()


def animal_mask(picture: Image, empty: Image, condition: str) -> Image:
    """Pixels of the animal without its tail: light on the dark floor, else much darker than any shadow makes it."""
    with_animal, without = (cv2.cvtColor(one, cv2.COLOR_RGB2GRAY).astype(np.float32) for one in (picture, empty))
    mask = with_animal > without + 35 if condition == "dark" else with_animal < 0.48 * without - 5
    return np.asarray(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8)), np.uint8)


def paired(condition: str, seed: int, frames: int, stride: int) -> list[tuple[Truth, Image, Image]]:
    """Every `stride`-th moment of a recording with the animal and without it."""
    occupied, empty = Simulation(condition, seed), Simulation(condition, seed, empty=True)
    moments = []
    for number in range(frames):
        truth, same = occupied.advance(), empty.advance()
        assert truth == same
        if number % stride == 0:
            moments.append((truth, occupied.render(), empty.render()))
    return moments


def test_the_conditions_are_those_promised() -> None:
    assert set(CONDITIONS) == {"box", "clutter", "dark"}
    assert {one.fps for one in CONDITIONS.values()} == {Fraction(10), Fraction(30000, 1001)}
    assert CONDITIONS["clutter"].fps == Fraction(30000, 1001)
    assert all((one.width_px, one.height_px) == (640, 480) for one in CONDITIONS.values())


@every_condition
def test_picture_is_rgb_of_the_conditions_size(condition: str) -> None:
    picture = frame_at(condition, 0, 0)
    assert picture.shape == (480, 640, 3)
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous


@every_condition
def test_skipping_pictures_changes_no_byte(condition: str) -> None:
    looked = Simulation(condition, 3)
    pictures = []
    for _ in range(60):
        looked.advance()
        pictures.append(looked.render())
    for number in (0, 7, 59):
        assert frame_at(condition, 3, number).tobytes() == pictures[number].tobytes()
    assert looked.render().tobytes() == pictures[-1].tobytes()


@every_condition
def test_the_same_seed_gives_the_same_truth_and_another_seed_another(condition: str) -> None:
    def truths(seed: int) -> list[Truth]:
        simulation = Simulation(condition, seed)
        return [simulation.advance() for _ in range(200)]

    assert truths(11) == truths(11)
    assert truths(11) != truths(12)


@every_condition
def test_seeds_differ_in_arena_and_consecutive_frames_in_noise(condition: str) -> None:
    one, other = frame_at(condition, 1, 0, empty=True), frame_at(condition, 2, 0, empty=True)
    later = frame_at(condition, 1, 1, empty=True)
    noise = np.abs(one.astype(int) - later).mean()
    assert noise > 0.5
    blurred = [cv2.GaussianBlur(picture, (0, 0), 4).astype(int) for picture in (one, other)]
    assert np.abs(blurred[0] - blurred[1]).max() > 8


@every_condition
def test_empty_arena_shows_no_animal(condition: str) -> None:
    simulation = Simulation(condition, 4, empty=True)
    level = []
    for number in range(400):
        simulation.advance()
        if number % 20 == 0:
            level.append(simulation.render().mean(axis=2))
    spread = np.ptp([cv2.GaussianBlur(one, (0, 0), 5) for one in level], axis=0)
    assert spread.max() < 6  # an animal differs from the floor by far more wherever it has been


@every_condition
def test_only_the_neighbourhood_of_the_animal_is_touched(condition: str) -> None:
    reach = 2.2 * CONDITIONS[condition].body_px[1]
    for truth, picture, empty in paired(condition, 5, 200, 20):
        rows, columns = np.nonzero((picture != empty).any(axis=2))
        assert len(rows) > 500
        assert np.hypot(columns - truth.x_px, rows - truth.y_px).max() < reach


@every_condition
def test_truth_is_the_middle_of_the_drawn_body(condition: str) -> None:
    # A dark head before a dark wall cannot be told from it by brightness.
    unclear = set() if condition == "dark" else {"rear_wall"}
    errors = []
    for seed in (0, 1):
        for truth, picture, empty in paired(condition, seed, 1500, 30):
            if truth.behaviour not in unclear:
                shape = cv2.moments(animal_mask(picture, empty, condition), True)
                x, y = shape["m10"] / shape["m00"], shape["m01"] / shape["m00"]
                errors.append(math.hypot(truth.x_px - x, truth.y_px - y))
    assert np.median(errors) < 2.0
    assert np.percentile(errors, 95) < 4.0


@pytest.mark.parametrize("condition", ["box", "dark"])
def test_behaviours_look_different(condition: str) -> None:
    """On all fours the animal is long; sitting up or curled it is rounder. Washing moves, pausing hardly does."""
    elongation, motion = defaultdict(list), defaultdict(list)
    for seed in range(3):
        simulation, empty = Simulation(condition, seed), Simulation(condition, seed, empty=True)
        held, before = "", None
        for number in range(2000):
            truth, _ = simulation.advance(), empty.advance()
            if truth.behaviour != held:
                held, since, before = truth.behaviour, number, None
            if number - since < 8 or number % 30 > 1:  # settled, and two frames in every thirty
                continue
            mask = animal_mask(simulation.render(), empty.render(), condition)
            if number % 30 == 0:
                before = mask
                shape = cv2.moments(mask, True)
                tensor = [[shape["mu20"], shape["mu11"]], [shape["mu11"], shape["mu02"]]]
                short, long = np.linalg.eigvalsh(tensor)
                elongation[held].append(math.sqrt(long / short))
            elif before is not None:
                motion[held].append((mask != before).mean() / mask.mean())
    typical = {behaviour: np.median(values) for behaviour, values in elongation.items()}
    assert min(typical["walk"], typical["pause"]) > max(typical["groom"], typical["rear_mid"]) + 0.3
    assert np.median(motion["groom"]) > 2 * np.median(motion["pause"])


@pytest.fixture(scope="module", params=list(CONDITIONS))
def hours(request: pytest.FixtureRequest) -> tuple[Simulation, list[Truth]]:
    """Truths of three recordings of equal length one after the other, 2.4 hours in all (0.9 at the higher rate)."""
    truths = []
    for seed in (20, 21, 22):
        simulation = Simulation(request.param, seed)
        truths += [simulation.advance() for _ in range(30_000)]
    return simulation, truths


def bout_lengths_s(simulation: Simulation, truths: list[Truth], behaviours: set[str]) -> NDArray[np.float64]:
    runs = itertools.groupby(truth.behaviour for truth in truths)
    lengths = [len(list(run)) for behaviour, run in runs if behaviour in behaviours]
    return np.array(lengths) / float(simulation.condition.fps)


def test_prevalence_is_that_of_the_literature(hours: tuple[Simulation, list[Truth]]) -> None:
    _, truths = hours
    assert {truth.behaviour for truth in truths} == BEHAVIOURS
    assert 0.09 < np.mean([truth.grooming for truth in truths]) < 0.16
    assert 0.15 < np.mean([truth.rearing for truth in truths]) < 0.21
    assert np.mean([truth.behaviour == "rear_mid" for truth in truths]) > 0.05
    assert np.mean([truth.behaviour == "rear_wall" for truth in truths]) > 0.07


def test_bouts_last_as_in_the_literature(hours: tuple[Simulation, list[Truth]]) -> None:
    grooming = bout_lengths_s(*hours, {"groom"})
    assert 8.0 < grooming.mean() < 12.5
    assert 0.9 < grooming.min() < 4.0
    assert 20.0 < grooming.max() < 55.2
    rearing = bout_lengths_s(*hours, {"rear_mid", "rear_wall"})
    assert 1.95 < rearing.mean() < 2.45
    assert rearing.min() > 0.4
    assert rearing.max() < 8.2


def test_a_few_minutes_hold_both_behaviours(hours: tuple[Simulation, list[Truth]]) -> None:
    simulation, truths = hours
    window = round(240 * simulation.condition.fps)
    for start in range(0, len(truths) - window, window):
        seen = {truth.behaviour for truth in truths[start : start + window]}
        assert {"groom", "rear_mid", "rear_wall"} <= seen


def test_speeds_are_a_mouses(hours: tuple[Simulation, list[Truth]]) -> None:
    simulation, truths = hours
    fps, length = float(simulation.condition.fps), simulation.condition.body_px[1]
    speeds = defaultdict(list)
    for before, now in itertools.pairwise(truths[-30_000:]):
        step = math.hypot(now.x_px - before.x_px, now.y_px - before.y_px)
        if before.behaviour == now.behaviour:
            speeds[now.behaviour].append(step * fps / length)
        assert step * fps < 6 * length
    assert 0.6 < np.median(speeds["walk"]) < 2.5
    assert np.median(speeds["pause"]) < 0.1
    assert np.median(speeds["rear_mid"]) < 0.2


def test_the_animal_stays_in_the_picture(hours: tuple[Simulation, list[Truth]]) -> None:
    _, truths = hours
    assert all(10 < truth.x_px < 630 and 10 < truth.y_px < 470 for truth in truths)


def square(side_px: float) -> Floor:
    return Floor(np.array([(0, 0), (side_px, 0), (side_px, side_px), (0, side_px)], np.float64))


def test_rearing_at_the_wall_is_at_the_wall_and_rearing_free_is_not() -> None:
    life = Life(square(450), 75, np.random.Generator(np.random.PCG64(1)))
    gaps = defaultdict(list)
    for _ in range(20_000):
        life.step(0.1)
        gap, towards = life.floor.nearest(life.pose.x_px, life.pose.y_px)
        gaps[life.behaviour].append(gap / 75)
        if life.behaviour == "rear_wall" and life.pose.postures[3] > 0.98:
            assert gap < 0.4 * 75
            assert math.cos(towards - life.pose.heading) > 0.8
    assert max(gaps["rear_wall"]) < 0.8
    assert min(gaps["rear_mid"]) > 0.9
    assert min(gaps["walk"]) > 0.2


@settings(max_examples=60)
@given(
    x=st.floats(-50, 500),
    y=st.floats(-50, 500),
    heading=st.floats(-math.pi, math.pi),
    sides=st.floats(5, 30),
    more=st.floats(0, 40),
)
def test_kept_in_leaves_room_to_every_wall(x: float, y: float, heading: float, sides: float, more: float) -> None:
    floor = square(450)
    kept = floor.kept_in(x, y, heading, sides, sides + more)
    assert floor.gaps(*kept).min() > sides - 1e-6
    assert floor.kept_in(*kept, heading, sides, sides + more) == pytest.approx(kept, abs=1e-6)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), fps=st.sampled_from((10.0, 25.0, 30000 / 1001)))
def test_pose_stays_sound_at_any_rate(seed: int, fps: float) -> None:
    life = Life(square(450), 75, np.random.Generator(np.random.PCG64(seed)))
    for _ in range(300):
        life.step(1 / fps)
        assert sum(life.pose.postures) == pytest.approx(1.0)
        assert min(life.pose.postures) >= 0
        links = [math.dist(one, other) for one, other in itertools.pairwise(life.pose.tail)]
        assert max(links) == pytest.approx(min(links))


def test_memory_does_not_grow() -> None:
    simulation = Simulation("box", 0)
    tracemalloc.start()
    try:
        for _ in range(1000):
            simulation.advance()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(6000):
            simulation.advance()
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
    finally:
        tracemalloc.stop()


@every_condition
def test_recording_round_trip(condition: str, tmp_path: Path) -> None:
    video, truth = tmp_path / "a.mp4", tmp_path / "a.csv"
    told: list[tuple[int, int]] = []
    record(condition, 6, 3.0, video, truth, progress=lambda done, total: told.append((done, total)))
    fps = CONDITIONS[condition].fps
    total = round(3 * fps)
    assert told == [(number + 1, total) for number in range(total)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.mp4"]

    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == fps
        frames = list(container.decode(stream))
        times = [Fraction(frame.pts or 0) * (stream.time_base or 0) for frame in frames]
    assert times == [number / fps for number in range(total)]

    lines = truth.read_text().splitlines()
    assert lines[0] == TRUTH_HEADER
    rows = list(csv.DictReader(lines))
    assert len(rows) == total
    simulation = Simulation(condition, 6)
    for number, (row, frame) in enumerate(zip(rows, frames, strict=True)):
        now = simulation.advance()
        assert (int(row["source_frame"]), row["behaviour"]) == (number, now.behaviour)
        assert float(row["time_s"]) == pytest.approx(float(number / fps), abs=1e-6)
        assert (float(row["x_px"]), float(row["y_px"])) == pytest.approx((now.x_px, now.y_px), abs=0.006)
        if number % 10 == 0:
            difference = np.abs(frame.to_ndarray(format="rgb24").astype(int) - simulation.render())
            assert difference.mean() < 8  # the encoder drops part of the noise
            assert cv2.GaussianBlur(difference.astype(np.float32), (0, 0), 5).max() < 20


def test_truth_rows_flag_the_behaviour(tmp_path: Path) -> None:
    record("box", 1, 20, tmp_path / "a.mp4", tmp_path / "a.csv")
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert len({row["behaviour"] for row in rows}) >= 3
    for row in rows:
        flags = tuple(int(row[name]) for name in ("grooming", "rearing", "rear_mid", "rear_wall"))
        behaviour = row["behaviour"]
        middle, wall = behaviour == "rear_mid", behaviour == "rear_wall"
        assert flags == (behaviour == "groom", middle or wall, middle, wall)


def test_interrupted_recording_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record("box", 1, 2, tmp_path / "a.mp4", tmp_path / "a.csv", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MbrError, match=r"'fog'.*box, clutter, dark"):
        Simulation("fog", 1)
    with pytest.raises(MbrError, match="seed is -1"):
        Simulation("box", -1)
    with pytest.raises(MbrError, match="advance"):
        Simulation("box", 1).render()
    for seconds in (0.0, -3.0, math.nan, math.inf):
        with pytest.raises(MbrError, match="no frame"):
            record("box", 1, seconds, tmp_path / "a.mp4", tmp_path / "a.csv")
    with pytest.raises(MbrError, match="does not exist"):
        record("box", 1, 1, tmp_path / "nowhere" / "a.mp4", tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []
