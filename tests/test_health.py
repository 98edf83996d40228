"""What is wrong with pictures: seen where it is, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbr_live.cameras.health import (
    LOOK_EVERY_S,
    STRUCTURE_LOOKS,
    HealthState,
    Look,
    Reference,
    assess,
    look_at,
    make_reference,
    opened_anew,
)
from mbr_live.cameras.log import CameraLog, read_events
from mbr_live.cameras.reader import Chosen
from mbr_live.live.capture import Health
from mbr_live.simulation.camera import Simulation
from mbr_live.stages.blindness import FROZEN_FRAMES, BlindState, is_blind
from mbr_live.stages.sampler import SamplerState
from mbr_live.types import Image
from mbr_live.video.sources import VideoFile, sampled

Change = Callable[[Image], Image]


@pytest.fixture(scope="module")
def pictures() -> list[Image]:
    """A simulated minute, one picture a second and a bit."""
    simulation = Simulation("box", 3)
    shown = []
    for number in range(500):
        simulation.advance()
        if number % 10 == 0:
            shown.append(simulation.render())
    return shown


def after(pictures: list[Image], change: Change, reference: Reference | None) -> set[str]:
    """Alarms that are raised when these pictures have come, changed."""
    state = HealthState()
    for number, picture in enumerate(pictures):
        state = assess(number * LOOK_EVERY_S, look_at(change(picture)), "", 30.0, reference, state)
    return set(state.raised)


def moved_by(share: float) -> Change:
    return lambda picture: np.roll(picture, int(share * picture.shape[1]), axis=1)


def blurred(picture: Image) -> Image:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), 3 * picture.shape[1] / 640), np.uint8)


def dimmed(picture: Image) -> Image:
    return (picture * 0.5).astype(np.uint8)


def as_it_is(picture: Image) -> Image:
    return picture


CHANGES = [(as_it_is, set()), (dimmed, set()), (blurred, {"blurred"}), (moved_by(0.04), {"moved"})]


@pytest.mark.parametrize(("change", "alarms"), CHANGES)
def test_a_changed_picture_is_noticed(pictures: list[Image], change: Change, alarms: set[str]) -> None:
    assert after(pictures[15:], change, make_reference(pictures[:15])) == alarms


@pytest.mark.parametrize("video", ["topview_arena/mouse_video.mp4", "openfield/m3v1mp4.mp4"])
def test_changes_of_real_pictures_are_noticed(video: str, realdata: Path) -> None:
    real = [frame.pixels for frame in islice(sampled(VideoFile(realdata / video), "c"), 0, 450, 10)]
    reference = make_reference(real[:15])
    assert reference.structure is not None
    for change, alarms in CHANGES:
        assert after(real[15:], change, reference) == alarms


def test_without_calibration_only_what_changes_later_is_noticed(pictures: list[Image]) -> None:
    long = (pictures * 2)[:70]
    assert after(long, as_it_is, None) == set()
    assert after(long, moved_by(0.04), None) == set()
    state = HealthState()
    for number, picture in enumerate(long + pictures[:20]):
        shown = blurred(picture) if number >= len(long) else picture
        state = assess(number * LOOK_EVERY_S, look_at(shown), "", None, None, state)
    assert set(state.raised) == {"blurred"}


def test_another_camera_is_noticed_after_it_was_opened_anew(pictures: list[Image]) -> None:
    reference, state = make_reference(pictures[:15]), HealthState()
    other = Simulation("clutter", 4)
    for number in range(20):
        state = assess(number * LOOK_EVERY_S, look_at(pictures[number]), "", None, reference, state)
    state = opened_anew(state)
    for number in range(20, 20 + 2 * STRUCTURE_LOOKS):
        other.advance()
        state = assess(number * LOOK_EVERY_S, look_at(other.render()), "", None, reference, state)
    assert set(state.raised) == {"moved"}


def test_an_alarm_outlasts_what_keeps_it_from_being_judged(pictures: list[Image]) -> None:
    """A moved camera that is lost for a moment now and then, and whose rate is not known then, is one alarm."""
    moved, state, told = moved_by(0.05), HealthState(), []
    reference = make_reference(pictures[:16])
    for number, picture in enumerate(pictures * 3):
        before = set(state.raised)
        rate = None if number % 35 == 34 else 7.0
        if rate is None:
            state = opened_anew(state)
        state = assess(number * LOOK_EVERY_S, look_at(moved(picture)), "", rate, reference, state)
        told += sorted(before ^ set(state.raised))
    assert sorted(told) == ["moved", "slow"]


def test_a_process_that_goes_on_tells_when_an_alarm_of_the_one_before_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: list[Image]
) -> None:
    """Else it would be in the log, and in the store, for ever."""
    now_s = 0.0
    monkeypatch.setattr("mbr_live.live.capture.time.monotonic", lambda: now_s)
    for shown in ([pictures[0]] * 40, pictures):  # frozen; then others, in a new process
        with closing(CameraLog(tmp_path / "cage.camera.csv")) as log:
            health = Health("cage", log, None)
            for tick, picture in enumerate(shown * 4):
                now_s += 0.1
                health.take(Chosen(tick, tick, 0, picture, 0, SamplerState(0, tick, None), "host", 1, 0), 10.0)
    events = [(event.event, event.cause) for event in read_events(tmp_path / "cage.camera.csv")]
    assert events == [("alarm", "blind"), ("cleared", "blind")]


def test_a_picture_without_structure_is_no_reference() -> None:
    noise = np.random.default_rng(1)
    grey = [noise.integers(98, 103, (240, 320, 3), np.uint8) for _ in range(16)]
    assert make_reference(grey).structure is None


@given(st.lists(st.sampled_from([0.0, 8.0, 9.3, 9.6, 30.0]), max_size=40))
def test_alarms_come_and_go_with_patience(rates: list[float]) -> None:
    """Slow: never before ten seconds below 9 frames, and not over before five above 9.5."""
    state, look = HealthState(), Look(1.0, np.zeros((4, 4), np.uint8))
    below = above = 0
    for number, rate in enumerate(rates):
        before = "slow" in state.raised
        state = assess(number * LOOK_EVERY_S, look, "", rate, None, state)
        bad = rate < (9.5 if before else 9.0)
        below, above = (below + 1, 0) if bad else (0, above + 1)
        if "slow" in state.raised and not before:
            assert (below - 1) * LOOK_EVERY_S >= 10
        if before and "slow" not in state.raised:
            assert (above - 1) * LOOK_EVERY_S >= 5


def test_blind_is_raised_and_cleared() -> None:
    state, look = HealthState(), Look(1.0, np.zeros((4, 4), np.uint8))
    seen = []
    for number in range(12):
        dark = 2 <= number < 6
        state = assess(number * 1.0, None if dark else look, "dark" if dark else "", None, None, state)
        seen.append(dict(state.raised))
    assert [number for number, raised in enumerate(seen) if raised] == [4, 5, 6, 7, 8, 9, 10]
    assert seen[5] == {"blind": "the picture is black"}


def grey_picture(level: int, noise: int = 3, seed: int = 1) -> Image:
    random = np.random.default_rng(seed)
    return np.clip(random.integers(level - noise, level + noise + 1, (480, 640, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("picture", "why"),
    [
        (grey_picture(8), "dark"),
        (grey_picture(254), "dazzled"),
        (grey_picture(120), "flat"),
        (grey_picture(50), "flat"),
    ],
)
def test_a_picture_that_shows_nothing(picture: Image, why: str) -> None:
    blind, state = is_blind(picture, BlindState())
    assert (blind, state.why) == (True, why)


def test_a_dazzled_camera_sees_again_only_well_below() -> None:
    """Between 70 and 90 % white it depends on what was before."""
    seeing = grey_picture(120)
    seeing[:, : 640 * 2 // 10] = 30
    half = grey_picture(255)
    half[:, : 640 * 2 // 10] = 60
    blind, state = is_blind(half, BlindState())
    assert not blind
    _, state = is_blind(grey_picture(255), state)
    blind, state = is_blind(half, state)
    assert (blind, state.why) == (True, "dazzled")
    blind, state = is_blind(seeing, state)
    assert not blind


def test_a_mouse_on_an_empty_floor_is_not_nothing() -> None:
    """The smallest animal, a fifteenth of the picture, a little darker than the floor."""
    picture = grey_picture(120)
    picture[200:243, 300:343] -= 15
    assert not is_blind(picture, BlindState())[0]


def test_the_same_picture_again_and_again(pictures: list[Image]) -> None:
    state, blind = BlindState(), False
    for _ in range(FROZEN_FRAMES + 1):
        assert not blind
        blind, state = is_blind(pictures[0], state)
    assert (blind, state.why) == (True, "frozen")
    assert not is_blind(pictures[1], state)[0]


def test_no_real_picture_is_blind(realdata: Path) -> None:
    videos = sorted(path for path in realdata.rglob("*") if path.suffix in (".mp4", ".avi"))
    assert len(videos) > 10
    by_folder: dict[Path, list[Path]] = {}
    for video in videos:
        by_folder.setdefault(video.relative_to(realdata).parents[-2], []).append(video)
    for few in by_folder.values():
        for video in few[:: max(1, len(few) // 3)]:
            state = BlindState()
            for frame in islice(sampled(VideoFile(video), "c"), 40):
                blind, state = is_blind(frame.pixels, state)
                assert not blind, (video, frame.index, state.why)
