"""Training: from a dataset file to a bundle that runs, the same one every time."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="training is not installed: pip install 'mbr-live[train]'")

from mbr_live.batch.batch import Job, run_job  # noqa: E402
from mbr_live.bundle import Bundle, load_bundle  # noqa: E402
from mbr_live.datasets.augmentation import Augmentation, augment  # noqa: E402
from mbr_live.datasets.dataset import RENDERED_BY, Dataset, read_dataset  # noqa: E402
from mbr_live.engines.openvino_engine import OpenVinoEngine  # noqa: E402
from mbr_live.evaluation.comparison import LabelFolder  # noqa: E402
from mbr_live.evaluation.evaluate import evaluate  # noqa: E402
from mbr_live.evaluation.program import truths  # noqa: E402
from mbr_live.evaluation.scoring import average_precision, f1  # noqa: E402
from mbr_live.manifest import CARD, FEATURES, TEMPORAL  # noqa: E402
from mbr_live.training import checkpoints, curves  # noqa: E402
from mbr_live.training import train as training  # noqa: E402
from mbr_live.training.cache_files import alone  # noqa: E402
from mbr_live.training.cropping import CROPPED_BY, MEASURED_BY  # noqa: E402
from mbr_live.training.preparation import prepare, stretches  # noqa: E402
from mbr_live.training.train import train  # noqa: E402
from mbr_live.types import MbrError  # noqa: E402

TINY = """
name = "tiny"
summary = "Made by a test."
warmup_frames = 10
max_gap_s = 0.5
simulated = [
    { condition = "box", seed = 3, minutes = 0.12, split = "train" },
    { condition = "box", seed = 4, minutes = 0.12, split = "validation" },
]

[[behaviours]]
name = "grooming"

[[behaviours]]
name = "rearing"
min_bout_s = 0.5
bridge_s = 0.3

[training]
frames_per_step = 4
frame_steps = 2
sequence_frames = 20
sequences_per_step = 2
sequence_steps = 2
"""


def silent(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def reported() -> dict[str, tuple[int, int]]:
    """Units done and units in all, by the stages that training has reported."""
    return {}


@pytest.fixture(scope="module")
def trained(cache: Path, reported: dict[str, tuple[int, int]], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    def note(stage: str, done: int, total: int) -> None:
        reported[stage] = (done, total)

    folder = tmp_path_factory.mktemp("train")
    return train(written(folder / "tiny.toml", TINY), folder / "tiny", progress=note, cache=cache)


def test_bundle_runs_and_says_what_it_is(trained: Bundle) -> None:
    manifest = load_bundle(trained.path).manifest
    assert (manifest.name, manifest.behaviour_names, manifest.warmup_frames) == (
        "tiny",
        ("grooming", "rearing"),
        10,
    )
    assert (manifest.min_bout_frames, manifest.bridge_frames, manifest.max_gap_frames) == ((3, 5), (2, 3), 5)
    assert manifest.training.recordings == ("box-3 (train)", "box-4 (validation)")
    assert {(s.recording, s.behaviour) for s in manifest.training.scores} == {
        ("box-4", "grooming"),
        ("box-4", "rearing"),
    }
    card = trained.read(CARD).decode()
    assert card.startswith("# tiny\n") and "Made by a test." in card and "| box-4 | rearing |" in card
    engine = OpenVinoEngine(trained)
    features = engine.features(np.zeros((1, 160, 160, 3), np.uint8))
    logits, _ = engine.step(features, np.zeros((1, manifest.state_size), np.float32))
    assert np.isfinite(logits).all()


def test_same_seed_gives_the_same_weights_and_another_does_not(trained: Bundle, cache: Path, tmp_path: Path) -> None:
    again = train(written(tmp_path / "a.toml", TINY), tmp_path / "a", progress=silent, cache=cache)
    other_text = TINY.replace("[training]", "[training]\nseed = 2")
    other = train(written(tmp_path / "b.toml", other_text), tmp_path / "b", progress=silent, cache=cache)
    for name in (FEATURES, TEMPORAL):
        assert again.read(name) == trained.read(name) != other.read(name)


@pytest.mark.parametrize("problems", ["", '[problems]\nempty_behaviour = "ignore"\n'])
def test_a_behaviour_without_an_example_is_named(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, problems: str
) -> None:
    train(written(tmp_path / "a.toml", TINY + problems), tmp_path / "a", progress=silent, cache=cache)
    assert ("tiny: grooming is shown in no recording that is trained on" in caplog.text) == (not problems)


def test_a_training_that_was_killed_goes_on_to_the_same_weights(
    trained: Bundle, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "EVERY_STEPS", 1)
    plan = written(tmp_path / "tiny.toml", TINY)
    steps: list[tuple[str, int]] = []

    def killed_in(stage: str) -> Callable[[str, int, int], None]:
        def note(at: str, done: int, total: int) -> None:
            steps.append((at, done))
            if (at, done) == (stage, total):
                raise KeyboardInterrupt

        return note

    for stage in ("frames", "sequences"):
        with pytest.raises(KeyboardInterrupt):
            train(plan, tmp_path / "out", progress=killed_in(stage), cache=cache)
    assert not (tmp_path / "out").exists()
    steps.clear()
    again = train(plan, tmp_path / "out", progress=killed_in(""), cache=cache)
    assert [step for step in steps if step[0] in ("frames", "sequences")] == [("sequences", 2)]
    assert [again.read(name) for name in (FEATURES, TEMPORAL)] == [trained.read(name) for name in (FEATURES, TEMPORAL)]
    assert not list(cache.glob("*.checkpoints"))


@pytest.mark.parametrize("place", ["out", "logs"])
def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path: Path, place: str) -> None:
    places = {"out": tmp_path / "out", "logs": tmp_path / "logs", place: Path("/proc/nothing/at/all")}
    plan = written(tmp_path / "tiny.toml", TINY)
    with pytest.raises(MbrError, match="results cannot be written there"):
        train(plan, progress=lambda *_: pytest.fail("it has begun"), cache=tmp_path / "cache", **places)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


def test_the_same_training_twice_at_once_is_refused_and_the_first_is_left_alone(
    trained: Bundle, cache: Path, tmp_path: Path
) -> None:
    plan = written(tmp_path / "tiny.toml", TINY)
    refused: list[str] = []

    def meanwhile(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("sequences", total):
            with pytest.raises(MbrError) as refusal:
                train(plan, tmp_path / "second", progress=silent, cache=cache)
            refused.append(str(refusal.value))

    first = train(plan, tmp_path / "first", progress=meanwhile, cache=cache)
    assert refused and "the same training is under way in another process" in refused[0]
    assert [first.read(name) for name in (FEATURES, TEMPORAL)] == [trained.read(name) for name in (FEATURES, TEMPORAL)]
    assert not (tmp_path / "second").exists() and not list(cache.glob("*.lock"))


def test_what_one_has_alone_no_other_has_at_the_same_time(tmp_path: Path) -> None:
    """Also when one comes just after the file was deleted that others are waiting for."""
    inside, most = 0, 0

    def work(_: int) -> None:
        nonlocal inside, most
        for _ in range(100):
            with alone(tmp_path / "one.lock"):
                inside += 1
                most = max(most, inside)
                time.sleep(1e-4)
                inside -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert most == 1 and not (tmp_path / "one.lock").exists()


def test_learning_curves_are_written_and_change_no_weight(
    trained: Bundle, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'mbr-live[train]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(training, "_SCORED_EVERY_STEPS", 1)
    monkeypatch.setattr(curves, "HISTOGRAMS_EVERY_STEPS", 1)
    plan = written(tmp_path / "tiny.toml", TINY)
    drawn = train(plan, tmp_path / "out", progress=silent, cache=cache, logs=tmp_path / "logs")
    assert [drawn.read(name) for name in (FEATURES, TEMPORAL)] == [trained.read(name) for name in (FEATURES, TEMPORAL)]
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert {"loss/frames", "loss/sequences"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss/sequences")] == [1, 2]
    assert any(tag.startswith("sequences/") for tag in events.Tags()["histograms"])
    last = {score.behaviour: score.pr_auc for score in drawn.manifest.training.scores if score.pr_auc is not None}
    for behaviour, value in last.items():
        assert events.Scalars(f"validation PR-AUC/{behaviour}")[-1].value == pytest.approx(value, abs=1e-3)


def test_training_reports_every_stage_to_its_end(trained: Bundle, reported: dict[str, tuple[int, int]]) -> None:
    for counted in ("source frames", "features"):
        frames, of_all = reported.pop(counted)
        assert frames == of_all > 0
    assert reported == dict.fromkeys(("recordings", "frames", "sequences", "reference"), (2, 2))


def test_recordings_are_what_the_pipeline_crops(trained: Bundle, cache: Path, tmp_path: Path) -> None:
    recording = prepare(read_dataset(written(tmp_path / "tiny.toml", TINY)), cache, silent)[0]
    count = len(recording.ticks)
    assert 0 < count <= 72 and recording.ticks[0] >= 29 and np.all(np.diff(recording.ticks) > 0)
    assert recording.crops.shape == (count, 160, 160, 3) and recording.crops.dtype == np.uint8
    assert recording.truth.shape == (count, 2) and recording.truth.dtype == np.int8


def darkened(video: Path, out: Path, dark: range) -> Path:
    """The same video with the lens covered for some frames."""
    with av.open(str(video)) as source, av.open(str(out), "w") as container:
        rate = source.streams.video[0].average_rate
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
        stream.width, stream.height = source.streams.video[0].width, source.streams.video[0].height
        for number, frame in enumerate(source.decode(video=0)):
            pixels = frame.to_ndarray(format="rgb24") // (50 if number in dark else 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return out


HARD = """
name = "hard"
summary = "Dark for a while, and judged by stills."
warmup_frames = 4
simulated = [{ condition = "box", seed = 3, minutes = 0.12, split = "train" }]
recordings = [
    { video = "long.mp4", labels = "long.csv", group = "a", split = "validation" },
    { video = "short.mp4", labels = "short.csv", group = "b", split = "validation" },
]
behaviours = [{ name = "grooming" }, { name = "rearing" }]

[training]
frames_per_step = 4
frame_steps = 2
sequence_frames = 20
sequences_per_step = 2
sequence_steps = 2
"""


def test_batch_and_evaluate_find_the_scores_that_training_printed(
    trained: Bundle, cache: Path, box_video: Path, tmp_path: Path
) -> None:
    assert_scores_found(read_dataset(written(tmp_path / "tiny.toml", TINY)), trained, cache, tmp_path / "tiny")
    darkened(box_video, tmp_path / "long.mp4", range(70, 90))  # the lane is reset
    darkened(box_video, tmp_path / "short.mp4", range(70, 74))  # the features are held
    marks = np.random.default_rng(4).integers(0, 2, (24, 2))
    rows = "".join(f"{5 * n},{g},{r}\n" for n, (g, r) in enumerate(marks.tolist()) if n != 12)
    written(tmp_path / "long.csv", "source_frame,grooming,rearing\n" + rows)
    dense = "".join(f"{g},{r}\n" for g, r in np.repeat(marks, 5, axis=0).tolist())
    written(tmp_path / "short.csv", "grooming,rearing\n" + dense)
    plan = written(tmp_path / "hard.toml", HARD)
    hard = train(plan, tmp_path / "hard", progress=silent, cache=cache)
    assert {score.recording: score.frames for score in hard.manifest.training.scores} == {"long": 11, "short": 83}
    assert_scores_found(read_dataset(plan), hard, cache, tmp_path / "hard-labels")


def assert_scores_found(plan: Dataset, bundle: Bundle, cache: Path, labels: Path) -> None:
    validation = truths(plan, "validation", cache)
    for truth in validation:
        run_job(Job(truth.log_name, truth.videos), labels, bundle, OpenVinoEngine(bundle))
    names = [behaviour.name for behaviour in plan.behaviours]
    evaluation, _ = evaluate(plan.name, "validation", names, validation, [LabelFolder("batch", labels)])
    found = {each.recording: each.behaviours for each in evaluation.models[0].recordings}
    assert bundle.manifest.training.scores
    for score in bundle.manifest.training.scores:
        frames = found[score.recording][score.behaviour].frames
        assert score.frames == frames.scored
        assert (score.pr_auc is None) == (frames.pr_auc is None) and (score.f1 is None) == (frames.f1 is None)
        assert (score.pr_auc or 0.0, score.f1 or 0.0) == pytest.approx((frames.pr_auc or 0, frames.f1 or 0), abs=1e-3)


def test_a_folder_with_other_things_is_refused_before_the_work(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(MbrError, match="Cannot write a bundle"):
        train(written(tmp_path / "tiny.toml", TINY), tmp_path / "out", progress=silent, cache=cache)


def test_the_cache_knows_all_modules_that_it_depends_on() -> None:
    program = (
        "import sys, mbr_live.{}\n"
        "for name, module in sys.modules.items():\n"
        "    if name.startswith('mbr_live.') and not hasattr(module, '__path__'):\n"
        "        print(name.removeprefix('mbr_live.').replace('.', '/'))"
    )
    for name, patterns in (
        ("simulation.camera", RENDERED_BY),
        ("stages.locate", CROPPED_BY),
        ("video.sources", CROPPED_BY),
        ("stages.kinematics", MEASURED_BY),
    ):
        loaded = subprocess.check_output([sys.executable, "-c", program.format(name)], text=True).split()
        for module in set(loaded) - {"types"}:
            assert any(fnmatch(f"{module}.py", pattern) for pattern in patterns), module


# Dataset files.


def test_the_demo_dataset_is_valid() -> None:
    demo = read_dataset(Path(__file__).parents[1] / "engines" / "demo.toml")
    assert demo.name == "demo"
    assert {recording.condition for recording in demo.simulated} == {"box", "clutter", "dark"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "tiny"', 'name = "tiny', "not TOML"),
        ('name = "tiny"', "", "name: is missing"),
        ("seed = 3", "seed = -3", r"simulated 1\.seed"),
        ("seed = 3", "seed = 4", "box-4 more than once"),
        ('"validation"', '"train"', "no validation recordings"),
        ('"validation"', '"test"', "no validation recordings"),
        ("frame_steps", "frame_stepz", r"training\.frame_stepz"),
        ("[training]", "[training]\nunscored_frames = 20", "unscored_frames = 20 leaves nothing to learn from of 20"),
        (
            "[training]",
            "[training]\nunscored_frames = 6\nfine_tuning = { steps = 1, clip_frames = 6 }",
            "unscored_frames = 6 leaves nothing to learn from of 6",
        ),
        ('name = "rearing"', 'colour = "red"', r"behaviours 2\.name"),
    ],
)
def test_a_dataset_file_that_is_not_valid(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TINY
    with pytest.raises(MbrError, match=message):
        read_dataset(written(tmp_path / "tiny.toml", TINY.replace(old, new, 1)))


def test_a_dataset_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MbrError, match="can not be read"):
        read_dataset(tmp_path / "tiny.toml")


def test_a_behaviour_that_the_truth_does_not_have(cache: Path, tmp_path: Path) -> None:
    text = TINY.replace('"rearing"', '"flying"')
    plan: Dataset = read_dataset(written(tmp_path / "tiny.toml", text))
    with pytest.raises(MbrError, match="no column 'flying'"):
        prepare(plan, cache, silent)


# Parts.

tick_lists = st.lists(st.integers(0, 60), unique=True, min_size=1).map(lambda ticks: np.array(sorted(ticks)))


@given(tick_lists, st.integers(0, 6))
def test_stretches_hold_over_short_gaps_and_break_at_long_ones(ticks: np.ndarray, max_gap_frames: int) -> None:
    parts = stretches(ticks, max_gap_frames)
    known_rows = np.concatenate([part.rows[part.known] for part in parts])
    np.testing.assert_array_equal(known_rows, np.arange(len(ticks)))
    for part in parts:
        first, last = ticks[part.rows[0]], ticks[part.rows[-1]]
        assert part.known[0] and part.known[-1] and len(part.rows) == last - first + 1
        for offset, (row, known) in enumerate(zip(part.rows, part.known, strict=True)):
            assert ticks[row] <= first + offset and known == (ticks[row] == first + offset)
            assert first + offset - ticks[row] <= max_gap_frames
    for before, after in pairwise(parts):
        assert ticks[after.rows[0]] - ticks[before.rows[-1]] - 1 > max_gap_frames


def test_no_crops_make_no_stretch() -> None:
    assert stretches(np.zeros(0, np.int64), 5) == []


def test_augmentation_repeats_with_its_seed_and_differs_from_crop_to_crop() -> None:
    picture = np.random.default_rng(1).integers(60, 200, (160, 160, 3), dtype=np.uint8)
    crops = np.stack([picture] * 3)
    changed = augment(crops, Augmentation(), np.random.default_rng(5))
    assert changed.shape == crops.shape and changed.dtype == np.uint8
    np.testing.assert_array_equal(changed, augment(crops, Augmentation(), np.random.default_rng(5)))
    assert len({each.tobytes() for each in changed}) == 3


def test_augmentation_mirrors_and_adds_noise() -> None:
    still = Augmentation(turn_deg=0, zoom=0, shift_px=0, brightness=0, contrast=0, noise=0)
    picture = np.random.default_rng(1).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    seen = {augment(picture[None], still, np.random.default_rng(seed)).tobytes() for seed in range(60)}
    swapped = picture.transpose(1, 0, 2)
    expected = {
        np.ascontiguousarray(each[::a, ::b]).tobytes() for each in (picture, swapped) for a in (1, -1) for b in (1, -1)
    }
    assert seen == expected
    noisy = augment(np.full((2, 160, 160, 3), 128, np.uint8), Augmentation(noise=20), np.random.default_rng(2))
    assert noisy[0].std() > 1 and not np.array_equal(noisy[0], noisy[1])


scored = st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=30)


@given(scored)
def test_average_precision_is_its_definition(pairs: list[tuple[float, bool]]) -> None:
    probabilities, truth = np.array([p for p, _ in pairs]), np.array([t for _, t in pairs])
    expected, recall_before = 0.0, 0.0
    for level in sorted(set(probabilities), reverse=True):
        chosen = probabilities >= level
        recall = (chosen & truth).sum() / max(truth.sum(), 1)
        expected += (recall - recall_before) * (chosen & truth).sum() / chosen.sum()
        recall_before = recall
    found = average_precision(probabilities, truth)
    assert found is None if not truth.any() else found == pytest.approx(expected)


def test_scores_of_plain_cases() -> None:
    truth = np.array([False, True, True, False])
    assert average_precision(np.array([0.1, 0.9, 0.8, 0.2]), truth) == 1.0
    assert average_precision(np.full(4, 0.5), truth) == 0.5
    assert f1(truth, truth) == 1.0
    assert f1(~truth, truth) == 0.0
    assert f1(np.array([False, True, False, False]), truth) == pytest.approx(2 / 3)
    assert f1(np.zeros(4, bool), np.zeros(4, bool)) is None


def test_checkpoints_are_of_the_code_in_every_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A training that was killed is not gone on with by other code."""
    patterns: list[str] = []

    def noted(_identity: str, modules: Sequence[str]) -> str:
        patterns.extend(modules)
        return ""

    monkeypatch.setattr("mbr_live.datasets.dataset.key_of", noted)
    training._key(read_dataset(written(tmp_path / "tiny.toml", TINY)), [])
    package = Path(training.__file__).parents[1]
    found = {path.relative_to(package) for pattern in patterns for path in package.glob(pattern)}
    assert found == {path.relative_to(package) for path in package.rglob("*.py")}
