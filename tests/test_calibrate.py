"""int8 features from recordings: which frames, what they cost, when they are refused, and how to make them again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live import mbr_live

pytest.importorskip("onnxruntime", reason="training is not installed: pip install 'mbr-live[train]'")

from mbr_live.annotation.marks import Annotations
from mbr_live.bundle import Bundle, load_bundle, write_bundle
from mbr_live.drift import Histogram, Reference, bins_of, reference_of
from mbr_live.manifest import CARD, FEATURES, FEATURES_INT8, REFERENCE, TEMPORAL
from mbr_live.quantisation import calibrate as module
from mbr_live.quantisation.calibrate import (
    Cost,
    Given,
    Labelled,
    calibrate,
    choose,
    cost_of,
    largest_loss,
    read_list,
    with_int8,
)
from mbr_live.quantisation.program import given_recordings
from mbr_live.types import MbrError


@st.composite
def labelled(draw: st.DrawFn) -> Labelled:
    frames = draw(st.integers(0, 60))
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    labels = (rng.random((frames, 2)) < (0.05, 0.5)).astype(np.int8)
    numbers, light = 3 * np.arange(frames), rng.integers(0, 255, frames).astype(float)
    return Labelled(numbers, rng.random((frames, 2)), labels, light, numbers)


@given(st.lists(labelled(), min_size=1, max_size=3), st.integers(1, 100))
def test_chosen_frames_cover_behaviours_and_light(recordings: list[Labelled], count: int) -> None:
    chosen = choose(recordings, count)
    assert sum(map(len, chosen)) == min(count, sum(len(each.source_frames) for each in recordings))
    for frames, each in zip(chosen, recordings, strict=True):
        assert frames == sorted(set(frames))
        assert set(frames) <= set(each.source_frames.tolist())
    shown = [
        {
            tuple(row)
            for row, frame in zip(each.labels.tolist(), each.source_frames.tolist(), strict=True)
            if frame in kept
        }
        for each, kept in zip(recordings, chosen, strict=True)
    ]
    every = {tuple(row) for each in recordings for row in each.labels.tolist()}
    if count >= 3 * len(every):
        assert set().union(*shown) == every
    assert choose(recordings, count) == chosen


def test_cost_is_against_the_truth_where_there_is_one() -> None:
    frames = np.arange(4)
    truth = Annotations(("second",), np.array([[1], [0], [1], [-1]], np.int8))
    exact = Labelled(
        frames, np.array([[0.9, 0.9], [0.1, 0.1], [0.2, 0.8], [0, 0.99]]), np.eye(4, 2, dtype=np.int8), frames, frames
    )
    worse = Labelled(
        frames, np.array([[0.9, 0.9], [0.1, 0.85], [0.2, 0.8], [0, 0.0]]), np.zeros((4, 2), np.int8), frames, frames
    )
    cost = cost_of(("first", "second"), [Given("a", (), truth=truth)], [exact], [worse])
    assert cost.frames == 4
    assert cost.labels_differ == 0.5
    assert cost.pr_auc == {"second": (1.0, pytest.approx((1 + 2 / 3) / 2))}
    assert largest_loss(cost.pr_auc) == pytest.approx(1 / 6)
    assert (cost.untold_frames, cost.untold_differ) == (4, 0.25), "of the first nobody said anything"
    assert cost_of(("first", "second"), [Given("a", ())], [exact], [exact]) == Cost(4, 0.0, {}, 4, 0.0)


def test_a_still_whose_frame_has_no_label_is_not_scored_at_a_later_one() -> None:
    sampled = np.arange(0, 30, 3)
    stills = np.isin(np.arange(30), (0, 10, 20))  # shown by 0, 12 and 21
    truth = Annotations(("rearing",), np.repeat([[0], [1], [0]], 10, axis=0).astype(np.int8), stills)
    known = sampled[sampled != 12]
    p = np.where(known == 15, 0.0, np.where(known == 0, 0.2, 0.1))[:, None]
    said = Labelled(known, p, np.zeros((9, 1), np.int8), np.zeros(9), sampled)
    cost = cost_of(("rearing",), [Given("a", (), truth=truth)], [said], [said])
    assert cost.pr_auc == {}, "the one still of rearing has no label"


@pytest.mark.parametrize(
    "lacking", ["a behaviour of one recording", "a behaviour", "a recording", "truth that shows it"]
)
def test_what_has_no_truth_is_held_to_the_labels_of_float32(lacking: str, demo_bundle: Bundle) -> None:
    """int8 never sees rearing in the second recording; in the first it is as float32."""
    frames = np.arange(1000)
    labels = np.column_stack((frames % 10 < 3, frames % 20 < 5)).astype(np.int8)
    ruined = labels * np.array([1, 0], np.int8)
    exact, worse = (Labelled(frames, each * 0.8 + 0.1, each, np.zeros(1000), frames) for each in (labels, ruined))
    grooming = np.column_stack((labels[:, 0], np.full(1000, -1, np.int8)))
    first, second = {
        "a behaviour of one recording": (labels, grooming),
        "a behaviour": (grooming, grooming),
        "a recording": (labels, None),
        "truth that shows it": (ruined, ruined),
    }[lacking]
    names = ("grooming", "rearing")
    given_ = [
        Given(name, (), truth=None if truth is None else Annotations(names, truth))
        for name, truth in (("a", first), ("b", second))
    ]
    cost = cost_of(names, given_, [exact, exact], [exact, worse])
    with pytest.raises(MbrError, match=r"int8 labels (25\.00% of 1000|12\.50% of 2000) frames otherwise than float32"):
        module._check(demo_bundle, cost)
    module._check(demo_bundle, cost_of(names, given_, [exact, exact], [exact, exact]))


def test_the_bundle_holds_both(int8_bundle: Bundle, demo_bundle: Bundle) -> None:
    for name in (FEATURES, TEMPORAL):
        assert int8_bundle.read(name) == demo_bundle.read(name)
    text = int8_bundle.read(CARD).decode()
    assert text.startswith(demo_bundle.read(CARD).decode().rstrip("\n")), "what it said before stays"
    assert "## Features in 8-bit integers" in text and "not measured, there was no truth" in text
    assert with_int8(text, int8_bundle.manifest.int8) == text, "made again, it says so once"
    assert len(int8_bundle.read(FEATURES_INT8)) > 100_000
    card, listed = int8_bundle.manifest.int8, int8_bundle.path.parent / "frames.json"
    assert card is not None
    assert card.calibration_sha256 == hashlib.sha256(listed.read_bytes()).hexdigest()
    assert card.calibration_frames == read_list(listed).frames > 60
    assert card.compared_frames > 60
    assert 0 < card.feature_error < 0.2
    assert card.pr_auc == {} and largest_loss(card.pr_auc) is None


def test_made_again_from_its_list(int8_bundle: Bundle, demo_bundle: Bundle, box_video: Path, tmp_path: Path) -> None:
    """In place, in a bundle that has more than the demo bundle: all of it stays."""
    listed = int8_bundle.path.parent / "frames.json"
    low, high, bins = bins_of("brightness")
    seen = Histogram(low=low, high=high, counts=(5,) * bins, within=None)
    reference = Reference(recordings=("r",), measures={"brightness": seen})
    contents = {name: demo_bundle.read(name) for name in demo_bundle.manifest.files}
    whole = write_bundle(
        tmp_path / "mine", demo_bundle.manifest, {**contents, REFERENCE: reference.model_dump_json().encode()}
    )
    again = calibrate(
        whole, [Given("box.mp4", (box_video,))], whole.path, tmp_path / "list.json", again=read_list(listed)
    )
    assert again.read(FEATURES_INT8) == int8_bundle.read(FEATURES_INT8)
    assert reference_of(again) == reference
    assert (tmp_path / "list.json").read_bytes() == listed.read_bytes()


def test_a_list_of_something_else(
    int8_bundle: Bundle, demo_bundle: Bundle, clutter_video: Path, tmp_path: Path
) -> None:
    listed = read_list(int8_bundle.path.parent / "frames.json")
    with pytest.raises(MbrError, match=r"the list is of the recordings box\.mp4; those given \(c\)"):
        module._checked(listed, demo_bundle, [Given("c", (clutter_video,))])
    with pytest.raises(MbrError, match="of another feature network"):
        module._checked(listed.model_copy(update={"features_sha256": "0" * 64}), demo_bundle, [])
    for content in (b"", b"{}", b"\xff"):
        (tmp_path / "list.json").write_bytes(content)
        with pytest.raises(MbrError, match=r"list\.json: this is no list of calibration frames"):
            read_list(tmp_path / "list.json")
    with pytest.raises(MbrError, match="cannot be read"):
        read_list(tmp_path / "none.json")


def test_refused_where_it_labels_worse(
    demo_bundle: Bundle, box_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibrated on one grey of the mean colour, activations are cut off: it costs labels, and nothing is written."""
    true, grey = module.quantised, np.full((160, 160, 3), 116, np.uint8)
    monkeypatch.setattr(module, "quantised", lambda content, crops, progress: true(content, [grey], progress))
    given_ = [Given("box.mp4", (box_video,))]
    with pytest.raises(MbrError, match=r"int8 labels .* frames otherwise than float32, in .*; at most 1% is allowed"):
        calibrate(demo_bundle, given_, tmp_path / "out", tmp_path / "list.json")
    assert not list(tmp_path.iterdir())


def test_the_limits_are_those_that_are_written_down(demo_bundle: Bundle) -> None:
    module._check(
        demo_bundle, Cost(1000, 0.5, {"rearing": (0.9, 0.8951)}, 0, 0.0)
    )  # the truth says which label is right
    module._check(demo_bundle, Cost(1000, 0.5, {}, 500, 0.01))
    with pytest.raises(MbrError, match=r"loses 0\.0060 of PR-AUC \(grooming 0\.9000 -> 0\.9100, rearing"):
        module._check(demo_bundle, Cost(1000, 0.0, {"grooming": (0.9, 0.91), "rearing": (0.9, 0.894)}, 0, 0.0))
    with pytest.raises(MbrError, match=r"int8 labels 1\.10% of 500 frames"):
        module._check(demo_bundle, Cost(1000, 0.011, {}, 500, 0.011))


def test_truth_of_a_dataset(box_video: Path, clutter_video: Path, dark_video: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset.toml"
    dataset.write_text(
        f"""
name = "boxes"
summary = "two boxes"
window_px = 150
[[behaviours]]
name = "grooming"
[[behaviours]]
name = "rearing"
[[recordings]]
video = "{box_video}"
labels = "{box_video.with_name("box.truth.csv")}"
group = "one"
split = "validation"
[[recordings]]
video = "{dark_video}"
labels = "{dark_video.with_name("dark.truth.csv")}"
group = "two"
split = "train"
"""
    )
    with_truth, without = given_recordings([box_video, clutter_video], dataset)
    assert with_truth.truth is not None and with_truth.truth.behaviours == ("grooming", "rearing")
    assert without == Given("clutter.mp4", (clutter_video,), 150)
    (alone,) = given_recordings([], dataset)
    assert alone.files == (box_video,)
    with pytest.raises(MbrError, match="give recordings"):
        given_recordings([], None)


def test_from_the_command_line(demo_bundle: Bundle, box_video: Path, tmp_path: Path) -> None:
    out, lists = tmp_path / "bundle", tmp_path / "calibration"
    done = mbr_live("calibrate", "int8", demo_bundle.path, "--videos", box_video, "--out", out, "--lists", lists)
    assert done.returncode == 0, done.stderr
    assert "There was no truth: PR-AUC was not measured." in done.stdout
    assert load_bundle(out).manifest.int8 is not None
    assert [each.name for each in lists.iterdir()] == ["demo.int8.json"]
    refused = mbr_live("calibrate", "int8", demo_bundle.path, "--out", out)
    assert refused.returncode == 2 and "give recordings" in refused.stderr
