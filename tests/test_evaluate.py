"""Figures of an evaluation: against their definitions, against scikit-learn, and through the program."""

from __future__ import annotations

import csv
import html
import json
import math
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live import mbr_live
from numpy.typing import NDArray

pytest.importorskip("sklearn", reason="evaluation needs the extra `train`")

from sklearn import metrics as sklearn_metrics

from mbr_live.annotation.marks import Annotations
from mbr_live.datasets.dataset import read_dataset
from mbr_live.evaluation import bouts, scoring
from mbr_live.evaluation.comparison import LabelFolder, Truth, compare
from mbr_live.evaluation.evaluate import evaluate
from mbr_live.evaluation.metrics import Evaluation, ModelScores
from mbr_live.evaluation.program import evaluate_program, truths
from mbr_live.evaluation.report import render
from mbr_live.evaluation.scoring import Counts
from mbr_live.sinks.run_manifest import RunManifest, write_run
from mbr_live.stages.decide import BoutState, end_bout, follow_bout
from mbr_live.types import UNKNOWN, MbrError
from mbr_live.video.sources import VideoFile, pictures_at

BEHAVIOURS = ("grooming", "rearing")
known = st.lists(st.sampled_from([0, 1]), min_size=1, max_size=60)
marks = st.lists(st.sampled_from([0, 1, 1, 0, UNKNOWN]), min_size=1, max_size=60)


def int8(values: list[int]) -> NDArray[np.int8]:
    return np.array(values, np.int8)


def pairs_of(lists: st.SearchStrategy[list[int]]) -> st.SearchStrategy[tuple[NDArray[np.int8], NDArray[np.int8]]]:
    """Two label sequences of one length."""
    return st.tuples(lists, lists).map(lambda two: tuple(int8(each[: min(map(len, two))]) for each in two))


# Frames


@settings(deadline=None)
@given(pairs_of(known))
def test_frame_figures_are_those_of_scikit_learn(pair: tuple[NDArray[np.int8], NDArray[np.int8]]) -> None:
    labels, truth = (each == 1 for each in pair)
    counts = Counts.of(labels, truth)
    assert counts.frames == len(truth)
    assert counts.accuracy == pytest.approx(sklearn_metrics.accuracy_score(truth, labels))
    for ours, theirs in (
        (counts.precision, sklearn_metrics.precision_score),
        (counts.recall, sklearn_metrics.recall_score),
        (counts.f1, sklearn_metrics.f1_score),
    ):
        expected = theirs(truth, labels, zero_division=math.nan)
        assert ours is None if math.isnan(expected) else ours == pytest.approx(expected)
    if len({*truth.tolist(), *labels.tolist()}) == 2:
        assert counts.kappa == pytest.approx(sklearn_metrics.cohen_kappa_score(truth, labels))


def test_calibration_of_probabilities_that_mean_what_they_say() -> None:
    probabilities = np.repeat([0.05, 0.25, 1.0], [100, 100, 100])
    truth = np.concatenate([np.arange(100) < 5, np.arange(100) < 25, np.ones(100)]).astype(bool)
    bins = scoring.calibration(probabilities, truth)
    assert [each.frames for each in bins] == [100, 100, 100]
    assert scoring.calibration_error(bins) == pytest.approx(0.0)
    assert scoring.calibration_error(scoring.calibration(1 - probabilities, truth)) > 0.5
    assert scoring.calibration_error([]) is None


def test_limits_of_agreement() -> None:
    limits = scoring.limits_of_agreement([1.0, 2.0, 3.0])
    assert limits is not None
    assert (limits.bias, limits.lower, limits.upper) == pytest.approx((2.0, 2.0 - 1.96, 2.0 + 1.96))
    assert scoring.limits_of_agreement([]) is None
    assert scoring.limits_of_agreement([1.0, 2.0]) == scoring.Limits(1.5, None, None)


def test_the_interval_of_f1_holds_it_and_needs_three_units() -> None:
    units = [Counts(50, 5, 5, 40), Counts(20, 30, 10, 40), Counts(60, 1, 1, 38), Counts(0, 0, 0, 100)]
    low, high = scoring.f1_interval(units)
    assert low < sum(units, Counts()).f1 < high
    assert (low, high) == scoring.f1_interval(units)
    assert scoring.f1_interval(units[:2]) is None
    assert scoring.f1_interval([Counts(0, 0, 0, 10)] * 3) is None


def test_a_precision_recall_curve_runs_from_the_highest_threshold() -> None:
    curve = scoring.pr_curve(np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, False, True, False]))
    assert curve[0] == (0.5, 1.0, 0.9)
    assert curve[-1][0] == 1.0
    assert scoring.pr_curve(np.array([0.9]), np.array([False])) == []


# Bouts


@settings(deadline=None)
@given(pairs_of(known), st.sampled_from([0.25, 0.5, 0.75]))
def test_matching_is_one_to_one_and_the_same_from_both_sides(
    pair: tuple[NDArray[np.int8], NDArray[np.int8]], iou: float
) -> None:
    true, found = (bouts.bouts_of(each) for each in pair)
    matched = bouts.matched(true, found, iou)
    assert len(set(matched[:, 0])) == len(set(matched[:, 1])) == len(matched) <= min(len(true), len(found))
    overlap = bouts.overlap(true, found)
    assert all(overlap[row, column] >= iou for row, column in matched)
    assert len(bouts.matched(found, true, iou)) == len(matched)
    assert len(bouts.matched(true, true, iou)) == len(true)


def test_matching_takes_as_many_pairs_as_there_can_be() -> None:
    # The second found bout overlaps the first true one most, but the second true one has no other.
    true, found = np.array([[0, 10], [12, 30]]), np.array([[0, 4], [4, 30]])
    assert bouts.matched(true, found, 0.25).tolist() == [[0, 0], [1, 1]]


@settings(deadline=None)
@given(marks, st.integers(0, 12))
def test_bouts_are_those_of_the_bout_log(labels: list[int], max_gap_frames: int) -> None:
    claimed, _ = bouts.comparable(int8(labels), np.zeros(len(labels), np.int8), max_gap_frames)
    state, expected = BoutState(), []
    for index, label in enumerate(labels):
        bout, state = follow_bout("grooming", index, label, 0.5, max_gap_frames, state)
        expected += [bout] if bout else []
    last = end_bout("grooming", state)
    expected += [last] if last else []
    assert bouts.bouts_of(claimed).tolist() == [[bout.start_frame, bout.stop_frame + 1] for bout in expected]


@settings(deadline=None)
@given(pairs_of(known))
def test_kinds_of_disagreement_are_all_of_it(pair: tuple[NDArray[np.int8], NDArray[np.int8]]) -> None:
    labels, truth = pair
    kinds = bouts.disagreements(labels, truth)
    each = (
        kinds.misaligned_boundaries,
        kinds.missed_bouts,
        kinds.false_bouts,
        kinds.skipped_breaks,
        kinds.false_breaks,
    )
    assert sum(kind.frames for kind in each) == np.count_nonzero(labels != truth)
    mirrored = bouts.disagreements(truth, labels)
    assert mirrored.missed_bouts == kinds.false_bouts
    assert mirrored.skipped_breaks == kinds.false_breaks
    assert mirrored.misaligned_boundaries == kinds.misaligned_boundaries


def test_each_kind_of_disagreement() -> None:
    truth = int8([1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 1, 1, 1, 1])
    label = int8([0, 1, 1, 1, 1, 1, 1, 0, 1, 0, 0, 0, 0, 1, 0, 1, 1])
    kinds = bouts.disagreements(label, truth)
    assert kinds.misaligned_boundaries == bouts.Disagreement(1, 1)
    assert kinds.skipped_breaks == bouts.Disagreement(1, 2)
    assert kinds.false_bouts == bouts.Disagreement(1, 1)
    assert kinds.missed_bouts == bouts.Disagreement(1, 1)
    assert kinds.false_breaks == bouts.Disagreement(1, 1)


def test_statistics_of_no_bout_are_censored() -> None:
    none = bouts.statistics(bouts.bouts_of(int8([0, 0, 0])))
    assert (none.total_s, none.count, none.latency_s, none.mean_s) == (0.0, 0, None, None)
    some = bouts.statistics(bouts.bouts_of(int8([0, 0, 1, 1, 0, 1])))
    assert (some.total_s, some.count, some.latency_s, some.mean_s) == pytest.approx((0.3, 2, 0.2, 0.15))


# Whole evaluations of logs written here


@dataclass(frozen=True)
class Written:
    """A label log and its truth, two behaviours of which the second is never shown nor found."""

    labels: list[int]
    truth: list[int]


def write_log(path: Path, labels: list[int], behaviours: tuple[str, ...] = BEHAVIOURS) -> None:
    """Tick n shows source frame n; the first behaviour has `labels`, the others are 0; UNKNOWN is warm-up."""
    header = ["frame", "source_frame", "time_ns", "status", "x_px", "y_px", *(f"p_{b}" for b in behaviours)]
    others = len(behaviours) - 1
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*header, *behaviours])
        for n, label in enumerate(labels):
            unknown = label == UNKNOWN
            p = [""] * len(behaviours) if unknown else [f"{0.1 + 0.8 * label:.6f}", *["0.010000"] * others]
            shown = [label] + [UNKNOWN if unknown else 0] * others
            status = "warmup" if unknown else "ok"
            writer.writerow([n, n, n * 100_000_000, status, "10.0", "10.0", *p, *shown])


def truth_of(name: str, first: list[int], *, group: str = "", condition: str = "", clip: bool = False) -> Truth:
    second = [UNKNOWN if mark == UNKNOWN else 0 for mark in first]
    annotations = Annotations(BEHAVIOURS, int8([first, second]).T)
    return Truth(name, name, group or name, condition, "", clip, annotations, ())


def scored(
    folder: Path, recordings: dict[str, Written], *, clip: bool = False, drawn: bool = True
) -> tuple[Evaluation, ModelScores]:
    """The evaluation of one model, which a report can always be drawn of."""
    folder.mkdir(exist_ok=True)
    for name, each in recordings.items():
        write_log(folder / f"{name}.labels.csv", each.labels)
    marked = [truth_of(name, each.truth, clip=clip) for name, each in recordings.items()]
    evaluation, compared = evaluate("made", "test", BEHAVIOURS, marked, [LabelFolder("model", folder)])
    if drawn:
        assert "<html" in render(evaluation, compared)
    return evaluation, evaluation.models[0]


def test_labels_like_the_truth_are_perfect(tmp_path: Path) -> None:
    shown = [0] * 10 + [1] * 10 + [0] * 10
    evaluation, model = scored(tmp_path, {name: Written(shown, shown) for name in ("a", "b", "c")})
    grooming, rearing = (model.pooled.behaviours[name] for name in BEHAVIOURS)
    assert grooming.frames.f1 == grooming.frames.pr_auc == grooming.frames.kappa == grooming.frames.coverage == 1.0
    assert grooming.bouts is not None
    assert [each.f1 for each in grooming.bouts.values()] == [1.0] * 3
    assert grooming.bouts["0.5"].onset.p95_ms == 0.0
    assert grooming.disagreements == bouts.Disagreements()
    assert grooming.agreement["latency_s"].limits == scoring.Limits(0.0, 0.0, 0.0)
    assert grooming.f1_interval == (1.0, 1.0)
    assert model.worst == []
    # Absent from the truth and never claimed: nothing is defined, and nothing is 0.
    assert rearing.frames.pr_auc is rearing.frames.f1 is rearing.frames.recall is None
    assert (rearing.agreement["latency_s"].compared, rearing.agreement["latency_s"].censored) == (0, 3)
    assert rearing.agreement["count"].limits.bias == 0.0
    assert model.pooled.multiclass.matrix == [[30, 0, 0], [0, 0, 0], [0, 0, 60]]
    assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation


@settings(max_examples=15, deadline=None)
@given(pairs_of(st.lists(st.sampled_from([0, 1]), min_size=20, max_size=40)), st.data())
def test_unmarked_frames_influence_nothing(
    tmp_path_factory: pytest.TempPathFactory, pair: tuple[NDArray[np.int8], NDArray[np.int8]], data: st.DataObject
) -> None:
    labels, truth = (each.tolist() for each in pair)
    start = data.draw(st.integers(0, len(truth) - 1))
    stop = data.draw(st.integers(start, len(truth)))
    truth[start:stop] = [UNKNOWN] * (stop - start)
    other = [1 - label if start <= n < stop else label for n, label in enumerate(labels)]
    folder = tmp_path_factory.mktemp("logs")
    (_, one), (_, two) = (scored(folder, {"a": Written(each, truth)}, drawn=False) for each in (labels, other))
    assert one == two
    # The same holds for what lies beyond the truth.
    _, longer = scored(folder, {"a": Written([*labels, 1, 1, 1], truth)}, drawn=False)
    assert longer.pooled.behaviours == one.pooled.behaviours


def test_unknown_labels_count_in_the_coverage_only(tmp_path: Path) -> None:
    truth = [0] * 10 + [1] * 10 + [0] * 20
    labels = [UNKNOWN] * 15 + truth[15:]
    _, model = scored(tmp_path, {"a": Written(labels, truth)})
    grooming = model.pooled.behaviours["grooming"]
    assert grooming.frames.coverage == pytest.approx(25 / 40)
    assert grooming.frames.f1 == 1.0
    assert (grooming.bouts["0.5"].true, grooming.bouts["0.5"].matched) == (1, 1)
    assert model.pooled.multiclass.unknown == [5, 0, 10]


@pytest.mark.parametrize(
    ("truth", "labels", "bout"),
    [
        ([1] * 15 + [0] * 5, [UNKNOWN] * 5 + [1] * 10 + [0] * 5, [5, 15]),  # a short warm-up
        ([0] * 5 + [1] * 10 + [0] * 5, [0] * 5 + [UNKNOWN] + [1] * 9 + [0] * 5, [6, 15]),  # a frame lost at the onset
        ([0] * 5 + [1] * 10 + [0] * 5, [0] * 5 + [1] * 8 + [UNKNOWN] * 3 + [0] * 4, [5, 13]),  # and at the offset
        ([0] * 5 + [1] * 10 + [0] * 5, [0] * 5 + [1] * 3 + [UNKNOWN] * 3 + [1] * 4 + [0] * 5, [5, 15]),  # bridged
    ],
)
def test_what_no_label_covers_is_held_against_neither_side(
    truth: list[int], labels: list[int], bout: list[int]
) -> None:
    claimed, expected = (bouts.bouts_of(each).tolist() for each in bouts.comparable(int8(labels), int8(truth), 5))
    assert claimed == expected == [bout]


@pytest.mark.parametrize(("max_gap_frames", "found"), [(2, 2), (3, 1), (None, 1)])
def test_bouts_go_on_over_what_the_bundle_of_the_log_bridges(
    tmp_path: Path, max_gap_frames: int | None, found: int
) -> None:
    labels = [0] * 5 + [1] * 6 + [UNKNOWN] * 3 + [1] * 6 + [0] * 5
    folder = write_labels_of(tmp_path / "model", {"a": labels}, True, max_gap_frames)
    evaluation, _ = evaluate("made", "test", BEHAVIOURS, [truth_of("a", [0] * 5 + [1] * 15 + [0] * 5)], [folder])
    at_half = evaluation.models[0].pooled.behaviours["grooming"].bouts["0.5"]
    assert (at_half.true, at_half.found, at_half.matched) == (found, found, found)


def test_nothing_known_at_all(tmp_path: Path) -> None:
    _, model = scored(tmp_path, {"a": Written([UNKNOWN] * 30, [0] * 10 + [1] * 20)})
    grooming = model.pooled.behaviours["grooming"]
    assert (grooming.frames.scored, grooming.frames.coverage) == (0, 0.0)
    assert grooming.frames.f1 is grooming.frames.accuracy is grooming.frames.pr_auc is None
    assert grooming.bouts["0.5"].true == 0
    assert grooming.calibration_error is None


def test_a_tick_without_a_frame_takes_the_mark_before_it(tmp_path: Path) -> None:
    truth = [0] * 10 + [1] * 10
    write_log(tmp_path / "a.labels.csv", [0] * 10 + [1] * 5 + [UNKNOWN] * 2 + [1] * 3)
    log = (tmp_path / "a.labels.csv").read_text()
    for tick in (15, 16):
        log = log.replace(f"\n{tick},{tick},", f"\n{tick},-1,")
    (tmp_path / "a.labels.csv").write_text(log)
    evaluation, _ = evaluate("made", "test", BEHAVIOURS, [truth_of("a", truth)], [LabelFolder("model", tmp_path)])
    grooming = evaluation.models[0].recordings[0].behaviours["grooming"]
    assert grooming.frames.coverage == pytest.approx(0.9)
    assert (grooming.bouts["0.75"].true, grooming.bouts["0.75"].matched) == (1, 1)
    assert grooming.truth.total_s == grooming.labels.total_s == 1.0


def test_onset_errors_are_signed_and_in_milliseconds(tmp_path: Path) -> None:
    truth, labels = [0] * 10 + [1] * 20 + [0] * 10, [0] * 13 + [1] * 16 + [0] * 11
    _, model = scored(tmp_path, {"a": Written(labels, truth)})
    at = model.pooled.behaviours["grooming"].bouts["0.5"]
    assert (at.onset.median_ms, at.onset.p95_ms) == (300.0, 300.0)
    assert (at.offset.median_ms, at.offset.p95_ms) == (-100.0, 100.0)
    moments = [(each.kind, each.start, each.stop) for each in model.worst]
    assert moments == [("missed", 10, 13), ("missed", 29, 30)]


def test_conditions_and_groups_are_scored_apart(tmp_path: Path) -> None:
    shown = [0] * 5 + [1] * 5
    marked = [
        truth_of("a", shown, group="mouse1", condition="box"),
        truth_of("b", shown, group="mouse1", condition="dark"),
        truth_of("c", shown, group="mouse2", condition="dark"),
    ]
    write_log(tmp_path / "a.labels.csv", shown)
    write_log(tmp_path / "b.labels.csv", shown)
    write_log(tmp_path / "c.labels.csv", [0] * 10)
    evaluation, _ = evaluate("made", "test", BEHAVIOURS, marked, [LabelFolder("model", tmp_path)])
    sets = evaluation.models[0].sets
    assert set(sets) == {"condition", "group"}
    recall = {name: each.behaviours["grooming"].frames.recall for name, each in sets["group"].items()}
    assert recall == {"mouse1": 1.0, "mouse2": 0.0}
    assert sets["condition"]["dark"].behaviours["grooming"].frames.recall == 0.5
    spread = evaluation.models[0].pooled.behaviours["grooming"].spread["f1"]
    assert (spread.median, spread.worst, spread.worst_recording) == (1.0, 0.0, "c")


def test_judged_stills_are_scored_and_what_is_held_beside_them(tmp_path: Path) -> None:
    truth = [0] * 6 + [1] * 6 + [0] * 6
    labels = [0] * 6 + [1, 1, 0, 0, 0, 0] + [0] * 6
    write_log(tmp_path / "a.labels.csv", labels)
    write_log(tmp_path / "b.labels.csv", [0] * 4)
    stills = np.isin(np.arange(len(truth)), [0, 6, 12])
    marked = [
        replace(truth_of("a", truth), annotations=Annotations(BEHAVIOURS, int8([truth, [0] * 18]).T, stills)),
        truth_of("b", [1] * 4),
    ]
    evaluation, compared = evaluate("made", "test", BEHAVIOURS, marked, [LabelFolder("model", tmp_path)])
    model = evaluation.models[0]
    first, second = (each.behaviours["grooming"] for each in model.recordings)
    assert (first.frames.counts, first.held.counts) == (Counts(1, 0, 0, 2), Counts(2, 0, 4, 12))
    assert (second.frames.counts, second.held) == (Counts(0, 0, 4, 0), None)
    pooled = model.pooled.behaviours["grooming"]
    assert (pooled.frames.counts, pooled.held.counts) == (Counts(1, 0, 4, 2), Counts(2, 0, 8, 12))
    assert pooled.bouts["0.25"].matched == 1 and pooled.bouts["0.5"].matched == 0
    assert [each.stills for each in model.recordings] == [3, None] and model.pooled.stills == 3
    assert sum(map(sum, model.pooled.multiclass.matrix)) == 7
    page = render(evaluation, compared)
    assert "their 3 judged stills" in page and page.count("<small>held</small>") == 6


def test_without_stills_nothing_is_said_of_them(tmp_path: Path) -> None:
    evaluation, model = scored(tmp_path, {"a": Written([0, 1], [0, 1])})
    assert model.pooled.stills is model.recordings[0].stills is model.pooled.behaviours["grooming"].held is None
    assert "still" not in render(evaluation, [[compare(tmp_path / "a.labels.csv", truth_of("a", [0, 1]))]])


def test_clips_are_labelled_as_a_whole(tmp_path: Path) -> None:
    _, model = scored(
        tmp_path,
        {
            "found": Written([UNKNOWN, 1, 1, 0], [1] * 4),
            "missed": Written([UNKNOWN, 0, 0, 0], [1] * 4),
            "rest": Written([0, 0, 0, 0], [0] * 4),
            "unknown": Written([UNKNOWN] * 4, [1] * 4),
        },
        clip=True,
    )
    clips = model.clips
    assert (clips.clips, clips.unknown) == (4, 1)
    grooming = clips.behaviours["grooming"]
    assert (grooming.counts, grooming.coverage) == (Counts(1, 0, 1, 1), 0.75)
    assert clips.multiclass.classes == [*BEHAVIOURS, "none"]
    assert clips.multiclass.matrix == [[1, 0, 1], [0, 0, 0], [0, 0, 1]]
    assert clips.multiclass.unknown == [1, 0, 0]
    assert clips.results[-1].labels is None
    assert model.recordings == []
    assert model.pooled.behaviours["grooming"].bouts is None


@pytest.mark.parametrize(
    ("behaviours", "said"),
    [(("licking", "rearing"), "grooming is missing"), (("rearing",), "grooming is missing")],
)
def test_logs_of_other_behaviours_are_refused(tmp_path: Path, behaviours: tuple[str, ...], said: str) -> None:
    write_log(tmp_path / "a.labels.csv", [0, 1], behaviours)
    with pytest.raises(MbrError, match=said):
        evaluate("made", "test", BEHAVIOURS, [truth_of("a", [0, 1])], [LabelFolder("model", tmp_path)])


def test_behaviours_that_are_not_marked_are_left_out_and_named(tmp_path: Path) -> None:
    write_log(tmp_path / "a.labels.csv", [0, 1], ("grooming", "digging", "rearing"))
    evaluation, _ = evaluate("made", "test", BEHAVIOURS, [truth_of("a", [0, 1])], [LabelFolder("model", tmp_path)])
    assert "digging" in evaluation.models[0].notes[0]


def test_a_log_that_ends_early_is_said(tmp_path: Path) -> None:
    _, model = scored(tmp_path, {"a": Written([0] * 50, [0] * 100)})
    assert "end early in a (40%)" in model.notes[0]


def test_missing_and_damaged_logs_are_named(tmp_path: Path) -> None:
    truth = truth_of("a", [0, 1, 0])
    with pytest.raises(MbrError, match=r"no label log of a.*--split"):
        evaluate("made", "test", BEHAVIOURS, [truth], [LabelFolder("model", tmp_path)])
    write_log(tmp_path / "a.labels.csv", [0, 1, 0])
    log = (tmp_path / "a.labels.csv").read_text().splitlines(keepends=True)
    (tmp_path / "a.labels.csv").write_text("".join(log[:2] + log[3:]))
    with pytest.raises(MbrError, match="found tick 2 after tick 0"):
        evaluate("made", "test", BEHAVIOURS, [truth], [LabelFolder("model", tmp_path)])
    (tmp_path / "a.labels.csv").write_text(log[0])
    with pytest.raises(MbrError, match="found no rows"):
        evaluate("made", "test", BEHAVIOURS, [truth], [LabelFolder("model", tmp_path)])


@pytest.mark.parametrize(
    ("labels", "out", "message"),
    [
        ("nosuch", "out", r"--labels .*nosuch: there is no such folder"),
        (".", "a file", "results cannot be written there .*it is a file"),
        (".", "/proc/out", "results cannot be written there"),
    ],
)
def test_folders_are_looked_at_before_the_truth(tmp_path: Path, labels: str, out: str, message: str) -> None:
    (tmp_path / "a file").write_text("")
    with pytest.raises(MbrError, match=message):
        evaluate_program([tmp_path / labels], [], tmp_path / "not looked at.toml", tmp_path / out)


# A causal model beside one that looks ahead


def write_labels_of(
    folder: Path, logs: dict[str, list[int]], causal: bool | None, max_gap_frames: int | None = None
) -> LabelFolder:
    folder.mkdir()
    for name, labels in logs.items():
        write_log(folder / f"{name}.labels.csv", labels)
        if causal is not None:
            run = RunManifest(
                recording=name, mode="batch", exit_status="complete", started="", bundle="b", bundle_sha256="",
                causal=causal, max_gap_frames=max_gap_frames, engine="", versions={}, sources=[],
            )  # fmt: skip
            write_run(folder / f"{name}.run.json", run)
    return LabelFolder(folder.name, folder)


def test_what_not_looking_ahead_costs(tmp_path: Path) -> None:
    """Half a second late, against labels like the truth."""
    shown = ([0] * 20 + [1] * 20) * 2 + [0] * 20
    late = [0] * 5 + shown[:-5]
    truth = [truth_of(name, shown) for name in "abc"]
    folders = [
        write_labels_of(tmp_path / "causal", dict.fromkeys("abc", late), True),
        write_labels_of(tmp_path / "ahead", dict.fromkeys("abc", shown), False),
        write_labels_of(tmp_path / "nobody-knows", dict.fromkeys("abc", shown), None),
    ]
    evaluation, compared = evaluate("made", "test", BEHAVIOURS, truth, folders)
    assert [model.causal for model in evaluation.models] == [True, False, None]
    grooming, rearing = evaluation.lookahead
    assert (grooming.causal, grooming.ahead, grooming.behaviour) == ("causal", "ahead", "grooming")
    assert grooming.f1 == pytest.approx(1 - 0.75) and grooming.f1_interval == pytest.approx((0.25, 0.25))
    assert (grooming.bout_f1, grooming.onset_ms) == (0.0, 500.0)
    assert rearing.f1 is None and rearing.onset_ms is None
    page = render(evaluation, compared)
    assert "What does not looking ahead cost?" in page and "+0.250 to +0.250" in page.replace("</small>", "").replace(
        "<small>", ""
    )
    alone, _ = evaluate("made", "test", BEHAVIOURS, truth, [folders[0], folders[2]])
    assert alone.lookahead == []
    assert "What does not looking ahead cost?" not in render(*evaluate("made", "test", BEHAVIOURS, truth, folders[:1]))


def test_models_that_label_other_frames_are_held_against_each_other_where_both_do(tmp_path: Path) -> None:
    """The very same labels, but for a warm-up in which the causal model is wrong and an end that only one log has."""
    shown = [0, 1] * 60
    wrong = [1, 0] * 30 + shown[60:]
    truth = [truth_of(name, shown) for name in "abc"]
    folders = [
        write_labels_of(tmp_path / "causal", dict.fromkeys("abc", wrong[:110]), True),
        write_labels_of(tmp_path / "ahead", dict.fromkeys("abc", [UNKNOWN] * 60 + wrong[60:]), False),
    ]
    evaluation, _ = evaluate("made", "test", BEHAVIOURS, truth, folders)
    assert [model.pooled.behaviours["grooming"].frames.f1 for model in evaluation.models] == [pytest.approx(5 / 11), 1]
    grooming = evaluation.lookahead[0]
    assert (grooming.f1, grooming.f1_interval, grooming.pr_auc) == (0.0, (0.0, 0.0), 0.0)
    assert (grooming.bout_f1, grooming.onset_ms) == (0.0, 0.0)


def test_one_log_that_looks_ahead_makes_a_model_that_does(tmp_path: Path) -> None:
    folder = write_labels_of(tmp_path / "mixed", {"a": [0, 1]}, True)
    write_labels_of(tmp_path / "other", {"b": [0, 1]}, False)
    for file in (tmp_path / "other").iterdir():
        shutil.copy(file, folder.folder)
    evaluation, _ = evaluate("made", "test", BEHAVIOURS, [truth_of("a", [0, 1]), truth_of("b", [0, 1])], [folder])
    assert evaluation.models[0].causal is False


@given(st.lists(st.tuples(*[st.integers(0, 50)] * 4), min_size=3, max_size=8))
def test_the_gain_of_a_model_over_itself_is_nought(counts: list[tuple[int, int, int, int]]) -> None:
    units = [Counts(*each) for each in counts]
    interval = scoring.f1_gain_interval([(unit, unit) for unit in units])
    assert interval in ((0.0, 0.0), None)
    assert scoring.f1_gain_interval([(units[0], units[0])] * 2) is None


# The program, on a real run

DATASET = """
name = "held-out"
summary = "Made for this test."
behaviours = [{ name = "grooming" }, { name = "rearing" }]
simulated = [
  { condition = "box", seed = 1, minutes = 1, split = "train" },
  { condition = "box", seed = 11, minutes = 0.4, split = "validation" },
]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset file, and with labels/ of its held-out recording by the demo model."""
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "dataset.toml").write_text(DATASET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        (truth,) = truths(read_dataset(folder / "dataset.toml"), "validation")
        shutil.copy(truth.videos[0], folder / "box-11.mp4")
        done = mbr_live("batch", folder / "box-11.mp4", "--out", folder / "labels")
        assert done.returncode == 0, done.stderr
        arguments = ("--truth", folder / "dataset.toml", "--out", folder / "report")
        shutil.copytree(folder / "labels", folder / "again")
        done = mbr_live("evaluate", "--labels", folder / "labels", "--labels", folder / "again", *arguments)
        assert done.returncode == 0, done.stderr
    return folder


class _Page(HTMLParser):
    """Every address that a page would load, its balance of tags and its headings."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.headings: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loaded += [given[key] or "" for key in ("src", "href") if key in given]
        if tag == "h2":
            self.headings.append(given["id"] or "")
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_program_scores_a_real_run(run: Path) -> None:
    evaluation = Evaluation.model_validate(json.loads((run / "report" / "metrics.json").read_text()))
    assert [model.name for model in evaluation.models] == ["labels", "again"]
    first, second = evaluation.models
    assert first.pooled == second.pooled
    assert [each.recording for each in first.recordings] == ["box-11"]
    assert first.recordings[0].ticks == 240
    assert first.pooled.behaviours["grooming"].frames.f1 > 0.8
    assert first.worst


def test_the_report_is_one_page_that_loads_nothing(run: Path) -> None:
    text = (run / "report" / "report.html").read_text()
    page = _Page(text)
    assert page.open == []
    assert all(address.startswith(("#", "data:")) for address in page.loaded)
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", text)
    assert page.headings[:4] == ["summary", "frames", "bouts", "agreement"]
    assert "data:image/jpeg" in text


USED = """
<script>
const plot = document.querySelector(".plot"), bars = plot.querySelector("svg.bars"), said = [];
const view = () => said.push(bars.getAttribute("viewBox").split(" ").map(Number));
const at = (kind, share) => plot.dispatchEvent(new PointerEvent(kind, {
  pointerId: 1, clientX: plot.getBoundingClientRect().left + share * plot.clientWidth, bubbles: true }));
plot.setPointerCapture = () => {};
view();
plot.dispatchEvent(new WheelEvent("wheel", { deltaY: -100, cancelable: true })); view();
plot.focus();
plot.dispatchEvent(new KeyboardEvent("keydown", { key: "+" })); view();
at("pointerdown", 0.5); at("pointermove", 0.25); at("pointerup", 0.25); view();
plot.dispatchEvent(new MouseEvent("dblclick")); view();
document.querySelector("a[data-start]").click();
said.push([...document.querySelectorAll(".bars")].some((each) => each.viewBox.baseVal.width < 240));
const table = document.querySelector("[data-behaviour=grooming] table.sortable");
table.tHead.rows[0].cells[2].click();
table.tHead.rows[0].cells[2].click();
said.push([...table.tBodies[0].rows].map((row) => row.cells[2].textContent));
document.body.dataset.said = JSON.stringify(said);
</script>
"""


def test_the_report_works_in_a_browser(run: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here (Debian: apt-get install chromium)")
    page = run / "used.html"
    page.write_text((run / "report" / "report.html").read_text().replace("</body>", USED + "</body>"))
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    profile = f"--user-data-dir={run / 'browser'}"
    done = subprocess.run([*command, profile, page.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    assert "CONSOLE" not in done.stderr
    assert '<svg class="time"><line' in done.stdout, "the script drew no axis"
    (said,) = re.findall(r'data-said="([^"]*)"', done.stdout)
    whole, unfocused, zoomed, dragged, back, moment, models = json.loads(html.unescape(said))
    assert [whole[0], whole[2]] == [0, 240]
    assert unfocused == whole, "the wheel must scroll the page until the reader has chosen a chart"
    assert [zoomed[0], zoomed[2]] == [60, 120]
    assert [dragged[0], dragged[2]] == pytest.approx([90, 120], abs=0.5)
    assert back == whole
    assert moment
    assert models == ["labels", "again"]


def test_pictures_are_found_by_their_time(clutter_video: Path) -> None:
    """Jumping by key frames gives what decoding everything gives."""
    all_of = {frame.time_ns: frame.picture() for frame in VideoFile(clutter_video)}
    times = list(all_of)
    wanted = [times[0], times[7], times[8], times[-40], times[-1]]
    found = pictures_at(clutter_video, [*wanted, times[3] + 1])
    assert sorted(found) == wanted
    assert all(np.array_equal(found[time_ns], all_of[time_ns]) for time_ns in wanted)


def test_a_video_that_is_gone_is_a_note(run: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(run / "cache", cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        (truth,) = truths(read_dataset(run / "dataset.toml"), "validation")
    truth.videos[0].unlink()
    evaluation, compared = evaluate("held-out", "test", BEHAVIOURS, [truth], [LabelFolder("model", run / "labels")])
    page = render(evaluation, compared)
    assert "there is no such file" in page
    assert "data:image/jpeg" not in page


def test_all_recordings_can_be_scored_and_what_is_left_out_is_said(run: Path, tmp_path: Path) -> None:
    labels = shutil.copytree(run / "labels", tmp_path / "labels")
    others = [spec.log_name for spec in read_dataset(run / "dataset.toml").all_recordings() if spec.split == "train"]
    (log,) = labels.glob("*.labels.csv")
    for name in others:
        shutil.copy(log, labels / f"{name}.labels.csv")
    given = ("evaluate", "--labels", labels, "--truth", run / "dataset.toml", "--out", tmp_path / "report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(run / "cache"))
        one, every = mbr_live(*given), mbr_live(*given, "--split", "all")
    assert "scored: recordings of validation, 1; not scored: 1 of train (--split)" in one.stdout
    assert "scored: all recordings, 2" in every.stdout


def test_what_the_program_refuses(run: Path) -> None:
    done = mbr_live("evaluate", "--labels", run, "--truth", run / "no.toml", "--out", run / "other")
    assert (done.returncode, "can not be read" in done.stderr) == (2, True)
    for labels, names, split, said in (
        (["labels"], ["a", "b"], None, "1 --labels and 2 --name"),
        (["labels", "labels"], [], None, "names several folders"),
        (["labels"], [], "test", "it has train, validation"),
    ):
        folders = [run / each for each in labels]
        with pytest.raises(MbrError, match=said):
            evaluate_program(folders, names, run / "dataset.toml", run / "other", split=split)
    assert not (run / "other").exists()
