"""The contract of an engine, held by every implementation there is, in every precision."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="training is not installed: pip install 'mbr-live[train]'")

from mbr_live.bundle import Bundle, load_bundle, write_bundle  # noqa: E402
from mbr_live.engines import openvino_engine  # noqa: E402
from mbr_live.engines.choice import engine_of, gpu_precision, kind_of  # noqa: E402
from mbr_live.engines.gpu_probe import probe_gpus  # noqa: E402
from mbr_live.engines.openvino_engine import OpenVinoEngine, Precision, has_bf16  # noqa: E402
from mbr_live.engines.parity import limits, parity, passes, probe  # noqa: E402
from mbr_live.engines.plans import plan_folder  # noqa: E402
from mbr_live.engines.protocol import Engine  # noqa: E402
from mbr_live.engines.tensorrt_build import build_in_child  # noqa: E402
from mbr_live.engines.torch_engine import TorchEngine  # noqa: E402
from mbr_live.manifest import CARD, FEATURES, FEATURES_INT8, TEMPORAL  # noqa: E402
from mbr_live.pipeline import Pipeline  # noqa: E402
from mbr_live.quantisation.calibrate import Given, Labelled, cost_of, label  # noqa: E402
from mbr_live.types import EngineKind, Frame, MbrError  # noqa: E402

LANES = 32


def opened(bundle: Bundle, kind: EngineKind) -> Engine:
    if kind == "openvino-bf16" and not has_bf16():
        pytest.skip("this CPU does not compute in bf16")
    if kind.startswith("tensorrt-"):
        if why := probe_gpus().why_none:
            pytest.skip(f"no GPU: {why}")
        build_in_child(bundle.path, gpu_precision(kind), 1, plan_folder())
    return engine_of(bundle, kind)


@pytest.fixture(scope="module", params=get_args(EngineKind))
def kind(request: pytest.FixtureRequest) -> EngineKind:
    found: EngineKind = request.param
    return found


@pytest.fixture(scope="module")
def engine(int8_bundle: Bundle, kind: EngineKind) -> Engine:
    return opened(int8_bundle, kind)


@pytest.fixture(scope="module")
def crops() -> NDArray[np.uint8]:
    return np.concatenate((probe(), 255 - probe()))[:LANES]


@pytest.fixture(scope="module")
def state(int8_bundle: Bundle) -> NDArray[np.float32]:
    shape = (LANES, int8_bundle.manifest.state_size)
    return np.random.default_rng(2).standard_normal(shape).astype(np.float32)


def lanes_of(engine: Engine, crops: NDArray[np.uint8], state: NDArray[np.float32]) -> list[bytes]:
    """What each lane gives, as one string of bytes."""
    features = engine.features(crops)
    logits, after = engine.step(features, state)
    return [b"".join(lane.tobytes() for lane in lanes) for lanes in zip(features, logits, after, strict=True)]


def test_shapes_types_and_name(engine: Engine, kind: EngineKind, int8_bundle: Bundle) -> None:
    manifest = int8_bundle.manifest
    for lanes in (0, 1, 3):
        features = engine.features(probe()[:lanes])
        logits, state = engine.step(features, np.zeros((lanes, manifest.state_size), np.float32))
        assert [each.shape for each in (features, logits, state)] == [
            (lanes, manifest.feature_dim), (lanes, len(manifest.behaviours)), (lanes, manifest.state_size)
        ]  # fmt: skip
        assert {each.dtype for each in (features, logits, state)} == {np.dtype(np.float32)}
    assert kind_of(engine.name) == kind
    assert len(engine.name.split()) == 4


def test_lanes_do_not_depend_on_each_other(
    engine: Engine, crops: NDArray[np.uint8], state: NDArray[np.float32]
) -> None:
    alone = [lanes_of(engine, crops[b : b + 1], state[b : b + 1])[0] for b in range(8)]
    assert lanes_of(engine, crops[:8], state[:8]) == alone
    assert lanes_of(engine, crops[:8][::-1], state[:8][::-1]) == alone[::-1]
    assert len(set(alone)) == 8


def test_the_same_again_and_in_another_engine(
    engine: Engine, kind: EngineKind, int8_bundle: Bundle, crops: NDArray[np.uint8], state: NDArray[np.float32]
) -> None:
    first = lanes_of(engine, crops[:4], state[:4])
    assert lanes_of(engine, crops[:4], state[:4]) == first
    assert lanes_of(opened(int8_bundle, kind), crops[:4], state[:4]) == first


def test_a_state_that_was_saved_goes_on(engine: Engine, kind: EngineKind, int8_bundle: Bundle) -> None:
    features = engine.features(probe())
    state = np.zeros((1, int8_bundle.manifest.state_size), np.float32)
    whole, saved = [], b""
    for number, frame in enumerate(features):
        if number == 10:
            saved = state.tobytes()
        logits, state = engine.step(frame[None], state)
        whole.append(logits.tobytes())
    other, state = opened(int8_bundle, kind), np.frombuffer(saved, np.float32)[None]
    for number, frame in enumerate(features[10:], 10):
        logits, state = other.step(frame[None], state)
        assert logits.tobytes() == whole[number]


def test_results_outlive_the_next_call_and_inputs_stay(
    engine: Engine, crops: NDArray[np.uint8], state: NDArray[np.float32]
) -> None:
    given = crops[:2].copy(), state[:2].copy()
    features = engine.features(given[0])
    logits, after = engine.step(features, given[1])
    kept = features.copy(), logits.copy(), after.copy()
    engine.step(engine.features(crops[2:4]), state[2:4])
    for found, expected in zip((features, logits, after), kept, strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(given[0], crops[:2])
    np.testing.assert_array_equal(given[1], state[:2])


def test_idle_cameras_are_left_alone(engine: Engine, int8_bundle: Bundle) -> None:
    pipeline = Pipeline(int8_bundle.manifest, engine, {"a": 140, "b": 140})
    states = {"a": pipeline.start(), "b": pipeline.start()}
    pixels = np.random.default_rng(4).integers(0, 256, (240, 320, 3), np.uint8)
    _, after = pipeline.step([Frame("a", 0, 0, 0, 0, pixels)], states)
    assert after["b"] is states["b"]
    assert after["a"].last_index == 0


def test_parity_with_the_reference(engine: Engine, kind: EngineKind, int8_bundle: Bundle) -> None:
    reference = TorchEngine(int8_bundle)
    precision = engine.name.split()[-1]
    assert passes(parity(engine, reference, int8_bundle.manifest), limits(int8_bundle, precision))
    if precision != "f32":  # it is not float32 under another name
        assert parity(engine, reference, int8_bundle.manifest).feature_error > 1e-4


def test_int8_computes_what_its_graph_says(int8_bundle: Bundle) -> None:
    """Integers and the same in floating point differ by rounding alone: far less than what quantisation costs."""
    integers, floats = OpenVinoEngine(int8_bundle, precision="int8"), TorchEngine(int8_bundle, int8=True)
    costs = parity(integers, TorchEngine(int8_bundle), int8_bundle.manifest).feature_error
    assert parity(integers, floats, int8_bundle.manifest).feature_error < costs / 4
    assert floats.name.endswith("cpu int8")


MOST_DIFFERENT = {"f32": 0.0, "bf16": 0.02, "int8": 0.05}
"""Share of the frames of a recording whose label may differ from that of openvino-f32."""


@pytest.fixture(scope="module")
def exact(int8_bundle: Bundle, box_video: Path) -> Labelled:
    return labelled(int8_bundle, engine_of(int8_bundle, "openvino-f32"), box_video)


def labelled(bundle: Bundle, engine: Engine, video: Path) -> Labelled:
    return label(Given("box", (video,)), bundle, engine, lambda what, done: None, "labels")


def test_labels_of_a_recording(engine: Engine, int8_bundle: Bundle, box_video: Path, exact: Labelled) -> None:
    found = labelled(int8_bundle, engine, box_video)
    cost = cost_of(int8_bundle.manifest.behaviour_names, [Given("box", (box_video,))], [exact], [found])
    assert cost.frames == len(found.source_frames) > 60
    assert cost.labels_differ <= MOST_DIFFERENT[engine.name.split()[-1]]
    assert found.labels.max() == 1


def test_wrong_inputs_are_explained(engine: Engine, int8_bundle: Bundle) -> None:
    size = int8_bundle.manifest.state_size
    with pytest.raises(MbrError, match=r"features.*\.onnx was given float32"):
        engine.features(np.zeros((1, 160, 160, 3), np.float32))  # type: ignore[arg-type]
    with pytest.raises(MbrError, match=r"features.*\.onnx was given uint8 \[1, 80, 80, 3\]"):
        engine.features(np.zeros((1, 80, 80, 3), np.uint8))
    with pytest.raises(MbrError, match=r"temporal\.onnx was given"):
        engine.step(np.zeros((2, int8_bundle.manifest.feature_dim), np.float32), np.zeros((1, size), np.float32))
    with pytest.raises(MbrError, match="it is causal"):
        engine.sequence(np.zeros((3, int8_bundle.manifest.feature_dim), np.float32))


@pytest.mark.parametrize("precision", get_args(Precision))
def test_bytes_do_not_depend_on_lanes_batch_or_threads(
    int8_bundle: Bundle, crops: NDArray[np.uint8], state: NDArray[np.float32], precision: Precision
) -> None:
    if precision == "bf16" and not has_bf16():
        pytest.skip("this CPU does not compute in bf16")
    one = OpenVinoEngine(int8_bundle, precision=precision)
    alone = [lanes_of(one, crops[b : b + 1], state[b : b + 1])[0] for b in range(LANES)]
    for threads, batch in ((1, 1), (2, 1), (1, 8), (2, 8), (1, 32), (2, 32), (2, 5)):
        engine = OpenVinoEngine(int8_bundle, precision=precision, threads=threads, batch=batch)
        for lanes in (1, 2, 8, 32):
            assert [
                lane
                for b in range(0, LANES, lanes)
                for lane in lanes_of(engine, crops[b : b + lanes], state[b : b + lanes])
            ] == alone, (threads, batch, lanes)


@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("worth_it_s", [-1e9, 1e9], ids=["more threads", "one thread"])
def test_a_live_lane_that_comes_alone_has_the_same_bytes_on_more_threads(
    int8_bundle: Bundle,
    crops: NDArray[np.uint8],
    precision: Precision,
    worth_it_s: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if precision == "bf16" and not has_bf16():
        pytest.skip("this CPU does not compute in bf16")
    monkeypatch.setattr(openvino_engine, "_WORTH_MORE_THREADS_S", worth_it_s)
    live = OpenVinoEngine(int8_bundle, precision=precision, threads=2, live=True)
    assert live._features is not None
    assert (live._features._lone is None) == (worth_it_s > 0)
    expected = OpenVinoEngine(int8_bundle, precision=precision).features(crops)
    used: list[openvino_engine._Graph] = []
    true = openvino_engine._Graph.per_lane

    def noted(graph: openvino_engine._Graph, *arrays: NDArray[np.generic]) -> list[NDArray[np.generic]]:
        used.append(graph)
        return true(graph, *arrays)

    monkeypatch.setattr(openvino_engine._Graph, "per_lane", noted)
    monkeypatch.setattr(live._features, "_few_come", lambda lanes: len(used) % 2 == 0)
    alone = [live.features(crops[lane : lane + 1]) for lane in range(len(crops))]
    lone = live._features._lone or live._features.single
    assert used == [lone, live._features.single] * (len(crops) // 2)
    assert np.concatenate(alone).tobytes() == expected.tobytes() == live.features(crops).tobytes()


def test_lanes_that_come_often_have_a_thread_each(int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine, "_WORTH_MORE_THREADS_S", -1e9)
    live = OpenVinoEngine(int8_bundle, threads=2, live=True)._features
    assert live is not None
    live._lone_s = 0.003
    live._last_s = now_s = 100.0
    monkeypatch.setattr(openvino_engine, "time", SimpleNamespace(perf_counter=lambda: now_s))
    for every_s, few in ((0.1, True), (0.004, False), (0.1, True), (0.012, True), (0.004, False)):
        for lanes in (1, 1, 2, 4) * 100:
            now_s += lanes * every_s
            found = live._few_come(lanes)
        assert found == few
    now_s += 8 * 3600.0  # a night without cameras
    assert live._few_come(1)
    for _ in range(250):
        now_s += 0.004
        found = live._few_come(1)
    assert not found


def test_more_threads_that_give_other_bytes_are_not_taken(
    int8_bundle: Bundle, crops: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a bf16 graph beside that of float32."""
    if not has_bf16():
        pytest.skip("this CPU does not compute in bf16, which differs")
    monkeypatch.setattr(openvino_engine, "_WORTH_MORE_THREADS_S", -1e9)
    exact, other = (OpenVinoEngine(int8_bundle, precision=each) for each in ("f32", "bf16"))
    assert exact._features and other._features
    ports = {"crops": (crops[:1].shape, np.uint8)}
    assert openvino_engine._serves_in_s(exact._features.single, exact._features.single, ports) < 1
    assert openvino_engine._serves_in_s(other._features.single, exact._features.single, ports) == float("inf")


def test_bytes_that_depend_on_the_batch_are_refused(int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    true = openvino_engine._Graph.per_lane

    def other(graph: openvino_engine._Graph, *arrays: NDArray[np.generic]) -> list[NDArray[np.generic]]:
        results = true(graph, *arrays)
        return [each * np.float32(1.0000002) for each in results] if graph._at_once > 1 else results

    monkeypatch.setattr(openvino_engine._Graph, "per_lane", other)
    OpenVinoEngine(int8_bundle)
    with pytest.raises(MbrError, match="number of cameras"):
        OpenVinoEngine(int8_bundle, batch=8)


def test_the_precision_is_that_which_runs(int8_bundle: Bundle) -> None:
    assert OpenVinoEngine(int8_bundle).precisions() == {"f32": 10}
    assert OpenVinoEngine(int8_bundle, precision="int8").precisions() == {"u8": 10}
    if has_bf16():
        assert OpenVinoEngine(int8_bundle, precision="bf16").precisions() == {"bf16": 10}


def test_int8_that_is_not_is_refused(int8_bundle: Bundle, tmp_path: Path) -> None:
    contents = {name: int8_bundle.read(name) for name in (FEATURES, TEMPORAL, CARD)}
    floats = write_bundle(tmp_path / "floats", int8_bundle.manifest, {**contents, FEATURES_INT8: contents[FEATURES]})
    with pytest.raises(MbrError, match=r"int8 was asked for, but OpenVINO .* runs .* in f32"):
        OpenVinoEngine(floats, precision="int8")


def test_what_is_not_there_is_refused(demo_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    if not demo_bundle.manifest.int8:
        with pytest.raises(MbrError, match=r"no int8 features \(features\.int8\.onnx\)"):
            OpenVinoEngine(demo_bundle, precision="int8")
    monkeypatch.setattr(openvino_engine, "has_bf16", lambda: False)
    with pytest.raises(MbrError, match="bf16 was asked for, but this CPU"):
        OpenVinoEngine(demo_bundle, precision="bf16")


def test_a_changed_int8_graph_is_refused(int8_bundle: Bundle, tmp_path: Path) -> None:
    contents = {name: int8_bundle.read(name) for name in int8_bundle.manifest.contents}
    copy = write_bundle(tmp_path / "copy", int8_bundle.manifest, contents)
    content = bytearray(contents[FEATURES_INT8])
    content[-100] ^= 1
    (copy.path / FEATURES_INT8).write_bytes(content)
    with pytest.raises(MbrError, match=r"features\.int8\.onnx has SHA-256"):
        load_bundle(copy.path)
