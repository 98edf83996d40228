"""Published networks as extractors: their weights, their graphs, and training on them to a bundle that runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training is not installed: pip install 'mbr-live[train]'")
timm = pytest.importorskip("timm", reason="training is not installed: pip install 'mbr-live[train]'")

from mbr_live.batch.batch import Job, run_job  # noqa: E402
from mbr_live.bundle import Bundle, load_bundle  # noqa: E402
from mbr_live.datasets.augmentation import RecordingAugmentation, drawn_change  # noqa: E402
from mbr_live.datasets.dataset import Dataset, read_dataset  # noqa: E402
from mbr_live.datasets.extractor_config import PictureSettings  # noqa: E402
from mbr_live.datasets.training_config import FineTuning  # noqa: E402
from mbr_live.engines.openvino_engine import OpenVinoEngine  # noqa: E402
from mbr_live.evaluation.comparison import LabelFolder  # noqa: E402
from mbr_live.evaluation.evaluate import evaluate  # noqa: E402
from mbr_live.evaluation.program import truths  # noqa: E402
from mbr_live.manifest import FEATURES, TEMPORAL  # noqa: E402
from mbr_live.pipeline import Pipeline  # noqa: E402
from mbr_live.training import checkpoints, extraction  # noqa: E402
from mbr_live.training.cache_files import features_file  # noqa: E402
from mbr_live.training.crossvalidate import _hash_of_sources  # noqa: E402
from mbr_live.training.curves import Curves  # noqa: E402
from mbr_live.training.export import write_untaught  # noqa: E402
from mbr_live.training.extractors import PUBLISHED, build_extractor  # noqa: E402
from mbr_live.training.fine_tuning import fine_tune  # noqa: E402
from mbr_live.training.learning import Best  # noqa: E402
from mbr_live.training.lessons import class_weights, copies_of, lesson_of  # noqa: E402
from mbr_live.training.models import Trunk, TrunkConfig  # noqa: E402
from mbr_live.training.networks import temporal_of  # noqa: E402
from mbr_live.training.preparation import crops_of, prepare  # noqa: E402
from mbr_live.training.train import train  # noqa: E402
from mbr_live.training.validation import Validation  # noqa: E402
from mbr_live.types import MbrError  # noqa: E402
from mbr_live.video.sources import VideoFile, sampled  # noqa: E402

FROZEN = """
name = "frozen"
summary = "Made by a test."
warmup_frames = 10
simulated = [
    { condition = "box", seed = 3, minutes = 0.12, split = "train" },
    { condition = "box", seed = 4, minutes = 0.12, split = "validation" },
]
behaviours = [{ name = "grooming" }, { name = "rearing" }]

[model]
extractor = "resnet18"
weights = "resnet18.pth"
features = "maximum"
kinematics = "all"
behaviours = "separate"

[training]
frames_per_step = 4
frame_steps = 2
sequence_frames = 20
sequences_per_step = 2
sequence_steps = 4
class_weights = "balanced"
recording_augmentation = { copies = 1 }
"""
SILHOUETTE = (
    FROZEN.replace('"frozen"', '"silhouettes"')
    .replace('weights = "resnet18.pth"', 'weights = "none"\ncrop = "silhouette"\nresize_px = 96')
    .replace('kinematics = "all"\nbehaviours = "separate"', "ensemble = 2")
    .replace('features = "maximum"\n', "")
    .replace(
        "recording_augmentation = { copies = 1 }", "fine_tuning = { steps = 2, clip_frames = 6, clips_per_step = 1 }"
    )
)
STAGES = ("frames", "features", "sequences", "fine-tuning")


def silent(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("mbr_live.training.train.THREADS", 1)  # on a busy machine two wait for each other
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset files, and a file of random weights of the right shapes beside them."""
    folder = tmp_path_factory.mktemp("extractors")
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet18.tv_in1k").state_dict(), folder / "resnet18.pth")
    (folder / "frozen.toml").write_text(FROZEN, encoding="utf-8")
    (folder / "silhouettes.toml").write_text(SILHOUETTE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def cache(folder: Path) -> Path:
    return folder / "cache"


def stopped_at(stage: str, wanted: int, seen: list[tuple[str, int]]) -> Callable[[str, int, int], None]:
    """Progress that is interrupted once."""

    def note(at: str, done: int, total: int) -> None:
        silent(at, done, total)
        seen.append((at, done))
        if at == stage and done >= wanted:
            raise KeyboardInterrupt

    return note


def networks(bundle: Bundle) -> list[bytes]:
    return [bundle.read(name) for name in (FEATURES, TEMPORAL)]


# Weights.


def settings(**given: object) -> PictureSettings:
    return PictureSettings.model_validate({"extractor": "resnet18", "weights": "x", **given})


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_file_are_those_of_the_network(folder: Path, tmp_path: Path, suffix: str) -> None:
    from safetensors.torch import save_file

    weights = torch.load(folder / "resnet18.pth", weights_only=True)
    old = {name: tensor for name, tensor in weights.items() if "num_batches" not in name}  # as torchvision's oldest are
    file = tmp_path / f"weights{suffix}"
    torch.save(old, file) if suffix == ".pth" else save_file(old, file)
    extractor = build_extractor(settings(), file)
    assert extractor is not None
    crops = torch.randint(0, 256, (2, 160, 160, 3), dtype=torch.uint8)
    whole = timm.create_model("resnet18.tv_in1k")
    whole.load_state_dict(weights)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        pictures = ((crops / 255.0 - mean) / std).permute(0, 3, 1, 2)
        expected = whole.eval().forward_head(whole.forward_features(pictures), pre_logits=True)
        torch.testing.assert_close(extractor.eval()(crops), expected, atol=1e-4, rtol=1e-4)


def broken(weights: dict[str, torch.Tensor], how: str) -> object:
    first = "layer1.0.conv1.weight"
    match how:
        case "lacks":
            return {name: tensor for name, tensor in weights.items() if not name.startswith("layer4.1")}
        case "shape":
            return {**weights, first: weights[first][:1]}
        case "stranger":
            return {**weights, "layer9.weight": torch.zeros(1)}
        case "nan":
            return {**weights, first: weights[first] * float("nan")}
        case "head":
            return {"fc.weight": torch.zeros(2, 2)}
        case _:
            return {"epoch": 3, "state_dict": weights}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("lacks", r"lack layer4\.1\.conv1\.weight and 9 more"),
        ("shape", "another shape of layer1"),
        ("stranger", r"no part of it, layer9\.weight"),
        ("nan", "not finite in layer1"),
        ("head", r"lack conv1\.weight"),
        ("wrapped", "more, or other things, than named tensors"),
    ],
)
def test_weights_that_are_not_those_of_the_network(folder: Path, tmp_path: Path, how: str, message: str) -> None:
    weights = torch.load(folder / "resnet18.pth", weights_only=True)
    torch.save(broken(weights, how), tmp_path / "weights.pth")
    with pytest.raises(MbrError, match=message):
        build_extractor(settings(), tmp_path / "weights.pth")


class Opened:
    """What code in a file of weights would leave behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    ("name", "content"), [("w.pth", b"not weights"), ("w.safetensors", b"not weights"), ("w.pth", b""), ("w.pth", None)]
)
def test_a_file_that_holds_no_weights(tmp_path: Path, name: str, content: bytes | None) -> None:
    file = tmp_path / name
    if content is None:
        torch.save({"conv1.weight": Opened(tmp_path / "proof")}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(MbrError, match="without running code"):
        build_extractor(settings(), file)
    assert not (tmp_path / "proof").exists()


def test_weights_that_are_not_there(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MbrError, match="can not be read"):
        build_extractor(settings(), tmp_path / "none.pth")
    with pytest.raises(MbrError, match="can not be read"):
        train(folder / "frozen.toml", tmp_path / "out", progress=silent, cache=tmp_path, weights=tmp_path / "no.pth")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MbrError, match=r"can not be had from the hub.*--weights FILE"):
        build_extractor(settings(weights="imagenet"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"extractor": "slim", "weights": "imagenet"}, "weights is of published networks"),
        ({"extractor": "slim", "weights": None, "resize_px": 224}, "resize_px is of published networks"),
        ({"extractor": "slim", "weights": None, "frozen": True}, "would keep random weights"),
        ({"weights": "none", "frozen": True}, "would keep random weights"),
        ({"extractor": "none", "weights": None, "crop": "silhouette"}, "extractor is 'none'"),
        ({"resize_px": 10}, "greater than or equal to 75"),
        ({"extractor": "resnet34"}, "resnet50-deep"),
    ],
)
def test_settings_that_would_do_nothing(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**given)


def test_weights_on_the_command_line_replace_those_of_the_file(folder: Path, tmp_path: Path) -> None:
    plan = read_dataset(folder / "frozen.toml")
    assert plan.weights_file == folder / "resnet18.pth"
    shutil.copy(folder / "resnet18.pth", tmp_path / "other.pth")
    other = plan.with_weights(tmp_path / "other.pth")
    assert other.weights_file == tmp_path / "other.pth" and other.model.is_frozen
    before = _hash_of_sources(other, folder / "frozen.toml")
    (tmp_path / "other.pth").write_bytes(b"changed")
    assert _hash_of_sources(other, folder / "frozen.toml") != before
    slim = plan.model_copy(update={"model": plan.model.model_copy(update={"extractor": "slim"})})
    with pytest.raises(MbrError, match="starts from no weights"):
        slim.with_weights(tmp_path / "other.pth")


# Graphs.


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_extractor_is_cut_where_it_says(name: str) -> None:
    extractor = build_extractor(settings(extractor=name, weights="none"))
    assert extractor is not None
    with torch.inference_mode():
        features = extractor.eval()(torch.randint(0, 256, (1, 160, 160, 3), dtype=torch.uint8))
    assert features.shape == (1, PUBLISHED[name].feature_dim) and features.dtype == torch.float32
    kept = set(dict(extractor.named_parameters()))
    parts = {
        "resnet50-layer2": ("layer2.3.bn3", "layer3.0.conv1"),
        "resnet50-deep": ("layer4.1.bn1", "layer4.1.conv2"),
        "resnet50": ("layer4.2.bn3", "fc"),
    }
    if name in parts:
        last, beyond = parts[name]
        assert f"body.{last}.weight" in kept and f"body.{beyond}.weight" not in kept
        assert features.min() >= 0  # it ends with a ReLU


@pytest.mark.parametrize("given", [{"features": "maximum"}, {"resize_px": 224}, {"extractor": "resnet50-deep"}])
def test_the_engine_computes_what_torch_does(folder: Path, tmp_path: Path, given: dict[str, object]) -> None:
    torch.manual_seed(3)
    extractor = build_extractor(settings(**{"weights": "none", **given}))
    assert extractor is not None
    plan = read_dataset(folder / "frozen.toml")
    temporal = temporal_of(plan.model, extractor.feature_dim, 2)
    bundle = write_untaught(tmp_path / "bundle", plan, extractor, temporal)
    crops = np.random.default_rng(1).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = extractor.eval()(torch.from_numpy(crops)).numpy()
    found = OpenVinoEngine(bundle).features(crops)
    np.testing.assert_allclose(found, expected, atol=2e-4 * float(np.abs(expected).max()))
    if "features" in given:
        np.testing.assert_allclose(found.max(axis=1), 1.0, atol=1e-6)


def test_maximum_normalising_leaves_no_vector_undefined() -> None:
    extractor = build_extractor(PictureSettings(features="maximum"))
    assert extractor is not None
    with torch.inference_mode():
        assert torch.isfinite(extractor.eval()(torch.zeros(1, 160, 160, 3, dtype=torch.uint8))).all()


# Training.


@pytest.fixture(scope="module")
def frozen(folder: Path, cache: Path) -> Bundle:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mbr_live.training.train.THREADS", 1)
        return train(folder / "frozen.toml", folder / "frozen", progress=silent, cache=cache)


@pytest.fixture(scope="module")
def silhouettes(folder: Path, cache: Path) -> Bundle:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mbr_live.training.train.THREADS", 1)
        return train(folder / "silhouettes.toml", folder / "silhouettes", progress=silent, cache=cache)


def test_bundles_say_what_they_see(frozen: Bundle, silhouettes: Bundle) -> None:
    first, second = load_bundle(frozen.path).manifest, load_bundle(silhouettes.path).manifest
    assert (first.feature_dim, first.crop, first.training.steps) == (512, "rgb", {"sequences": 8})
    assert first.extractor.startswith("resnet18, weights resnet18.pth (")
    assert first.extractor.endswith("frozen, each vector divided by its maximum")
    assert (second.crop, second.extractor) == ("silhouette", "resnet18, resized to 96 px")
    assert second.training.steps["frames"] == 2 and second.training.steps["fine-tuning"] in (0, 2)
    assert "silhouette of the animal" in silhouettes.read("card.md").decode()


@pytest.mark.parametrize("name", ["frozen", "silhouettes"])
def test_batch_and_evaluate_find_the_scores_that_training_printed(
    name: str, folder: Path, cache: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    bundle: Bundle = request.getfixturevalue(name)
    plan = read_dataset(folder / f"{name}.toml")
    validation = truths(plan, "validation", cache)
    for truth in validation:
        run_job(Job(truth.log_name, truth.videos), tmp_path, bundle, OpenVinoEngine(bundle))
    names = [behaviour.name for behaviour in plan.behaviours]
    evaluation, _ = evaluate(plan.name, "validation", names, validation, [LabelFolder("batch", tmp_path)])
    (found,) = evaluation.models[0].recordings
    assert len(bundle.manifest.training.scores) == 2
    for score in bundle.manifest.training.scores:
        frames = found.behaviours[score.behaviour].frames
        assert score.frames == frames.scored > 0
        assert (score.pr_auc or 0.0, score.f1 or 0.0) == pytest.approx((frames.pr_auc or 0, frames.f1 or 0), abs=1e-3)


@pytest.mark.parametrize("crop", ["rgb", "silhouette"])
def test_training_sees_to_the_bit_what_the_pipeline_sees(crop: str, frozen: Bundle, folder: Path, cache: Path) -> None:
    plan = read_dataset(folder / "frozen.toml")
    model = plan.model.model_copy(update={"crop": crop})
    recording = next(each for each in prepare(plan.model_copy(update={"model": model}), cache, silent))
    assert recording.channels is not None
    pipeline = Pipeline(frozen.manifest.model_copy(update={"crop": crop}), engine := OpenVinoEngine(frozen))
    (video,) = cache.glob("box-3.*.mp4")
    states, seen = {"a": pipeline.start()}, {}
    for frame in sampled(VideoFile(video), "a"):
        shown = pipeline.see(frame, states["a"].sight)
        looks, states = pipeline.look([shown], pipeline.features([shown]), states)
        seen |= {look.decision.index: look.features for look in looks if look.features is not None}
    assert sorted(seen) == recording.ticks.tolist()
    expected = np.concatenate((engine.features(np.array(crops_of(recording))), recording.channels), axis=1)
    np.testing.assert_array_equal(np.stack([seen[tick] for tick in sorted(seen)]), expected)
    grey = set(np.unique(crops_of(recording)).tolist())
    assert grey == {0, 255} if crop == "silhouette" else len(grey) > 50


def test_features_are_computed_once_and_gone_on_with(
    frozen: Bundle, folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "_BATCH_FRAMES", 8)
    plan = read_dataset(folder / "frozen.toml")
    lessons = [lesson_of(recording, plan.max_gap_frames) for recording in prepare(plan, cache, silent)]
    lessons += copies_of(lessons[:1], RecordingAugmentation(copies=1), seed=1)
    seen: list[tuple[str, int]] = []
    with pytest.raises(KeyboardInterrupt):
        list(extraction.computed(frozen, lessons, tmp_path, stopped_at("features", 16, seen)))
    (rows,) = tmp_path.glob("*.rows")
    rows.write_bytes(rows.read_bytes() + b"torn")  # killed while it wrote
    seen.clear()
    went_on = list(extraction.computed(frozen, lessons, tmp_path, stopped_at("", 0, seen)))
    assert seen[0] == ("features", 24) and not list(tmp_path.glob("*.rows"))
    frames = [len(lesson.recording.ticks) for lesson in lessons]
    assert seen[-1] == ("features", sum(frames)) and [len(array) for array in went_on] == frames
    at_once = list(extraction.computed(frozen, lessons, tmp_path / "again", silent))
    for one, other in zip(went_on, at_once, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.allclose(at_once[0], at_once[2])  # the changed copy
    seen.clear()
    list(extraction.computed(frozen, lessons, tmp_path, stopped_at("", 0, seen)))
    assert len(seen) == len(lessons)


def test_features_of_a_published_extractor_are_computed_while_recordings_are_cropped(
    frozen: Bundle, folder: Path, cache: Path, tmp_path: Path
) -> None:
    """They are those of the crops; the crops are not kept; and what a killed training left is not computed again."""
    plan = read_dataset(folder / "frozen.toml")
    lessons = [lesson_of(recording, plan.max_gap_frames) for recording in prepare(plan, cache, silent)]
    expected = list(extraction.computed(frozen, lessons, tmp_path / "of crops", silent))
    left_behind = features_file(tmp_path, lessons[0].recording.crops_name, None, frozen).with_suffix(".rows")
    left_behind.write_bytes(np.full((40, 512), 7, np.float32).tobytes() + b"torn")
    plain = plan.training.model_copy(
        update={"recording_augmentation": RecordingAugmentation(), "fine_tuning": FineTuning()}
    )
    recordings = prepare(plan.model_copy(update={"training": plain}), tmp_path, silent, frozen)
    assert all(recording.crops is None for recording in recordings) and not list(tmp_path.glob("*.crops.npy"))
    assert not list(tmp_path.glob("*.rows")) and not list(tmp_path.glob("*.lock"))
    lessons = [lesson_of(recording, plan.max_gap_frames) for recording in recordings]
    found = list(extraction.computed(frozen, lessons, tmp_path, silent))
    assert np.all(found[0][:40] == 7)
    np.testing.assert_array_equal(found[0][40:], expected[0][40:])
    np.testing.assert_array_equal(found[1], expected[1])


def test_crops_are_kept_where_copies_of_them_are_changed(frozen: Bundle, folder: Path, tmp_path: Path) -> None:
    plan = read_dataset(folder / "frozen.toml")
    augmented = plan.training.model_copy(update={"recording_augmentation": RecordingAugmentation(copies=1)})
    recordings = prepare(plan.model_copy(update={"training": augmented}), tmp_path, silent, frozen)
    assert all(len(crops_of(recording)) == len(recording.ticks) for recording in recordings)
    assert len(list(tmp_path.glob("*.features.npy"))) == len(recordings)


@pytest.mark.parametrize("name", ["frozen", "silhouettes"])
def test_a_training_that_was_killed_goes_on_to_the_same_weights(
    name: str,
    folder: Path,
    cache: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle: Bundle = request.getfixturevalue(name)
    monkeypatch.setattr(checkpoints, "EVERY_STEPS", 1)
    done = []
    for stage in [stage for stage in STAGES if stage in bundle.manifest.training.steps]:
        seen: list[tuple[str, int]] = []
        with pytest.raises(KeyboardInterrupt):
            train(folder / f"{name}.toml", tmp_path / "out", progress=stopped_at(stage, 1, seen), cache=cache)
        done.append(stage)
    again = train(folder / f"{name}.toml", tmp_path / "out", progress=silent, cache=cache)
    assert networks(again) == networks(bundle) and done
    assert not list(cache.glob("*.checkpoints"))


def test_early_stopping_gives_the_best_weights_back() -> None:
    module = torch.nn.Linear(1, 1)
    best = Best(module, patience_checks=2)
    stops = []
    for step, score in enumerate((0.2, 0.5, 0.4, 0.5, 0.9), start=1):
        torch.nn.init.constant_(module.weight, step)
        kept = Best(module, patience_checks=2)
        kept.load_state_dict(best.state_dict())  # as after a kill
        best = kept
        stops.append(best.check(score, step))
    assert stops == [False, False, False, True, False] and best.step == 5
    torch.nn.init.constant_(module.weight, 7.0)
    best.restore()
    assert module.weight.item() == 5.0


def test_training_stops_early_and_says_where(folder: Path, cache: Path, tmp_path: Path) -> None:
    text = FROZEN.replace(
        'extractor = "resnet18"\nweights = "resnet18.pth"\nfeatures = "maximum"', 'extractor = "none"'
    )
    text = text.replace('behaviours = "separate"\n', "").replace("recording_augmentation = { copies = 1 }", "")
    text = text.replace(
        "sequence_steps = 4", "sequence_steps = 200\nearly_stopping = { patience_checks = 1, every_steps = 2 }"
    )
    (tmp_path / "plan.toml").write_text(text, encoding="utf-8")
    seen: list[tuple[str, int]] = []
    bundle = train(tmp_path / "plan.toml", tmp_path / "out", progress=stopped_at("", 0, seen), cache=cache)
    steps = [done for stage, done in seen if stage == "sequences"]
    assert steps[-1] == 200 and len(steps) < 150  # one that no longer grows is over
    assert bundle.manifest.training.steps["sequences"] == steps[-2] - 2
    both = text.replace('name = "rearing"', 'name = "rearing", columns = ["grooming"]')  # grooming is not in box-4
    (tmp_path / "plan.toml").write_text(both, encoding="utf-8")
    with pytest.raises(MbrError, match="no behaviour that a network could be judged by"):
        train(tmp_path / "plan.toml", tmp_path / "out", progress=silent, cache=cache)


@pytest.mark.parametrize(("after", "kept"), [(0.6, 2), (0.4, 0)])
def test_fine_tuning_keeps_what_is_better(after: float, kept: int, folder: Path, cache: Path, tmp_path: Path) -> None:
    plan = read_dataset(folder / "frozen.toml")
    lessons = [lesson_of(recording, plan.max_gap_frames) for recording in prepare(plan, cache, silent)]
    settings = plan.training.model_copy(
        update={"fine_tuning": FineTuning(steps=2, learning_rate=0.01, clip_frames=4, clips_per_step=1)}
    )
    extractor = Trunk(TrunkConfig())
    temporal = temporal_of(plan.model, extractor.feature_dim, 2)
    before = {name: tensor.clone() for name, tensor in extractor.state_dict().items()}
    step = fine_tune(
        extractor, temporal, lessons, settings, 0.5, lambda: after, checkpoints.Checkpoints(tmp_path), Curves(), silent
    )
    assert step == kept
    changed = {name for name, tensor in extractor.state_dict().items() if not torch.equal(tensor, before[name])}
    parameters = {name for name, _ in extractor.named_parameters()}
    assert changed == (parameters if kept else set())  # means and variances of the batch normalisation stay


def test_networks_cannot_be_judged_without_recordings_to_judge_them_by() -> None:
    with pytest.raises(MbrError, match="no behaviour that a network could be judged by"):
        Validation([], {}, 4).pr_auc(torch.nn.Identity(), [0])


# Parts.


def test_class_weights_are_those_of_the_thesis(folder: Path, cache: Path) -> None:
    (recording, _) = prepare(read_dataset(folder / "frozen.toml"), cache, silent)
    truth = np.zeros((len(recording.ticks), 3), np.int8)
    truth[:8, 0], truth[8:10, 0], truth[:, 2] = 1, -1, 1
    lesson = lesson_of(replace(recording, truth=truth), 1000)
    known = truth[lesson.rows[lesson.known], 0]
    absent, present = int((known == 0).sum()), int((known == 1).sum())
    total = absent + present
    expected = [[total / (2 * absent), total / (2 * present)], [0.5, 1.0], [1.0, 0.5]]
    np.testing.assert_allclose(class_weights([lesson]), expected, rtol=1e-6)


def test_a_change_is_the_same_for_all_frames_and_for_any_batch() -> None:
    picture = np.random.default_rng(1).integers(60, 200, (160, 160, 3), dtype=np.uint8)
    crops = np.stack([picture] * 4)
    change = drawn_change(RecordingAugmentation(), np.random.default_rng(5))
    changed = change.of(crops)
    np.testing.assert_array_equal(np.concatenate((change.of(crops[:1]), change.of(crops[1:], 1))), changed)
    assert not np.array_equal(changed[0], changed[1])  # noise of its own
    still = replace(change, noise=0.0).of(crops)
    assert all(np.array_equal(still[0], each) for each in still) and not np.array_equal(still[0], picture)


def test_changes_mirror_left_to_right_and_do_not_turn() -> None:
    still = RecordingAugmentation(zoom=0, brightness=0, contrast=0, noise=0)
    picture = np.random.default_rng(1).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    draws = (drawn_change(still, np.random.default_rng(seed)) for seed in range(20))
    seen = {draw.of(picture[None]).tobytes() for draw in draws}
    assert seen == {picture.tobytes(), np.ascontiguousarray(picture[:, ::-1]).tobytes()}


def test_silhouettes_and_changes_need_pictures(folder: Path, tmp_path: Path) -> None:
    text = FROZEN.replace(
        'extractor = "resnet18"\nweights = "resnet18.pth"\nfeatures = "maximum"', 'extractor = "none"'
    )
    (tmp_path / "plan.toml").write_text(text, encoding="utf-8")
    with pytest.raises(MbrError, match="recording_augmentation and fine_tuning are of pictures"):
        read_dataset(tmp_path / "plan.toml")


def test_the_slim_network_starts_from_nothing() -> None:
    assert isinstance(build_extractor(PictureSettings()), Trunk)
    assert Trunk(TrunkConfig()).feature_dim == 256


def test_a_dataset_names_its_weights_beside_itself(folder: Path) -> None:
    plan: Dataset = read_dataset(folder / "frozen.toml")
    assert plan.weights_file is not None and plan.weights_file.is_file()
