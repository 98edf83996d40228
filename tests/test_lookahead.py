"""Models that look ahead: batch runs them on whole stretches, says so, and live refuses them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="training is not installed: pip install 'mbr-live[train]'")

from live import mbr_live, simulated, system_config  # noqa: E402
from test_bundle import edit, manifest  # noqa: E402

from mbr_live.batch.batch import Job, Replayed, run_job  # noqa: E402
from mbr_live.bundle import Bundle, check_live, load_bundle, write_bundle  # noqa: E402
from mbr_live.engines.openvino_engine import OpenVinoEngine  # noqa: E402
from mbr_live.engines.protocol import Crops, Floats, windows  # noqa: E402
from mbr_live.live.run import System  # noqa: E402
from mbr_live.manifest import CARD, FEATURES, TEMPORAL  # noqa: E402
from mbr_live.pipeline import Hindsight, Pipeline, Seen, SightState  # noqa: E402
from mbr_live.simulation.camera import Simulation  # noqa: E402
from mbr_live.sinks.label_log import LabelRow, read_labels  # noqa: E402
from mbr_live.sinks.run_manifest import read_run  # noqa: E402
from mbr_live.training.models import Trunk, TrunkConfig, export_onnx  # noqa: E402
from mbr_live.training.preparation import stretches  # noqa: E402
from mbr_live.training.temporal import (  # noqa: E402
    LstmConfig,
    TemporalConfig,
    TemporalModel,
    TransformerConfig,
    build_temporal,
)
from mbr_live.types import UNKNOWN, Decision, Frame, MbrError, Status  # noqa: E402
from mbr_live.video.sources import VideoFile, sampled  # noqa: E402

SHORT, LONG = range(100, 103), range(160, 172)  # dark pictures; max_gap_s of the bundles is half a second
SECONDS = 26


def written(config: TemporalConfig, folder: Path) -> tuple[TemporalModel, Bundle]:
    """An untrained network whose weights are far from those it begins with, and its bundle."""
    torch.manual_seed(3)
    trunk = Trunk(TrunkConfig())
    temporal = build_temporal(config, feature_dim=trunk.feature_dim, behaviours=2).eval()
    with torch.no_grad():
        for name, weights in temporal.named_parameters():
            if name.endswith("bias"):
                weights.normal_()
    export_onnx(trunk, temporal, folder)
    contents = {name: (folder / name).read_bytes() for name in (FEATURES, TEMPORAL)} | {CARD: b"card"}
    described = manifest(
        feature_dim=trunk.feature_dim,
        causal=temporal.is_live,
        state_size=temporal.state_size,
        receptive_field_frames=temporal.receptive_field_frames,
    )
    return temporal, write_bundle(folder / "model", described, contents)


CONFIGS = [LstmConfig(offline=True), LstmConfig(offline=True, layers=2), TransformerConfig(offline=True)]


@pytest.fixture(scope="module", params=CONFIGS, ids=["lstm", "lstm of two layers", "transformer"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TemporalModel, Bundle]:
    return written(request.param, tmp_path_factory.mktemp("lookahead"))


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return written(LstmConfig(offline=True), tmp_path_factory.mktemp("ahead"))[1]


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return written(LstmConfig(), tmp_path_factory.mktemp("causal"))[1]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated recording with a short and a long stretch of darkness."""
    path = tmp_path_factory.mktemp("video") / "night.mp4"
    simulation = Simulation("box", 31)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height = simulation.condition.width_px, simulation.condition.height_px
        for number in range(10 * SECONDS):
            simulation.advance()
            picture = simulation.render()
            lit = number not in SHORT and number not in LONG
            frame = av.VideoFrame.from_ndarray(picture if lit else np.zeros_like(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def random_features(frames: int) -> NDArray[np.float32]:
    return np.random.default_rng(frames).standard_normal((frames, 256)).astype(np.float32)


# The engine.


def test_a_sequence_equals_torch_at_any_length(network: tuple[TemporalModel, Bundle]) -> None:
    temporal, bundle = network
    engine = OpenVinoEngine(bundle)
    for frames in (1, 2, 30, 1024, 1025, 2500):
        features = random_features(frames)
        with torch.inference_mode():
            expected = temporal(torch.from_numpy(features)[None])[0].numpy()
        np.testing.assert_allclose(engine.sequence(features), expected, atol=1e-5)
    assert engine.sequence(random_features(0)).shape == (0, 2)


def test_bytes_depend_on_nothing_but_the_features(network: tuple[TemporalModel, Bundle]) -> None:
    _, bundle = network
    lengths = (300, 7, 1500)
    alone = {frames: OpenVinoEngine(bundle).sequence(random_features(frames)).tobytes() for frames in lengths}
    shared = OpenVinoEngine(bundle, threads=2)
    for frames in (*lengths, *reversed(lengths)):
        assert shared.sequence(random_features(frames)).tobytes() == alone[frames]


@given(frames=st.integers(0, 5000), receptive_field_frames=st.integers(0, 700))
def test_windows_cover_a_stretch_once_and_see_all_that_counts(frames: int, receptive_field_frames: int) -> None:
    found = list(windows(frames, receptive_field_frames))
    stretch = np.arange(frames)
    assert np.array_equal(np.concatenate([stretch[:0], *(stretch[w.wanted] for w in found)]), stretch)
    for window in found:
        assert np.array_equal(stretch[window.given][window.kept], stretch[window.wanted])
        reach = receptive_field_frames - 1 if receptive_field_frames else frames
        needed = stretch[max(window.wanted.start - reach, 0) : window.wanted.stop + reach]
        assert np.array_equal(stretch[window.given], needed)


def test_each_form_is_refused_by_the_other(ahead: Bundle, causal: Bundle) -> None:
    with pytest.raises(MbrError, match=r"model: it looks ahead.*mbr-live batch"):
        OpenVinoEngine(ahead).step(random_features(1), np.zeros((1, 0), np.float32))
    with pytest.raises(MbrError, match=r"model: it is causal.*one by one"):
        OpenVinoEngine(causal).sequence(random_features(3))


@pytest.mark.parametrize("features", [np.zeros((3, 64), np.float32), np.zeros((3, 256)), np.zeros(256, np.float32)])
def test_wrong_input_is_explained(ahead: Bundle, features: NDArray[np.generic]) -> None:
    with pytest.raises(MbrError, match=r"temporal\.onnx was given .*expected float32 \[T, 256\]"):
        OpenVinoEngine(ahead).sequence(features)  # type: ignore[arg-type]


# Manifests that say something else than their graphs.


def changed(bundle: Bundle, path: Path, **changes: object) -> Path:
    """A copy of a bundle with another manifest."""
    contents = {name: bundle.read(name) for name in (FEATURES, TEMPORAL, CARD)}
    copy = write_bundle(path / "changed", bundle.manifest, contents)
    edit(copy, lambda document: document.update(changes))
    return copy.path


def test_state_and_direction_must_agree(ahead: Bundle, causal: Bundle, tmp_path: Path) -> None:
    with pytest.raises(MbrError, match="state_size is 0, expected at least 1 in a causal bundle"):
        load_bundle(changed(ahead, tmp_path, causal=True))
    with pytest.raises(MbrError, match=r"state_size is 128, expected 0 in one that looks ahead"):
        load_bundle(changed(causal, tmp_path, causal=False))


def test_graphs_of_the_other_form(ahead: Bundle, causal: Bundle, tmp_path: Path) -> None:
    with pytest.raises(MbrError, match=r"has inputs \['features'\], expected \['features', 'state'\].*train it anew"):
        OpenVinoEngine(load_bundle(changed(ahead, tmp_path, causal=True, state_size=64)))
    with pytest.raises(MbrError, match=r"has inputs \['features', 'state'\], expected \['features'\].*train it anew"):
        OpenVinoEngine(load_bundle(changed(causal, tmp_path, causal=False, state_size=0)))


def test_sequences_of_other_features(ahead: Bundle, tmp_path: Path) -> None:
    graph = write_bundle(
        tmp_path / "other",
        ahead.manifest.model_copy(update={"behaviours": ahead.manifest.behaviours[:1]}),
        {name: ahead.read(name) for name in (FEATURES, TEMPORAL, CARD)},
    )
    with pytest.raises(MbrError, match=r"temporal\.onnx: output 'logits' is float32 .*, the manifest says"):
        OpenVinoEngine(graph)


def test_a_bundle_of_before_is_causal(causal: Bundle, tmp_path: Path) -> None:
    path = changed(causal, tmp_path)
    edit(load_bundle(path), lambda document: document.pop("causal"))
    check_live(load_bundle(path))


# Batch.


def expected(video: Path, temporal: TemporalModel, bundle: Bundle) -> dict[int, NDArray[np.float32]]:
    """Probabilities by tick: torch on the features of the frames, in stretches that are cut as in training."""
    pipeline = Pipeline(bundle.manifest, OpenVinoEngine(bundle))
    state, features = pipeline.start(), {}
    for frame in sampled(VideoFile(video), "night"):
        seen = [pipeline.see(frame, state.sight)]
        looks, states = pipeline.look(seen, pipeline.features(seen), {"night": state})
        state = states["night"]
        if looks[-1].features is not None:
            features[frame.index] = looks[-1].features
    ticks = np.array(list(features), np.int64)
    found = {}
    for stretch in stretches(ticks, bundle.manifest.max_gap_frames):
        held = np.stack([features[tick] for tick in ticks[stretch.rows]])
        with torch.inference_mode():
            probabilities = torch.sigmoid(temporal(torch.from_numpy(held)[None])[0]).numpy()
        warm = stretch.known & (np.cumsum(stretch.known) > bundle.manifest.warmup_frames)
        found |= dict(zip(ticks[stretch.rows][warm].tolist(), probabilities[warm], strict=True))
    return found


def labelled(video: Path, out: Path, bundle: Bundle, replayed: Replayed | None = None) -> list[LabelRow]:
    run_job(Job("night", (video,)), out, bundle, OpenVinoEngine(bundle), replayed=replayed)
    return list(read_labels(out / "night.labels.csv", bundle.manifest))


def test_batch_equals_torch_over_whole_stretches(
    network: tuple[TemporalModel, Bundle], video: Path, tmp_path: Path
) -> None:
    temporal, bundle = network
    rows = labelled(video, tmp_path, bundle)
    assert [row.index for row in rows] == list(range(10 * SECONDS))
    wanted = expected(video, temporal, bundle)
    assert {row.index for row in rows if row.status == "ok"} == set(wanted)
    for row in rows:
        if row.status == "ok":
            np.testing.assert_allclose(row.probabilities, wanted[row.index], atol=2e-5)
            assert set(row.labels) <= {0, 1}
        else:
            assert row.probabilities == () and set(row.labels) == {-1}


def test_darkness_is_bridged_when_short_and_begins_anew_when_long(ahead: Bundle, video: Path, tmp_path: Path) -> None:
    status = [row.status for row in labelled(video, tmp_path, ahead)]
    assert [status[tick] for tick in SHORT] == ["blind"] * len(SHORT)
    assert set(status[SHORT.stop : LONG.start]) == {"ok"}
    assert [status[tick] for tick in LONG] == ["blind"] * len(LONG)
    warm = ahead.manifest.warmup_frames
    assert status[LONG.stop :][: warm + 1] == ["warmup"] * warm + ["ok"]


def test_labels_know_what_comes_and_nothing_beyond_their_stretch(ahead: Bundle, video: Path, tmp_path: Path) -> None:
    """Without the frames of ticks 150..155 (a gap too long to bridge), only the stretch around them changes."""
    whole = labelled(video, tmp_path / "whole", ahead)
    cut = labelled(video, tmp_path / "cut", ahead, Replayed(drops=[(150, 155)]))
    warm = ahead.manifest.warmup_frames
    first = next(row.index for row in whole if row.status == "ok")
    assert all(
        one.probabilities != other.probabilities for one, other in zip(whole[140:150], cut[140:150], strict=True)
    )
    assert [row.status for row in cut[first:100]] == ["ok"] * (100 - first)
    after = LONG.stop + warm
    for one, other in zip(whole[after:], cut[after:], strict=True):  # almost: the animal was found anew after the gap
        assert one.status == other.status
        assert one.probabilities == pytest.approx(other.probabilities, abs=0.01)


def test_restarts_cut_a_stretch_and_every_tick_has_its_row(
    ahead: Bundle, causal: Bundle, video: Path, tmp_path: Path
) -> None:
    """A restart right after a gap, for both kinds of bundles."""
    for name, bundle in (("ahead", ahead), ("causal", causal)):
        rows = labelled(video, tmp_path / name, bundle, Replayed(drops=[(120, 121)], restarts=[121]))
        assert [row.index for row in rows] == list(range(10 * SECONDS))
        assert [row.status for row in rows[120:122]] == ["gap", "gap"]
        assert {row.status for row in rows[122:142]} <= {"lost", "warmup"}  # anew, the place of the animal too


def test_batch_program_says_that_it_looked_ahead(ahead: Bundle, video: Path, box_video: Path, tmp_path: Path) -> None:
    """The same bytes alone and in company, and in the output that no live camera would get them."""
    outs = tmp_path / "alone", tmp_path / "together"
    for out, videos in zip(outs, ([video], [box_video, video]), strict=True):
        done = mbr_live("batch", *videos, "--out", out, "--bundle", ahead.path)
        assert done.returncode == 0, done.stderr
        assert "looks ahead: these labels are not what a live camera would get" in done.stdout
        assert read_run(out / "night.run.json").causal is False
        assert list(out.glob("*.part")) == []
    for suffix in (".labels.csv", ".bouts.csv"):
        one, other = ((out / f"night{suffix}").read_bytes() for out in outs)
        assert one == other
    assert (outs[0] / "night.bouts.csv").read_text().count("\n") > 1


def test_a_run_says_what_its_bundle_does(causal: Bundle, video: Path, tmp_path: Path) -> None:
    run = run_job(Job("night", (video,)), tmp_path, causal, OpenVinoEngine(causal))
    assert run == read_run(tmp_path / "night.run.json")
    assert run.causal and run.max_gap_frames == causal.manifest.max_gap_frames


class _Recorder:
    """An engine whose features are the tick of the frame, and which keeps the sequences that it is given."""

    name = "recorder"

    def __init__(self) -> None:
        self.sequences: list[list[int]] = []

    def features(self, crops: Crops) -> Floats:
        return crops[:, 0, 0, :1].astype(np.float32)

    def step(self, features: Floats, state: Floats) -> tuple[Floats, Floats]:
        raise AssertionError("a bundle that looks ahead has no step")

    def sequence(self, features: Floats) -> Floats:
        self.sequences.append(features[:, 0].astype(int).tolist())
        return features[:, :1].repeat(2, axis=1)


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["seen", "lost", "missing"]), min_size=1, max_size=60), st.integers(0, 4))
def test_stretches_are_those_of_training(pattern: list[str], max_gap_frames: int) -> None:
    engine = _Recorder()
    described = manifest(feature_dim=1, causal=False, state_size=0, max_gap_s=max_gap_frames / 10, warmup_frames=0)
    pipeline = _Told(described, engine, pattern)
    hindsight, state, decisions = Hindsight(pipeline), pipeline.start(), list[Decision]()
    for tick, kind in enumerate(pattern):
        if kind != "missing":
            picture = np.full((2, 2, 3), tick, np.uint8)
            seen = [pipeline.see(Frame("a", tick, tick, tick, 0, picture), state.sight)]
            new, states = hindsight.label(seen, pipeline.features(seen), {"a": state})
            state = states["a"]
            decisions += new
    decisions += hindsight.flush()
    ticks = np.flatnonzero(np.array(pattern) == "seen")
    assert engine.sequences == [ticks[s.rows].tolist() for s in stretches(ticks, max_gap_frames)]
    assert [d.index for d in decisions if d.status is Status.OK] == ticks.tolist()
    assert all(one.index + one.ticks == other.index for one, other in pairwise(decisions))


class _Told(Pipeline):
    """A pipeline that is told in which frames there is an animal."""

    def __init__(self, described: object, engine: _Recorder, pattern: Sequence[str]) -> None:
        super().__init__(described, engine)  # type: ignore[arg-type]
        self._pattern = pattern

    def see(self, frame: Frame, state: SightState) -> Seen:
        status = Status.LOST if self._pattern[frame.index] == "lost" else Status.OK
        decision = Decision(
            "a", frame.index, frame.source_frame, frame.time_ns, status, 0.0, 0.0, (), (UNKNOWN, UNKNOWN)
        )
        return Seen(decision, frame.origin_ns, state, frame.pixels if status is Status.OK else None)


# Live.


REFUSED = r"looks ahead: its labels depend on frames that a live camera has yet to deliver"


def test_live_programs_refuse_before_anything_starts(ahead: Bundle, box_video: Path, tmp_path: Path) -> None:
    out = tmp_path / "live"
    config = tmp_path / "system.toml"
    config.write_text(
        f'out = "{out}"\nbundle = "{ahead.path}"\n[[camera]]\nname = "cage"\nsource = {{ kind = "simulated" }}\n'
    )
    for command in (
        ("run", config, "--plain", "--seconds", "5"),
        ("infer", config),
        ("replay", box_video, "--out", out, "--bundle", ahead.path, "--plain"),
    ):
        done = mbr_live(*command)
        assert done.returncode == 2
        assert done.stderr.startswith(f"mbr-live: Bundle {ahead.path} (test) looks ahead")
        assert done.stderr.count("\n") == 1 and "mbr-live batch" in done.stderr
        assert not out.exists()


def test_a_system_refuses_before_it_writes_anything(ahead: Bundle, tmp_path: Path) -> None:
    config = system_config(tmp_path / "live", simulated("cage")).model_copy(update={"bundle": ahead.path})
    with pytest.raises(MbrError, match=REFUSED):
        System(config)
    assert not config.out.exists()
