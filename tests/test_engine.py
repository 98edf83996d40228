"""The CPU engine: it computes what torch computes, and its bytes do not depend on batch, threads or history."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="training is not installed: pip install 'mbr-live[train]'")

from test_bundle import manifest  # noqa: E402

from mbr_live.bundle import Bundle, load_bundle, write_bundle  # noqa: E402
from mbr_live.engines.openvino_engine import OpenVinoEngine  # noqa: E402
from mbr_live.manifest import CARD, FEATURES, TEMPORAL  # noqa: E402
from mbr_live.training.models import Trunk, TrunkConfig, export_onnx  # noqa: E402
from mbr_live.training.temporal import (  # noqa: E402
    LstmConfig,
    TcnConfig,
    TemporalModel,
    TransformerConfig,
    build_temporal,
)
from mbr_live.types import MbrError  # noqa: E402

LANES = 8


@pytest.fixture(scope="module", params=[TcnConfig(), LstmConfig(), TransformerConfig()], ids=lambda config: config.kind)
def networks(request: pytest.FixtureRequest) -> tuple[Trunk, TemporalModel]:
    torch.manual_seed(7)
    trunk = Trunk(TrunkConfig())
    temporal = build_temporal(request.param, feature_dim=trunk.feature_dim, behaviours=2)
    with torch.no_grad():  # statistics of a trained network, so that their folding on export is put to the test
        trunk.train()(torch.randint(0, 256, (4, 160, 160, 3), dtype=torch.uint8))
    return trunk.eval(), temporal.eval()


@pytest.fixture(scope="module")
def bundle(networks: tuple[Trunk, TemporalModel], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    trunk, temporal = networks
    folder: Path = tmp_path_factory.mktemp("engine")
    export_onnx(trunk, temporal, folder)
    contents = {name: (folder / name).read_bytes() for name in (FEATURES, TEMPORAL)}
    described = manifest(
        feature_dim=trunk.feature_dim,
        state_size=temporal.state_size,
        receptive_field_frames=max(1, temporal.receptive_field_frames),
    )
    return write_bundle(folder / "model", described, {**contents, CARD: b"card"})


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> OpenVinoEngine:
    return OpenVinoEngine(bundle)


@pytest.fixture(scope="module")
def crops() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (LANES, 160, 160, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def state(bundle: Bundle) -> NDArray[np.float32]:
    shape = (LANES, bundle.manifest.state_size)
    return np.random.default_rng(2).standard_normal(shape).astype(np.float32)


def bytes_of(engine: OpenVinoEngine, crops: NDArray[np.uint8], state: NDArray[np.float32]) -> list[bytes]:
    """What each lane gives, as one string of bytes."""
    features = engine.features(crops)
    logits, after = engine.step(features, state)
    return [b"".join(lane.tobytes() for lane in lanes) for lanes in zip(features, logits, after, strict=True)]


def test_equals_torch(
    engine: OpenVinoEngine, networks: tuple[Trunk, TemporalModel], crops: NDArray[np.uint8], state: NDArray[np.float32]
) -> None:
    trunk, temporal = networks
    with torch.inference_mode():
        features = trunk(torch.from_numpy(crops))
        logits, after = temporal.step(features, torch.from_numpy(state))
    np.testing.assert_allclose(engine.features(crops), features.numpy(), atol=1e-4)
    found = engine.step(features.numpy(), state)
    np.testing.assert_allclose(found[0], logits.numpy(), atol=1e-4)
    np.testing.assert_allclose(found[1], after.numpy(), atol=1e-4)


def test_streaming_equals_torch_on_the_whole_sequence(
    engine: OpenVinoEngine, networks: tuple[Trunk, TemporalModel]
) -> None:
    _, temporal = networks
    features = np.random.default_rng(3).standard_normal((200, 1, 256)).astype(np.float32)
    state, logits = np.zeros((1, temporal.state_size), np.float32), []
    for frame in features:
        now, state = engine.step(frame, state)
        logits.append(now[0])
    with torch.inference_mode():
        whole = temporal(torch.from_numpy(features).transpose(0, 1))[0]
    np.testing.assert_allclose(np.stack(logits), whole.numpy(), atol=1e-4)


@pytest.mark.parametrize("lanes", [1, 2, 8])
@pytest.mark.parametrize("threads", [1, 2])
def test_bytes_do_not_depend_on_batch_or_threads(
    engine: OpenVinoEngine,
    bundle: Bundle,
    crops: NDArray[np.uint8],
    state: NDArray[np.float32],
    lanes: int,
    threads: int,
) -> None:
    alone = [bytes_of(engine, crops[b : b + 1], state[b : b + 1])[0] for b in range(LANES)]
    other = OpenVinoEngine(bundle, threads=threads)
    together = [
        lane for b in range(0, LANES, lanes) for lane in bytes_of(other, crops[b : b + lanes], state[b : b + lanes])
    ]
    assert together == alone
    assert len(set(alone)) == LANES


def test_results_outlive_the_next_call(
    engine: OpenVinoEngine, crops: NDArray[np.uint8], state: NDArray[np.float32]
) -> None:
    features = engine.features(crops[:1])
    logits, after = engine.step(features, state[:1])
    kept = features.copy(), logits.copy(), after.copy()
    engine.step(engine.features(crops[1:2]), state[1:2])
    for found, expected in zip((features, logits, after), kept, strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.flags.owndata


def test_inputs_stay_as_they_are(engine: OpenVinoEngine, crops: NDArray[np.uint8], state: NDArray[np.float32]) -> None:
    crops_before, state_before = crops.copy(), state.copy()
    engine.step(engine.features(crops), state)
    np.testing.assert_array_equal(crops, crops_before)
    np.testing.assert_array_equal(state, state_before)


def test_no_lanes_give_no_rows(engine: OpenVinoEngine, bundle: Bundle) -> None:
    features = engine.features(np.zeros((0, 160, 160, 3), np.uint8))
    logits, state = engine.step(features, np.zeros((0, bundle.manifest.state_size), np.float32))
    assert (features.shape, logits.shape, len(state)) == ((0, 256), (0, 2), 0)


def test_views_are_read_by_value(engine: OpenVinoEngine, crops: NDArray[np.uint8]) -> None:
    mirrored = crops[:, :, ::-1]
    np.testing.assert_array_equal(engine.features(mirrored), engine.features(mirrored.copy()))


def test_name_says_what_computes(engine: OpenVinoEngine) -> None:
    assert engine.name.startswith("openvino 20") and engine.name.endswith(" cpu f32")


@pytest.mark.parametrize(
    "crops",
    [
        np.zeros((1, 3, 160, 160), np.uint8),
        np.zeros((1, 160, 160, 3), np.float32),
        np.zeros((160, 160, 3), np.uint8),
        np.zeros((1, 80, 80, 3), np.uint8),
    ],
)
def test_wrong_input_is_explained(engine: OpenVinoEngine, crops: NDArray[np.generic]) -> None:
    with pytest.raises(MbrError, match=r"features\.onnx was given"):
        engine.features(crops)  # type: ignore[arg-type]


def test_lanes_of_features_and_state_must_agree(engine: OpenVinoEngine, bundle: Bundle) -> None:
    with pytest.raises(MbrError, match=r"temporal\.onnx was given"):
        engine.step(np.zeros((2, 256), np.float32), np.zeros((1, bundle.manifest.state_size), np.float32))


def changed(bundle: Bundle, path: Path, contents: dict[str, bytes], **changes: object) -> Bundle:
    described = bundle.manifest.model_copy(update=changes)
    whole = {name: bundle.read(name) for name in (FEATURES, TEMPORAL, CARD)} | contents
    return write_bundle(path / "changed", described, whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_dim": 64}, r"features\.onnx: output 'features' is float32 .*256"),
        ({"state_size": 64}, r"temporal\.onnx: input 'state' is float32"),
        ({"behaviours": (manifest().behaviours[0],)}, r"temporal\.onnx: output 'logits'"),
    ],
)
def test_graphs_of_another_manifest(bundle: Bundle, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(MbrError, match=message):
        OpenVinoEngine(changed(bundle, tmp_path, {}, **changes))


def test_graphs_with_other_ports(bundle: Bundle, tmp_path: Path) -> None:
    swapped = {FEATURES: bundle.read(TEMPORAL), TEMPORAL: bundle.read(FEATURES)}
    with pytest.raises(MbrError, match=r"features\.onnx has inputs \['features', 'state'\], expected \['crops'\]"):
        OpenVinoEngine(changed(bundle, tmp_path, swapped))


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x80\x04pickle"])
def test_what_is_no_graph(bundle: Bundle, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(MbrError, match="no ONNX graph"):
        OpenVinoEngine(changed(bundle, tmp_path, {FEATURES: content}))


def test_file_changed_between_load_and_use(bundle: Bundle, tmp_path: Path) -> None:
    copy = changed(bundle, tmp_path, {})
    loaded = load_bundle(copy.path)
    content = bytearray(copy.read(TEMPORAL))
    content[-100] ^= 1
    (copy.path / TEMPORAL).write_bytes(content)
    with pytest.raises(MbrError, match="SHA-256"):
        OpenVinoEngine(loaded)
