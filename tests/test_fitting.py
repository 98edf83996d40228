"""What is fitted to the validation recordings: calibration, thresholds, minimum bout and bridge."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("sklearn", reason="training is not installed: pip install 'mbr-live[train]'")

from mbr_live.datasets.dataset import read_dataset
from mbr_live.datasets.settings import BehaviourSpec
from mbr_live.evaluation import bouts, scoring
from mbr_live.manifest import Behaviour
from mbr_live.training import fitting
from mbr_live.training.fitting import Validated, labels_of, probabilities_of
from mbr_live.training.probability_calibration import Calibration, fit_calibration
from mbr_live.types import UNKNOWN, MbrError

fit = partial(fitting.fit, max_gap_frames=5)


def said(
    seed: int, frames: int, scale: float = 1.0, offset: float = 0.0
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Logits that are `scale` and `offset` away from those that mean what they say, and what was there."""
    rng = np.random.default_rng(seed)
    right = rng.normal(-1.0, 2.0, frames)
    truth = rng.random(frames) < 1 / (1 + np.exp(-right))
    return ((right - offset) / scale).astype(np.float32), truth


def stretch(seed: int, frames: int = 300, name: str = "mouse", unknown: float = 0.1) -> Validated:
    """Bouts of one behaviour, marked but for a share of the frames, and a noisy opinion of them."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 40, frames)
    truth = np.repeat(np.arange(frames) % 2, lengths)[:frames].astype(np.int8)
    logits = (3 * truth - 1.5 + rng.normal(0, 1.5, frames)).astype(np.float32)[:, None]
    marks = np.where(rng.random(frames) < unknown, UNKNOWN, truth)[:, None].astype(np.int8)
    return Validated(name, logits, marks, np.ones(frames, np.bool_))


def marked(logits: NDArray[np.floating], marks: NDArray[np.int8], judged: NDArray[np.bool_] | None = None) -> Validated:
    """One stretch of one behaviour."""
    everywhere = np.ones(len(marks), np.bool_)
    return Validated("a", logits.astype(np.float32)[:, None], marks[:, None], everywhere if judged is None else judged)


# Calibration


@pytest.mark.parametrize(("kind", "offset"), [("platt", -0.7), ("platt", 2.0), ("temperature", 0.0)])
@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
def test_calibration_undoes_what_was_done_to_the_logits(kind: str, scale: float, offset: float) -> None:
    logits, truth = said(1, 40_000, scale, offset)
    found = fit_calibration(kind, logits, truth)
    assert (found.scale, found.offset) == pytest.approx((scale, offset), abs=0.1)
    error = scoring.calibration_error(scoring.calibration(probabilities_of(logits * found.scale + found.offset), truth))
    assert error < 0.02


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 200),
    st.floats(0.1, 8.0),
    st.floats(-3.0, 3.0),
    st.sampled_from(["platt", "temperature"]),
)
def test_calibration_keeps_the_order_and_is_never_worse(
    seed: int, frames: int, scale: float, offset: float, kind: str
) -> None:
    logits, truth = said(seed, frames, scale, offset)
    found = fit_calibration(kind, logits, truth)
    if truth.all() or not truth.any():
        assert found == Calibration()
        return
    assert found.scale > 0
    assert kind == "platt" or found.offset == 0
    calibrated = found.scale * logits.astype(np.float64) + found.offset
    order = np.argsort(logits, kind="stable")
    assert np.all(np.diff(calibrated[order]) >= 0)
    # Platt's targets: what the fit minimises must not be larger than where it began.
    shown = np.count_nonzero(truth)
    target = np.where(truth, (shown + 1) / (shown + 2), 1 / (frames - shown + 2))
    entropy = [np.mean(np.logaddexp(0, each) - target * each) for each in (logits.astype(np.float64), calibrated)]
    assert entropy[1] <= entropy[0] + 1e-5


def test_a_perfect_split_does_not_become_certainty() -> None:
    found = fit_calibration("platt", np.array([-1.0, -2.0, 1.0, 2.0], np.float32), np.array([0, 0, 1, 1], bool))
    assert 0.5 < found.scale < 20 and probabilities_of(np.float32([2 * found.scale]))[0] < 0.95


# Thresholds, minimum bout and bridge

SPECS = st.builds(
    BehaviourSpec,
    name=st.just("grooming"),
    min_bout_s=st.sampled_from(["fit", 0.0, 0.5]),
    bridge_s=st.sampled_from(["fit", 0.0, 0.4]),
)


@settings(max_examples=12)
@given(SPECS, st.integers(0, 1000), st.sampled_from(["fit", "shrunk", 0.4]), st.sampled_from(["none", "platt"]))
def test_what_is_given_stays_and_what_is_fitted_is_not_worse_than_the_usual(
    spec: BehaviourSpec, seed: int, rule: str | float, kind: str
) -> None:
    stretches = [stretch(seed), stretch(seed + 1)]
    assume(all(np.any(each.truth == 1) for each in stretches))
    fitted = fit([spec], rule, kind, stretches)
    (behaviour,), (record,) = fitted.behaviours, fitted.fits
    for given_s, found_s, how in (
        (spec.min_bout_s, behaviour.min_bout_s, record.min_bout),
        (spec.bridge_s, behaviour.bridge_s, record.bridge),
    ):
        assert how == ("fit" if given_s == "fit" else "given")
        assert given_s in ("fit", found_s)
    if rule == 0.4:
        assert behaviour.enter == behaviour.exit == 0.4
    if rule == "fit":
        usual = Behaviour(
            name="grooming", enter=0.5, exit=0.5,
            min_bout_s=0.3 if spec.min_bout_s == "fit" else spec.min_bout_s,
            bridge_s=0.2 if spec.bridge_s == "fit" else spec.bridge_s,
        )  # fmt: skip
        by_bouts = "fit" in (spec.min_bout_s, spec.bridge_s)
        assert agreement(behaviour, fitted.validated, by_bouts) >= agreement(usual, fitted.validated, by_bouts) - 1e-9
    assert record.frames == sum(np.count_nonzero(each.truth != UNKNOWN) for each in stretches)
    assert fit([spec], rule, kind, stretches) is not None and fit([spec], rule, kind, stretches).fits == fitted.fits


def agreement(behaviour: Behaviour, validated: tuple[Validated, ...], by_bouts: bool) -> float:
    """As documented, written anew: F1 of frames, or its mean with the F1 of bouts at an overlap of one half."""
    labels = [labels_of(behaviour, each.probabilities[:, 0]) for each in validated]
    truth = np.concatenate([each.truth[:, 0] for each in validated])
    frames = scoring.f1(np.concatenate(labels)[truth != UNKNOWN], truth[truth != UNKNOWN] == 1) or 0.0
    if not by_bouts:
        return frames
    hits = everything = 0
    for found, each in zip(labels, validated, strict=True):
        ours, theirs = (bouts.bouts_of(x) for x in bouts.comparable(found.astype(np.int8), each.truth[:, 0], 5))
        hits += len(bouts.matched(theirs, ours, 0.5))
        everything += len(ours) + len(theirs)
    return (frames + 2 * hits / everything) / 2


def test_short_false_alarms_make_a_minimum_bout_and_short_pauses_a_bridge() -> None:
    truth = np.zeros(400, np.int8)
    logits = np.full(400, -3.0)
    for start in range(20, 400, 80):
        truth[start : start + 40] = 1
        logits[start : start + 40] = 3.0
        logits[[start + 10, start + 11, start + 25, start + 26]] = -3.0  # pauses of 0.2 s
        logits[start + 60 : start + 62] = 3.0  # a false alarm of 0.2 s
    spec = BehaviourSpec(name="rearing", min_bout_s="fit", bridge_s="fit")
    (behaviour,) = fit([spec], "fit", "none", [marked(logits, truth)]).behaviours
    assert (behaviour.min_bout_s, behaviour.bridge_s) == (0.3, 0.2)
    # Unmarked frames, whatever the model says of them, change nothing.
    hidden = np.where(np.arange(400) < 200, truth, UNKNOWN).astype(np.int8)
    noise = np.where(np.arange(400) < 200, logits, np.random.default_rng(0).normal(0, 5, 400)).astype(np.float32)
    half = fit([spec], "fit", "platt", [marked(logits[:200], truth[:200])])
    assert fit([spec], "fit", "platt", [marked(noise, hidden)]).behaviours == half.behaviours


def test_durations_are_fitted_to_bouts_also_where_single_pictures_were_judged() -> None:
    truth, logits = np.zeros(4000, np.int8), np.full(4000, -3.0)
    for start in range(100, 3900, 200):
        truth[start : start + 60] = 1
        logits[start : start + 60] = 3.0
    for still in range(0, 4000, 10):
        logits[still + 5 : still + 8] = -3.0  # pauses of 0.3 s, between the judged pictures
    spec = BehaviourSpec(name="grooming", min_bout_s="fit", bridge_s="fit")
    (behaviour,) = fit([spec], "fit", "none", [marked(logits, truth, judged=np.arange(4000) % 10 == 0)]).behaviours
    assert behaviour.bridge_s == 0.3


@pytest.mark.parametrize(("max_gap_frames", "min_bout_s"), [(2, 0.0), (3, 0.5)])
def test_durations_are_fitted_to_bouts_as_the_bundle_bridges_them(max_gap_frames: int, min_bout_s: float) -> None:
    """Of bouts that unmarked frames cut in two, a minimum bout that keeps false alarms out loses the first half."""
    truth, logits = np.zeros(4000, np.int8), np.full(4000, -3.0)
    for start in range(100, 3900, 200):
        truth[start : start + 15], truth[start + 6 : start + 9] = 1, UNKNOWN
        logits[start : start + 15] = logits[start + 100 : start + 103] = 3.0
    spec = BehaviourSpec(name="grooming", min_bout_s="fit", bridge_s=0.0)
    (behaviour,) = fitting.fit([spec], 0.5, "none", [marked(logits, truth)], max_gap_frames).behaviours
    assert behaviour.min_bout_s == min_bout_s


@pytest.mark.parametrize("mark", [0, 1, UNKNOWN])
@pytest.mark.parametrize("asked", [0.4, "fit"])
def test_where_nothing_can_be_fitted_to_all_is_as_usual(mark: int, asked: float | str) -> None:
    logits = np.random.default_rng(0).normal(-2, 1, 500)
    spec = BehaviourSpec(name="grooming", min_bout_s=asked, bridge_s=asked)
    fitted = fit([spec], "fit", "none", [marked(logits, np.full(500, mark, np.int8))])
    (behaviour,), (record,) = fitted.behaviours, fitted.fits
    assert (behaviour.enter, behaviour.exit) == (0.5, 0.5)
    assert (behaviour.min_bout_s, behaviour.bridge_s) == ((0.3, 0.2) if asked == "fit" else (0.4, 0.4))
    how = "usual" if asked == "fit" else "given"
    assert (record.thresholds, record.min_bout, record.bridge) == ("usual", how, how)


def test_of_thresholds_that_are_as_good_the_ones_with_most_room_are_taken() -> None:
    truth = (np.arange(400) // 100 % 2).astype(np.int8)
    (behaviour,) = fit([BehaviourSpec(name="g")], "fit", "none", [marked(np.where(truth, 4.0, -4.0), truth)]).behaviours
    assert (behaviour.enter, behaviour.exit) == (0.5, 0.5)


def test_scores_are_of_the_calibrated_labels() -> None:
    stretches = [stretch(5, name="a"), stretch(6, name="b")]
    fitted = fit([BehaviourSpec(name="grooming")], "fit", "platt", stretches)
    by_recording = {score.recording: score for score in fitting.scores(fitted.behaviours, fitted.validated)}
    assert set(by_recording) == {"a", "b"}
    for each in fitted.validated:
        labelled = each.truth[:, 0] != UNKNOWN
        labels = labels_of(fitted.behaviours[0], each.probabilities[:, 0])
        assert by_recording[each.recording].f1 == round(scoring.f1(labels[labelled], each.truth[labelled, 0] == 1), 4)
    (record,) = fitted.fits
    assert record.calibration == "platt" and record.calibration_error < record.calibration_error_before


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ('min_bout_s = "guess"', "behaviours 'grooming'.min_bout_s"),
        ("bridge_s = -1", "behaviours 'grooming'.bridge_s"),
        ('[training]\ncalibration = "isotonic"', "training.calibration"),
    ],
)
def test_a_rule_that_is_none_is_an_error(tmp_path: Path, line: str, where: str) -> None:
    text = f"""
name = "x"
summary = "x"
simulated = [{{ condition = "box", seed = 1, minutes = 0.1, split = "train" }}]
[[behaviours]]
name = "grooming"
{line}
"""
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(MbrError, match=where.replace(".", r"\.")):
        read_dataset(tmp_path / "x.toml")
