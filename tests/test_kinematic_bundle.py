"""Bundles that take kinematics: from the dataset file to labels, the same live and offline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from live import mbr_live
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="training is not installed: pip install 'mbr-live[train]'")

from mbr_live.batch.batch import Job, run_job  # noqa: E402
from mbr_live.bundle import Bundle, check_live, load_bundle, write_bundle  # noqa: E402
from mbr_live.datasets.dataset import read_dataset, video_files  # noqa: E402
from mbr_live.datasets.settings import ModelSettings, TrainingSettings  # noqa: E402
from mbr_live.datasets.temporal_config import LstmConfig, TcnConfig, TemporalConfig, TransformerConfig  # noqa: E402
from mbr_live.engines.openvino_engine import OpenVinoEngine  # noqa: E402
from mbr_live.manifest import CARD, FEATURES, REFERENCE, TEMPORAL  # noqa: E402
from mbr_live.pipeline import LaneState, Pipeline  # noqa: E402
from mbr_live.stages.kinematics import ALL, ARENA, CHANNELS, SHAPE, VERSION  # noqa: E402
from mbr_live.training import checkpoints  # noqa: E402
from mbr_live.training.models import export_onnx  # noqa: E402
from mbr_live.training.preparation import prepare  # noqa: E402
from mbr_live.training.temporal import Ensemble, build_temporal  # noqa: E402
from mbr_live.training.train import train  # noqa: E402
from mbr_live.types import Decision, Frame, MbrError, Status  # noqa: E402
from mbr_live.video import sources  # noqa: E402

DATASET = """
name = "moves"
summary = "Made by a test."
warmup_frames = 3
max_gap_s = 0.5
window_px = 152
simulated = [
    { condition = "box", seed = 3, minutes = 0.12, split = "train" },
    { condition = "box", seed = 4, minutes = 0.12, split = "validation" },
]

[model]
extractor = "none"
kinematics = ["all", "shape+arena"]
ensemble = 3
temporal = { kind = "tcn", channels = 8, blocks = 2 }

[training]
sequence_frames = 20
sequences_per_step = 2
sequence_steps = 3
unscored_frames = 0
label_smoothing = 0.05
held_weight = 0.2
sequence_noise = 0.3
frame_noise = 0.1
channel_dropout = 0.1
draw = "by_count"
threshold = 0.5

[[behaviours]]
name = "grooming"

[[behaviours]]
name = "rearing"
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
def moves(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("moves")
    return train(written(folder / "moves.toml", DATASET), folder / "moves", progress=silent, cache=cache)


@pytest.fixture(scope="module")
def pipeline(moves: Bundle) -> Pipeline:
    return Pipeline(moves.manifest, OpenVinoEngine(moves))


@pytest.fixture(scope="module")
def frames(box_video: Path) -> list[Frame]:
    found = sources.sampled(sources.VideoFile(box_video), "a")
    return [replace(frame, pixels=frame.pixels.copy()) for frame in found]


def passed(
    pipeline: Pipeline, frames: list[Frame], state: LaneState | None = None
) -> Iterator[tuple[Decision, LaneState]]:
    """The decision on every frame and the lane's state after it."""
    state = state or pipeline.start()
    for frame in frames:
        decisions, states = pipeline.step([frame], {frame.camera: state})
        state = states[frame.camera]
        yield decisions[-1], state


def test_all_recordings_are_trained_on_where_nothing_is_left_to_validate(cache: Path, tmp_path: Path) -> None:
    text = DATASET.replace('split = "validation"', 'split = "train"')
    bundle = train(written(tmp_path / "all.toml", text), tmp_path / "all", progress=silent, cache=cache)
    assert bundle.manifest.training.recordings == ("box-3 (train)", "box-4 (train)")
    assert bundle.manifest.training.scores == ()
    assert [(each.enter, each.exit) for each in bundle.manifest.behaviours] == [(0.5, 0.5)] * 2
    assert "none was kept aside" in (tmp_path / "all" / "card.md").read_text(encoding="utf-8")
    fitted = text.replace("threshold = 0.5", 'threshold = "fit"')
    with pytest.raises(MbrError, match="no validation recordings"):
        train(written(tmp_path / "fitted.toml", fitted), tmp_path / "fitted", progress=silent, cache=cache)


def test_changed_copies_are_trained_on_and_never_validated_on(moves: Bundle, cache: Path, tmp_path: Path) -> None:
    text = DATASET.replace("[[behaviours]]", "variation = { copies = 2 }\n\n[[behaviours]]", 1)
    dataset = read_dataset(written(tmp_path / "varied.toml", text))
    learnt, validated = prepare(dataset, cache, silent)
    assert learnt.channels is not None and learnt.varied is not None and validated.varied is None
    assert learnt.varied.shape == (2, *learnt.channels.shape)
    copies = learnt.with_copies()
    assert len({each.name for each in copies}) == 3 and {each.subject for each in copies} == {learnt.name}
    assert len({each.channels.tobytes() for each in copies if each.channels is not None}) == 3
    assert validated.with_copies() == [validated]
    again, _ = prepare(dataset, tmp_path / "fresh", silent)
    assert again.varied is not None and again.varied.tobytes() == learnt.varied.tobytes()
    bundle = train(tmp_path / "varied.toml", tmp_path / "varied", progress=silent, cache=cache)
    assert bundle.manifest.training.recordings == ("box-3 (train)", "box-4 (validation)")
    assert bundle.manifest.training.frames == moves.manifest.training.frames
    assert bundle.sha256 != moves.sha256


def test_crops_have_no_copies(tmp_path: Path) -> None:
    text = DATASET.replace("[[behaviours]]", "variation = { copies = 2 }\n\n[[behaviours]]", 1)
    with pytest.raises(MbrError, match="variation changes silhouettes"):
        read_dataset(written(tmp_path / "crops.toml", text.replace('extractor = "none"', 'extractor = "slim"')))


def test_a_bundle_without_a_feature_network(moves: Bundle, cache: Path) -> None:
    manifest = load_bundle(moves.path).manifest
    assert manifest.feature_dim == 0 and manifest.kinematics == CHANNELS and manifest.kinematics_version == VERSION
    assert manifest.window_px == 152 and set(manifest.files) == {TEMPORAL, CARD, REFERENCE}
    assert {b.enter for b in manifest.behaviours} == {b.exit for b in manifest.behaviours} == {0.5}
    assert manifest.training.steps == {"sequences": 9}
    card = moves.read(CARD).decode()
    assert f"{len(CHANNELS)} kinematic channels" in card and "152 px" in card
    assert not list(cache.glob("*.crops.npy"))
    with pytest.raises(MbrError, match="no feature network"):
        OpenVinoEngine(moves).features(np.zeros((1, 160, 160, 3), np.uint8))
    with pytest.raises(MbrError, match=r"contents are .*features\.onnx"):
        write_bundle(moves.path.parent / "more", manifest, dict.fromkeys((FEATURES, TEMPORAL, CARD), b""))


def test_training_repeats(moves: Bundle, cache: Path, tmp_path: Path) -> None:
    again = train(written(tmp_path / "moves.toml", DATASET), tmp_path / "again", progress=silent, cache=cache)
    assert again.read(TEMPORAL) == moves.read(TEMPORAL)


def test_an_ensemble_whose_training_was_killed_goes_on_to_the_same_weights(
    moves: Bundle, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "EVERY_STEPS", 1)
    plan = written(tmp_path / "moves.toml", DATASET)
    steps: list[int] = []

    def killed_at(last: int) -> Callable[[str, int, int], None]:
        def note(stage: str, done: int, total: int) -> None:
            if stage == "sequences":
                steps.append(done)
                if done == last:
                    raise KeyboardInterrupt

        return note

    for last in (2, 3, 8):  # in the first of three members, at its end, in the third
        with pytest.raises(KeyboardInterrupt):
            train(plan, tmp_path / "out", progress=killed_at(last), cache=cache)
    again = train(plan, tmp_path / "out", progress=killed_at(0), cache=cache)
    assert steps == [1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 8, 9]  # the step of the kill was not kept
    assert again.read(TEMPORAL) == moves.read(TEMPORAL)


def test_training_sees_what_the_pipeline_sees(pipeline: Pipeline, cache: Path, tmp_path: Path) -> None:
    plan = read_dataset(written(tmp_path / "moves.toml", DATASET))
    recording = prepare(plan, cache, silent)[0]
    assert recording.crops is None and recording.channels is not None
    (video,) = video_files(plan.all_recordings()[0], cache)
    seen = {
        decision.index: state.features
        for decision, state in passed(pipeline, list(sources.sampled(sources.VideoFile(video), "a")))
        if decision.status in (Status.OK, Status.WARMUP)
    }
    assert list(seen) == recording.ticks.tolist()
    for row, tick in enumerate(recording.ticks.tolist()):
        np.testing.assert_array_equal(seen[tick], recording.channels[row])


def test_the_window_of_the_bundle_is_the_cameras_unless_it_has_its_own(moves: Bundle, pipeline: Pipeline) -> None:
    assert pipeline.window_px("a", pipeline.start().sight) == 152
    assert Pipeline(moves.manifest, OpenVinoEngine(moves), {"a": 200}).window_px("a", pipeline.start().sight) == 200


def test_lanes_do_not_touch_each_other(pipeline: Pipeline, frames: list[Frame]) -> None:
    others = [replace(frame, camera="b", pixels=np.ascontiguousarray(frame.pixels[::-1])) for frame in frames[:60]]
    alone = [repr(decision) for lane in (frames[:60], others) for decision, _ in passed(pipeline, lane)]
    states = {"a": pipeline.start(), "b": pipeline.start()}
    together: dict[str, list[str]] = {"a": [], "b": []}
    for pair in zip(frames[:60], others, strict=True):
        decisions, states = pipeline.step(pair, states)
        for decision in decisions:
            together[decision.camera].append(repr(decision))
    assert [*together["a"], *together["b"]] == alone


def test_a_long_gap_forgets_movement_and_a_blind_frame_changes_none(pipeline: Pipeline, frames: list[Frame]) -> None:
    *_, (_, state) = passed(pipeline, frames[:20])
    assert state.sight.kinematics.frames == 20
    dark = replace(frames[20], pixels=np.zeros_like(frames[20].pixels))
    decision, blind = next(passed(pipeline, [dark], state))
    assert decision.status is Status.BLIND and blind.sight.kinematics is state.sight.kinematics
    longest = pipeline.manifest.max_gap_frames
    _, bridged = next(passed(pipeline, [replace(frames[20], index=20 + longest)], state))
    assert bridged.sight.kinematics.frames == 21
    _, reset = next(passed(pipeline, [replace(frames[20], index=21 + longest)], state))
    assert reset.sight.kinematics.frames == 1
    # But the walls are still where they were.
    before, after = state.sight.kinematics.walls.reach, reset.sight.kinematics.walls.reach
    assert len(before) == len(after) and all(far >= near for near, far in zip(before, after, strict=True))


def test_other_channels_than_are_computed(moves: Bundle) -> None:
    other = moves.manifest.model_copy(update={"kinematics_version": VERSION + 1})
    with pytest.raises(MbrError, match=r"version 2.*train it anew"):
        Pipeline(other, OpenVinoEngine(moves))


def test_live_equals_offline(moves: Bundle, box_video: Path, tmp_path: Path) -> None:
    live, offline = tmp_path / "live", tmp_path / "offline"
    options = ("--bundle", moves.path)
    loss = ("--speed", "3", "--drop", "0.1", "--seed", "5", "--plain")
    done = mbr_live("replay", box_video, "--out", live, *options, *loss)
    assert done.returncode == 0, done.stderr
    done = mbr_live("batch", box_video, "--out", offline, *options, "--drops", live / "box.run.json")
    assert done.returncode == 0, done.stderr
    for suffix in (".labels.csv", ".bouts.csv"):
        assert (live / f"box{suffix}").read_bytes() == (offline / f"box{suffix}").read_bytes()
    assert b",ok," in (live / "box.labels.csv").read_bytes()


# The ensemble.


def ensemble(config: TemporalConfig) -> Ensemble:
    """Two members with three features in common and channels of their own."""
    torch.manual_seed(3)
    columns = [[0, 1, 2, 3, 4], [0, 1, 2, 4, 5, 6]]
    members = [build_temporal(config, feature_dim=len(each), behaviours=2) for each in columns]
    model = Ensemble(members, columns, plain=3, raw=4)
    model.mean.copy_(torch.tensor([1.0, -2.0, 0.0, 5.0]))
    model.std.copy_(torch.tensor([2.0, 0.5, 1.0, 0.1]))
    return model.eval()


CONFIGS = [TcnConfig(channels=8, blocks=2), LstmConfig(channels=8), TransformerConfig(channels=8, window_frames=6)]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_steps_of_an_ensemble_equal_its_sequence_and_its_graph(config: TemporalConfig, tmp_path: Path) -> None:
    model = ensemble(config)
    inputs = 3 * torch.randn(2, 15, 7)
    with torch.inference_mode():
        whole = model(inputs).numpy()
        state, stepped = torch.zeros(2, model.state_size), []
        for frame in range(15):
            logits, state = model.step(inputs[:, frame], state)
            stepped.append(logits.numpy())
    np.testing.assert_allclose(np.stack(stepped, axis=1), whole, atol=1e-5)
    export_onnx(None, model, tmp_path, kinematics=7)
    assert not (tmp_path / FEATURES).exists()
    np.testing.assert_allclose(_by_openvino(tmp_path / TEMPORAL, inputs.numpy(), model.state_size), whole, atol=1e-4)


def _by_openvino(file: Path, inputs: NDArray[np.float32], state_size: int) -> NDArray[np.float32]:
    ov = pytest.importorskip("openvino")
    # As the engine sets it: its fusing of small operations crashes on attention with one thread.
    compiled = ov.Core().compile_model(
        str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "SNIPPETS_MODE": "DISABLE"}
    )
    state, logits = np.zeros((len(inputs), state_size), np.float32), []
    for frame in range(inputs.shape[1]):
        said = compiled({"features": inputs[:, frame], "state": state})
        logits.append(said["logits"])
        state = said["state_out"].copy()
    return np.stack(logits, axis=1)


def test_an_ensemble_says_the_mean_of_its_members_on_standardised_channels() -> None:
    model = ensemble(TcnConfig(channels=8, blocks=1))
    inputs = torch.tensor([[[0.1, 0.2, 0.3, 1.0, -1.5, 100.0, 4.9]]])
    standard = torch.tensor([[[0.1, 0.2, 0.3, 0.0, 1.0, 4.0, -1.0]]])
    with torch.inference_mode():
        torch.testing.assert_close(model.standardised(inputs), standard)
        members = [member(standard[..., each]) for member, each in zip(model.members, model.columns, strict=True)]
        torch.testing.assert_close(model(inputs), (members[0] + members[1]) / 2)


def test_members_that_look_ahead_and_causal_ones_do_not_mix() -> None:
    members = [build_temporal(LstmConfig(offline=ahead), feature_dim=2, behaviours=2) for ahead in (True, False)]
    with pytest.raises(MbrError, match=r"mixes members that look ahead with causal ones.*same `offline`"):
        Ensemble(members, [[0, 1], [0, 1]], plain=0, raw=2)


AHEAD = [
    LstmConfig(channels=8, offline=True),
    TransformerConfig(channels=8, window_frames=6, offline=True),
]


@pytest.mark.parametrize("config", AHEAD, ids=lambda config: config.kind)
def test_an_ensemble_that_looks_ahead_equals_its_graph(moves: Bundle, config: TemporalConfig, tmp_path: Path) -> None:
    model = ensemble(config)
    assert not model.is_live
    export_onnx(None, model, tmp_path, kinematics=7)
    described = moves.manifest.model_copy(
        update={
            "kinematics": CHANNELS[:7],
            "causal": False,
            "state_size": 0,
            "receptive_field_frames": model.receptive_field_frames,
        }
    )
    contents = {TEMPORAL: (tmp_path / TEMPORAL).read_bytes(), CARD: b"card"}
    engine = OpenVinoEngine(write_bundle(tmp_path / "ahead", described, contents))
    inputs = 3 * torch.randn(1500, 7)
    with torch.inference_mode():
        expected = model(inputs[None])[0].numpy()
    np.testing.assert_allclose(engine.sequence(inputs.numpy()), expected, atol=1e-4)


def test_a_dataset_file_may_ask_for_networks_that_look_ahead(cache: Path, box_video: Path, tmp_path: Path) -> None:
    text = DATASET.replace('kind = "tcn", channels = 8, blocks = 2', 'kind = "lstm", channels = 8, offline = true')
    ahead = train(written(tmp_path / "ahead.toml", text), tmp_path / "ahead", progress=silent, cache=cache)
    assert not ahead.manifest.causal and ahead.manifest.state_size == 0
    assert "recorded files alone" in ahead.read(CARD).decode()
    run_job(Job("box", (box_video,)), tmp_path, ahead, OpenVinoEngine(ahead))
    assert b",ok," in (tmp_path / "box.labels.csv").read_bytes()
    with pytest.raises(MbrError, match="looks ahead"):
        check_live(ahead)


# Dataset files.


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kinematics = ["all", "shape+arena"]', 'kinematics = "none"', "would see nothing"),
        ('kinematics = ["all", "shape+arena"]', 'kinematics = "some"', "model.kinematics"),
        ('kinematics = ["all", "shape+arena"]', 'kinematics = "all+shape"', "share no channel"),
        ("ensemble = 3", "ensemble = 1", "at least as many members"),
        ("temporal = {", 'temporal = [{ kind = "lstm", offline = true }]\nother = {', "model.temporal"),
        ('kind = "tcn", channels = 8, blocks = 2', 'kind = "tcn", offline = true', "model.temporal.offline"),
        ("threshold = 0.5", "threshold = 1.5", "training.threshold"),
        ('draw = "by_count"', 'draw = "at will"', "training.draw"),
    ],
)
def test_a_model_that_can_not_be(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in DATASET
    with pytest.raises(MbrError, match=message):
        read_dataset(written(tmp_path / "moves.toml", DATASET.replace(old, new)))


def test_defaults_are_the_trunk_and_one_network() -> None:
    assert ModelSettings().channels == () and ModelSettings().extractor == "slim"
    assert TrainingSettings().held_weight == 1.0 and TrainingSettings().threshold == "fit"
    assert ModelSettings(kinematics="all").channels == ALL
    assert set(ModelSettings(kinematics="shape").channels) == set(SHAPE)
    assert ModelSettings(kinematics="all+arena").channel_sets == ((*ALL, *ARENA),)


def test_features_and_kinematics_together(
    cache: Path, tmp_path: Path, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mbr_live.training.train.THREADS", 1)  # on a busy machine two wait for each other
    text = DATASET.replace('extractor = "none"', 'extractor = "slim"').replace(
        "threshold = 0.5", 'threshold = "shrunk"'
    )
    text = text.replace("[training]", "[training]\nframes_per_step = 4\nframe_steps = 1")
    both = train(written(tmp_path / "both.toml", text), tmp_path / "both", progress=silent, cache=cache)
    assert both.manifest.input_dim == both.manifest.feature_dim + len(CHANNELS)
    decisions = [decision for decision, _ in passed(Pipeline(both.manifest, OpenVinoEngine(both)), frames[:10])]
    assert decisions[-1].status is Status.OK


def test_stills_that_were_judged(box_video: Path, cache: Path, tmp_path: Path) -> None:
    """Labels at 5 Hz: of two 10 fps frames, the second repeats what was said of the first."""
    rows = "".join(f"{number},{number % 4 // 2},0\n" for number in range(0, 120, 2))
    written(tmp_path / "box.csv", "source_frame,grooming,rearing\n" + rows)
    entry = f'[[recordings]]\nvideo = "{box_video}"\nlabels = "box.csv"\ngroup = "mouse"\nsplit = "train"\n'
    start, stop = DATASET.index("simulated = ["), DATASET.index("[model]")
    text = DATASET[:start] + DATASET[stop:] + entry
    plan = read_dataset(written(tmp_path / "stills.toml", text + '[problems]\nempty_behaviour = "ignore"\n'))
    recording = prepare(plan, cache, silent)[0]
    np.testing.assert_array_equal(recording.judged, recording.ticks % 2 == 0)
