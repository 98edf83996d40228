"""What a bundle says of itself, and whether what it sees now is like what it was made for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import wasserstein_distance

torch = pytest.importorskip("torch", reason="training is not installed: pip install 'mbr-live[train]'")

from live import mbr_live, system_config  # noqa: E402

from mbr_live import drift  # noqa: E402
from mbr_live.batch.batch import Job, run_job  # noqa: E402
from mbr_live.bundle import Bundle, load_bundle, write_bundle  # noqa: E402
from mbr_live.config import Camera  # noqa: E402
from mbr_live.datasets.dataset import Dataset, read_dataset  # noqa: E402
from mbr_live.drift import Drift, Histogram, Reference, counts_of, distance, glance_at, reference_of  # noqa: E402
from mbr_live.engines.openvino_engine import OpenVinoEngine  # noqa: E402
from mbr_live.evaluation.comparison import LabelFolder  # noqa: E402
from mbr_live.evaluation.evaluate import evaluate  # noqa: E402
from mbr_live.evaluation.program import truths  # noqa: E402
from mbr_live.live.backlog import Labelled  # noqa: E402
from mbr_live.live.lane import Lane  # noqa: E402
from mbr_live.manifest import CARD, REFERENCE, TEMPORAL  # noqa: E402
from mbr_live.monitoring.watch_state import WatchedCamera  # noqa: E402
from mbr_live.monitoring.watch_words import figures_of  # noqa: E402
from mbr_live.pipeline import Pipeline, SightState  # noqa: E402
from mbr_live.sinks.run_manifest import RunManifest, read_run  # noqa: E402
from mbr_live.status import CameraStatus  # noqa: E402
from mbr_live.training.train import train, train_on  # noqa: E402
from mbr_live.types import Decision, MbrError, Status  # noqa: E402
from mbr_live.video.sources import VideoFile, sampled  # noqa: E402

KINEMATIC = """
name = "small"
summary = "Made by a test."
warmup_frames = 10
window_px = 160
simulated = [
    { condition = "box", seed = 3, minutes = 0.4, split = "train" },
    { condition = "box", seed = 4, minutes = 0.4, split = "train" },
    { condition = "box", seed = 5, minutes = 0.4, split = "validation" },
    { condition = "box", seed = 6, minutes = 0.4, split = "validation" },
]

[[behaviours]]
name = "grooming"

[[behaviours]]
name = "rearing"
min_bout_s = "fit"
bridge_s = "fit"

[model]
extractor = "none"
kinematics = "all"
temporal = { kind = "tcn", channels = 8, blocks = 2, dropout = 0.0 }

[training]
sequence_frames = 100
sequences_per_step = 4
sequence_steps = 40
sequence_learning_rate = 1e-2
calibration = "platt"
"""


def silent(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    file = tmp_path_factory.mktemp("plan") / "small.toml"
    file.write_text(KINEMATIC)
    return read_dataset(file)


@pytest.fixture(scope="module")
def bundle(plan: Dataset, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return train_on(plan, tmp_path_factory.mktemp("trained") / "small", progress=silent, cache=cache)


@pytest.fixture(scope="module")
def labels(plan: Dataset, bundle: Bundle, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("labels")
    engine = OpenVinoEngine(bundle)
    for truth in truths(plan, "validation", cache):
        run_job(Job(truth.log_name, truth.videos), out, bundle, engine)
    return out


# Counting


histograms = arrays.arrays(np.int64, 20, elements=st.integers(0, 500)).filter(lambda counts: counts.sum() > 0)


@given(histograms, histograms)
def test_the_distance_is_that_of_scipy(one: np.ndarray, other: np.ndarray) -> None:
    middles = (np.arange(20) + 0.5) / 20
    expected = wasserstein_distance(middles, middles, one, other)
    assert distance("p_grooming", one, other) == pytest.approx(expected, abs=1e-9)
    assert distance("p_grooming", one, one) == 0.0


def test_the_distance_grows_with_how_far_apart_they_are() -> None:
    at = [counts_of(drift.BRIGHTNESS, [level + 2.0] * 100) for level in (0, 40, 200)]
    assert distance(drift.BRIGHTNESS, at[0], at[1]) == 40 and distance(drift.BRIGHTNESS, at[0], at[2]) == 200


@given(st.lists(st.floats(-1.0, 300.0), min_size=1, max_size=50))
def test_one_by_one_counts_as_all_at_once(values: list[float]) -> None:
    reference = Reference(recordings=("a",), measures={})
    following = Drift(reference, [])
    for value in values:
        following._count(drift.BRIGHTNESS, value)
    assert following._counts[drift.BRIGHTNESS] == counts_of(drift.BRIGHTNESS, values).tolist()


def test_what_is_long_gone_is_forgotten_in_constant_memory() -> None:
    bright, dark = counts_of(drift.BRIGHTNESS, [200.0] * 1000), 30.0
    histogram = Histogram(low=0, high=256, counts=tuple(map(int, bright)), within=None)
    following = Drift(Reference(recordings=("a",), measures={drift.BRIGHTNESS: histogram}), [], memory_frames=2000)
    for _ in range(5000):
        following._count(drift.BRIGHTNESS, 200.0)
    assert following.drifted(following.figures()) == []
    for _ in range(3000):
        following._count(drift.BRIGHTNESS, dark)
    assert following.drifted(following.figures()) == [drift.BRIGHTNESS]
    assert sum(following._counts[drift.BRIGHTNESS]) <= 2000


def test_of_less_than_a_minute_nothing_is_said() -> None:
    histogram = Histogram(low=0, high=256, counts=(10,) * 64, within=None)
    following = Drift(Reference(recordings=("a",), measures={drift.BRIGHTNESS: histogram}), [])
    for _ in range(drift.MIN_FRAMES - 1):
        following._count(drift.BRIGHTNESS, 1.0)
    assert following.figures() == {}
    following._count(drift.BRIGHTNESS, 1.0)
    assert following.figures()[drift.BRIGHTNESS] > 1


def test_recordings_that_differ_among_themselves_allow_as_much() -> None:
    counts = tuple(map(int, counts_of(drift.BRIGHTNESS, [100.0] * 500 + [110.0] * 500)))
    for within, expected in ((None, ["brightness"]), (60.0, ["brightness"]), (70.0, [])):
        histogram = Histogram(low=0, high=256, counts=counts, within=within)
        following = Drift(Reference(recordings=("a", "b"), measures={drift.BRIGHTNESS: histogram}), [])
        for _ in range(1000):
            following._count(drift.BRIGHTNESS, 200.0)
        assert following.drifted(following.figures()) == expected


# A bundle that was trained


def test_a_calibrated_bundle_scores_in_batch_what_training_printed(
    plan: Dataset, bundle: Bundle, labels: Path, cache: Path
) -> None:
    found, _ = evaluate(
        "small", "validation", bundle.manifest.behaviour_names, truths(plan, "validation", cache),
        [LabelFolder("small", labels)],
    )  # fmt: skip
    by_name = {each.recording: each for each in found.models[0].recordings}
    assert bundle.manifest.training.scores
    for score in bundle.manifest.training.scores:
        frames = by_name[score.recording].behaviours[score.behaviour].frames
        assert (frames.pr_auc, frames.f1) == pytest.approx((score.pr_auc, score.f1), abs=2e-3), score
    for fit in bundle.manifest.training.fits:
        pooled = found.models[0].pooled.behaviours[fit.behaviour]
        assert fit.calibration == "platt" and fit.scale != 1.0
        assert (pooled.frames.f1, pooled.calibration_error) == pytest.approx((fit.f1, fit.calibration_error), abs=2e-3)


def test_the_card_says_whose_recordings_and_how_labels_are_decided(bundle: Bundle) -> None:
    training = bundle.manifest.training
    assert [(each.group, each.split, each.condition) for each in training.data] == [
        ("box-3", "train", "box"),
        ("box-4", "train", "box"),
        ("box-5", "validation", "box"),
        ("box-6", "validation", "box"),
    ]
    assert sum(each.frames for each in training.data if each.split == "train") == training.frames
    assert all(each.labelled == each.frames and sum(each.shown.values()) > 0 for each in training.data)
    assert [(fit.thresholds, fit.min_bout, fit.bridge) for fit in training.fits] == [
        ("fit", "given", "given"),
        ("fit", "fit", "fit"),
    ]
    card = bundle.read(CARD).decode()
    assert "| box-3 | box | simulated | train | 1 |" in card
    assert "| rearing | platt: " in card and "s (fit) |" in card and "s (given) |" in card


def test_the_reference_is_of_the_recordings_and_of_what_the_bundle_says(bundle: Bundle, labels: Path) -> None:
    reference = reference_of(bundle)
    assert reference is not None
    assert set(reference.measures) == {"brightness", "size", "p_grooming", "p_rearing"}
    assert reference.recordings == ("box-3", "box-4", "box-5", "box-6")
    frames = {name: sum(histogram.counts) for name, histogram in reference.measures.items()}
    data = bundle.manifest.training.data
    assert frames["brightness"] == frames["size"] == sum(each.frames for each in data)
    runs = [read_run(path) for path in sorted(labels.glob("*.run.json"))]
    assert frames["p_rearing"] == frames["p_grooming"] == sum(run.rows["ok"] for run in runs)
    # These recordings made the reference: they can not be unlike it.
    assert all(run.drift == {} for run in runs)  # of less than a minute nothing is said


def test_a_darker_recording_has_drifted_and_so_has_one_of_a_nearer_animal(
    bundle: Bundle, box_video: Path, tmp_path: Path
) -> None:
    """Twelve seconds over and over make the minute that has to be seen first."""
    with av.open(str(tmp_path / "dark.mp4"), "w") as written:
        stream = written.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        pictures = [frame.picture() // 3 for frame in VideoFile(box_video)]
        for picture in pictures * 6:
            written.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        written.mux(stream.encode())
    out = tmp_path / "out"
    done = mbr_live("batch", str(tmp_path / "dark.mp4"), "--bundle", str(bundle.path), "--out", str(out))
    assert done.returncode == 0, done.stderr
    dark = read_run(out / "dark.run.json")
    assert "brightness" in dark.drifted and "size" not in dark.drifted
    assert "dark: " in done.stderr and "unlike training" in done.stderr
    # A window of half the side: to the networks, an animal twice as large.
    job = Job("near", (tmp_path / "dark.mp4",))
    near = run_job(job, out, bundle, OpenVinoEngine(bundle), window_px=80)
    assert "size" in near.drifted


def test_following_does_not_change_a_label(bundle: Bundle, plan: Dataset, cache: Path, tmp_path: Path) -> None:
    contents = {name: bundle.read(name) for name in (TEMPORAL, CARD)}
    plain = write_bundle(tmp_path / "plain", bundle.manifest, contents)
    assert reference_of(plain) is None
    truth = truths(plan, "validation", cache)[0]
    logs = []
    for each in (plain, bundle):
        run_job(Job("a", truth.videos), tmp_path / "out", each, OpenVinoEngine(each))
        logs.append((tmp_path / "out" / "a.labels.csv").read_bytes())
    assert logs[0] == logs[1] and len(logs[0]) > 10_000


def test_a_bundle_without_a_reference_is_valid_and_one_with_a_wrong_one_is_not(bundle: Bundle, tmp_path: Path) -> None:
    contents = {name: bundle.read(name) for name in (TEMPORAL, CARD)}
    assert load_bundle(write_bundle(tmp_path / "without", bundle.manifest, contents).path).manifest.files.keys() == {
        TEMPORAL,
        CARD,
    }
    good = json.loads(bundle.read(REFERENCE))
    fewer = {**good, "measures": {"brightness": {**good["measures"]["brightness"], "counts": [1, 2]}}}
    for number, wrong in enumerate((b"{", b'{"format": 2}', json.dumps(fewer).encode())):
        written = write_bundle(tmp_path / f"wrong-{number}", bundle.manifest, {**contents, REFERENCE: wrong})
        with pytest.raises(MbrError, match=r"reference\.json is no reference.*train it anew"):
            reference_of(written)
    (
        bundle_copy := write_bundle(
            tmp_path / "changed", bundle.manifest, {**contents, REFERENCE: bundle.read(REFERENCE)}
        )
    )
    (bundle_copy.path / REFERENCE).write_bytes(bundle.read(REFERENCE).replace(b"1", b"2", 1))
    with pytest.raises(MbrError, match="changed after training"):
        load_bundle(bundle_copy.path)


def test_only_frames_that_show_the_animal_are_seen(bundle: Bundle, box_video: Path) -> None:
    reference = reference_of(bundle)
    assert reference is not None
    pipeline = Pipeline(bundle.manifest, OpenVinoEngine(bundle))
    following = Drift(reference, bundle.manifest.behaviour_names)
    following.hear([Decision("a", 0, 0, 0, Status.LOST, float("nan"), float("nan"), (), (-1, -1))])
    assert all(sum(counts) == 0 for counts in following._counts.values())
    frame = next(iter(sampled(VideoFile(box_video), "box")))
    seen = pipeline.see(frame, SightState())
    assert seen.decision.status is Status.OK
    assert glance_at(frame.pixels, seen, 160) is not None
    assert glance_at(frame.pixels, seen, None) is None
    empty = replace(frame, pixels=np.zeros_like(frame.pixels))
    assert glance_at(empty.pixels, pipeline.see(empty, SightState()), 160) is None


def test_a_live_lane_tells_and_keeps_what_is_unlike_training(bundle: Bundle, box_video: Path, tmp_path: Path) -> None:
    """Real frames, darkened, through the pipeline and the lane of the inference process."""
    reference = reference_of(bundle)
    assert reference is not None
    pipeline = Pipeline(bundle.manifest, OpenVinoEngine(bundle))
    camera = Camera.model_validate({"name": "cage", "source": {"kind": "file", "path": str(box_video)}})
    template = RunManifest(
        recording="", mode="live", exit_status="running", started="", bundle="small", bundle_sha256="", engine="",
        versions={}, sources=[],
    )  # fmt: skip
    lane = Lane(system_config(tmp_path, camera), camera, pipeline, template, reference)
    frames = [replace(frame, pixels=frame.pixels // 3) for frame in sampled(VideoFile(box_video), "cage")]
    assert lane.status(0.0).drift == {}
    for again in range(6):
        for frame in frames:
            shown = replace(frame, index=frame.index + again * len(frames))
            seen = pipeline.see(shown, lane.state.sight)
            (decision,), states = pipeline.label([seen], pipeline.features([seen]), {"cage": lane.state})
            lane.state = states["cage"]
            lane.backlog.add(Labelled(decision, None))
            assert [written.decision for written in lane.backlog.written()] == [decision]
            lane.note_drift(glance_at(shown.pixels, seen, pipeline.window_px("cage", seen.after)), decision)
    said = lane.status(0.0)
    assert "brightness" in said.drifted and set(said.drift) == set(reference.measures)
    lane.close()
    run = read_run(tmp_path / "cage.run.json")
    assert (run.drift, run.drifted) == (said.drift, said.drifted)


def test_the_dashboard_says_what_is_unlike_training() -> None:
    camera = WatchedCamera("cage", 1, 10)
    camera.figures = CameraStatus(
        name="cage",
        state="live",
        fps=10,
        last_index=5,
        rows={"ok": 5},
        drift={"brightness": 0.812},
        drifted=["brightness"],
    )
    assert "unlike training: brightness 0.81" in [text.plain for text in figures_of(camera)]
    camera.figures = camera.figures.model_copy(update={"drifted": []})
    assert not any("unlike" in text.plain for text in figures_of(camera))


def test_training_again_gives_the_same_bundle_but_for_the_date(
    plan: Dataset, bundle: Bundle, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "small.toml").write_text(KINEMATIC)
    again = train(tmp_path / "small.toml", tmp_path / "again", progress=silent, cache=cache)
    assert [again.read(name) for name in (TEMPORAL, REFERENCE)] == [bundle.read(name) for name in (TEMPORAL, REFERENCE)]
    assert again.manifest.behaviours == bundle.manifest.behaviours
