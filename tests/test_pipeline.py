"""The pipeline: causal, the same whatever shares the batch, and honest about what it does not know.

The networks are the shipped ones; the pictures are the simulator's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from mbr_live.bundle import Bundle
from mbr_live.engines.openvino_engine import OpenVinoEngine
from mbr_live.pipeline import LaneState, Pipeline
from mbr_live.simulation.camera import Simulation
from mbr_live.stages.blindness import FROZEN_FRAMES
from mbr_live.types import Decision, Frame, Status

TICK = 100_000_000


@pytest.fixture(scope="module")
def pipeline(demo_bundle: Bundle, engine: OpenVinoEngine) -> Pipeline:
    return Pipeline(demo_bundle.manifest, engine)


def film(camera: str, seed: int, count: int, condition: str = "box") -> list[Frame]:
    simulation = Simulation(condition, seed)
    frames = []
    for n in range(count):
        simulation.advance()
        frames.append(Frame(camera, n, n, n * TICK, 0, simulation.render()))
    return frames


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return film("a", 21, 150)


def labelled(pipeline: Pipeline, frames: list[Frame], state: LaneState | None = None) -> list[Decision]:
    state = state or pipeline.start()
    decisions: list[Decision] = []
    for frame in frames:
        new, states = pipeline.step([frame], {frame.camera: state})
        state = states[frame.camera]
        decisions += new
    return decisions


def as_text(decisions: list[Decision]) -> list[str]:
    return [repr(decision) for decision in decisions]  # NaN equals itself in text


def statuses(decisions: list[Decision]) -> list[str]:
    return [str(decision.status) for decision in decisions for _ in range(decision.ticks)]


def test_warm_up_then_labels(pipeline: Pipeline, frames: list[Frame]) -> None:
    decisions = labelled(pipeline, frames)
    warm = statuses(decisions).index("ok")
    assert set(statuses(decisions)[:warm]) == {"warmup"}
    assert set(statuses(decisions)[warm:]) == {"ok"}
    for decision in decisions[:warm]:
        assert decision.probabilities == ()
        assert set(decision.labels) == {-1}
    for decision in decisions[warm:]:
        assert len(decision.probabilities) == len(decision.labels) == 2
        assert set(decision.labels) <= {0, 1}


def test_what_comes_later_changes_nothing(pipeline: Pipeline, frames: list[Frame]) -> None:
    other = [*frames[:100], *(replace(frame, pixels=255 - frame.pixels) for frame in frames[100:])]
    assert as_text(labelled(pipeline, frames))[:100] == as_text(labelled(pipeline, other))[:100]


def test_lanes_do_not_touch_each_other(pipeline: Pipeline, frames: list[Frame]) -> None:
    """Four cameras in one call, one of them often absent, give what each gives alone."""
    films = {name: film(name, seed, 120, condition) for name, seed, condition in
             (("b", 5, "clutter"), ("c", 6, "dark"), ("d", 7, "box"))}  # fmt: skip
    films["a"] = frames[:120]
    films["d"] = [frame for frame in films["d"] if frame.index % 7]
    states = {name: pipeline.start() for name in films}
    together: dict[str, list[Decision]] = {name: [] for name in films}
    for index in range(120):
        due = [frame for of_camera in films.values() for frame in of_camera if frame.index == index]
        decisions, states = pipeline.step(due, states)
        for decision in decisions:
            together[decision.camera].append(decision)
    for name, of_camera in films.items():
        assert as_text(together[name]) == as_text(labelled(pipeline, of_camera))


def test_the_state_that_went_in_is_not_changed(pipeline: Pipeline, frames: list[Frame]) -> None:
    _, states = pipeline.step([frames[0]], {"a": pipeline.start()})
    for frame in frames[1:60]:
        _, states = pipeline.step([frame], states)
    first = as_text(pipeline.step([frames[60]], states)[0])
    assert as_text(pipeline.step([frames[60]], states)[0]) == first


def test_every_tick_is_accounted_for_once(pipeline: Pipeline, frames: list[Frame]) -> None:
    rng = np.random.default_rng(4)
    kept = [frame for frame in frames if rng.random() > 0.3]
    decisions = labelled(pipeline, kept)
    ticks = [decision.index + n for decision in decisions for n in range(decision.ticks)]
    assert ticks == list(range(kept[-1].index + 1))
    came = {frame.index for frame in kept}
    assert {tick for tick, status in zip(ticks, statuses(decisions), strict=True) if status != "gap"} == came
    for decision in decisions:
        assert decision.time_ns == decision.index * TICK


def gap_in(frames: list[Frame], at: int, length: int) -> list[Frame]:
    return [frame for frame in frames if not at <= frame.index < at + length]


def test_a_short_gap_is_bridged_and_a_long_one_resets(pipeline: Pipeline, frames: list[Frame]) -> None:
    longest = pipeline.manifest.max_gap_frames
    short = statuses(labelled(pipeline, gap_in(frames, 100, longest)))
    assert short[100 : 100 + longest] == ["gap"] * longest
    assert short[100 + longest :] == ["ok"] * (50 - longest)
    long = statuses(labelled(pipeline, gap_in(frames, 100, longest + 1)))
    assert long[101 + longest] == "warmup"
    again = pipeline.manifest.warmup_frames
    assert long[101 + longest :][: again + 1] == (["warmup"] * again + ["ok"])[: 49 - longest]


def test_after_a_long_gap_nothing_of_before_is_left_but_the_place(pipeline: Pipeline, frames: list[Frame]) -> None:
    cut = 60
    after = [frame for frame in frames if frame.index >= cut + 40]
    with_past = labelled(pipeline, [*frames[:cut], *after])
    assert with_past[-1].status is Status.OK
    probabilities = [decision.probabilities for decision in with_past if decision.index >= cut + 40]
    other_past = [replace(frame, index=frame.index + cut - 45) for frame in frames[:45]]
    assert len(probabilities) == len(after)
    assert labelled(pipeline, [*other_past, *after])[-1].probabilities == pytest.approx(probabilities[-1], abs=0.2)


def blank(frame: Frame, level: int = 0) -> Frame:
    noise = np.random.default_rng(frame.index).integers(0, 8, frame.pixels.shape, np.uint8)
    return replace(frame, pixels=noise + np.uint8(level))


def test_a_dark_picture_is_blind(pipeline: Pipeline, frames: list[Frame]) -> None:
    decisions = labelled(pipeline, [*frames[:80], *map(blank, frames[80:84]), *frames[84:100]])
    assert statuses(decisions)[80:84] == ["blind"] * 4
    assert all(decision.labels == (-1, -1) and decision.probabilities == () for decision in decisions[80:84])
    assert statuses(decisions)[84:] == ["ok"] * 16


def test_a_frozen_picture_becomes_blind_and_recovers(pipeline: Pipeline, frames: list[Frame]) -> None:
    frozen = [replace(frames[80], index=80 + n) for n in range(FROZEN_FRAMES + 20)]
    moving = [replace(frame, index=frame.index + FROZEN_FRAMES + 19) for frame in frames[81:]]
    found = statuses(labelled(pipeline, [*frames[:80], *frozen, *moving]))
    assert found[80 + FROZEN_FRAMES : 100 + FROZEN_FRAMES] == ["blind"] * 20
    assert "blind" not in found[: 80 + FROZEN_FRAMES]
    assert found[100 + FROZEN_FRAMES] != "blind"
    assert found[-1] == "ok"


def test_an_empty_arena_is_lost_not_guessed(pipeline: Pipeline) -> None:
    simulation = Simulation("box", 3, empty=True)
    frames = []
    for n in range(60):
        simulation.advance()
        frames.append(Frame("a", n, n, n * TICK, 0, simulation.render()))
    decisions = labelled(pipeline, frames)
    assert set(statuses(decisions)) == {"lost"}
    assert all(np.isnan(decision.x_px) for decision in decisions)


def test_a_given_window_is_used_from_the_first_frame(
    demo_bundle: Bundle, engine: OpenVinoEngine, frames: list[Frame]
) -> None:
    given = Pipeline(demo_bundle.manifest, engine, {"a": 160})
    assert statuses(labelled(given, frames[:60])).index("ok") == demo_bundle.manifest.warmup_frames


def test_a_gap_of_days_costs_no_time_and_no_memory(pipeline: Pipeline, frames: list[Frame]) -> None:
    days = 3 * 24 * 3600 * 10
    decisions = labelled(pipeline, [frames[0], replace(frames[1], index=days)])
    assert [decision.ticks for decision in decisions] == [1, days - 1, 1]


def test_ticks_never_run_backwards(pipeline: Pipeline, frames: list[Frame]) -> None:
    with pytest.raises(ValueError, match="does not lie after"):
        labelled(pipeline, [frames[5], frames[5]])


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    import cv2

    cv2.setNumThreads(1)
    yield
