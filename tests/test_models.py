"""The networks: streaming equals the whole sequence, nothing looks ahead, and the export computes the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="training is not installed: pip install 'mbr-live[train]'")

from mbr_live.bundle import FEATURES, TEMPORAL  # noqa: E402
from mbr_live.models import Tcn, TcnConfig, Trunk, TrunkConfig, export_onnx  # noqa: E402

configs = st.builds(
    TcnConfig,
    channels=st.integers(2, 12),
    blocks=st.integers(1, 4),
    kernel=st.integers(2, 4),
)
frames = st.integers(1, 40)
seeds = st.integers(0, 2**31)
few = settings(max_examples=40, deadline=None)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(config: TcnConfig, seed: int) -> Tcn:
    torch.manual_seed(seed)
    return Tcn(config, feature_dim=5, behaviours=3).eval()


@few
@given(configs, frames, seeds)
def test_streaming_equals_the_whole_sequence(config: TcnConfig, count: int, seed: int) -> None:
    tcn = build(config, seed)
    features = torch.randn(2, count, 5)
    state = torch.zeros(2, tcn.state_size)
    logits = []
    with torch.inference_mode():
        for frame in features.unbind(1):
            now, state = tcn.step(frame, state)
            logits.append(now)
        whole = tcn(features)
    assert state.shape == (2, tcn.state_size)
    torch.testing.assert_close(torch.stack(logits, 1), whole, atol=1e-5, rtol=0)


@few
@given(configs, st.integers(2, 40), seeds, st.data())
def test_the_future_changes_nothing(config: TcnConfig, count: int, seed: int, data: st.DataObject) -> None:
    tcn = build(config, seed)
    now = data.draw(st.integers(0, count - 2))
    features = torch.randn(1, count, 5)
    other = features.clone()
    other[:, now + 1 :] += 100.0
    with torch.inference_mode():
        before, after = tcn(features), tcn(other)
    torch.testing.assert_close(before[:, : now + 1], after[:, : now + 1], atol=1e-6, rtol=0)


def test_the_present_and_the_past_count() -> None:
    tcn = build(TcnConfig(), 1)
    features = torch.randn(1, 10, 5)
    for frame in (0, 9):
        other = features.clone()
        other[:, frame] += 1.0
        with torch.inference_mode():
            assert not torch.allclose(tcn(features)[:, 9], tcn(other)[:, 9])


@few
@given(configs, seeds)
def test_memory_is_the_receptive_field_and_no_longer(config: TcnConfig, seed: int) -> None:
    tcn = build(config, seed)
    reach = 2 * (config.kernel - 1) * (2**config.blocks - 1)
    assert tcn.state_size == reach * config.channels
    assert tcn.receptive_field_frames == reach + 1
    features = torch.randn(1, reach + 2, 5)
    features.requires_grad_()
    tcn(features)[0, -1].sum().backward()
    touched = features.grad[0].abs().sum(1)
    assert touched[0] == 0.0  # the frame just outside of the receptive field


def test_a_reset_state_forgets() -> None:
    tcn = build(TcnConfig(), 1)
    with torch.inference_mode():
        _, state = tcn.step(torch.randn(1, 5), torch.zeros(1, tcn.state_size))
        frame = torch.randn(1, 5)
        remembers, _ = tcn.step(frame, state)
        fresh, _ = tcn.step(frame, torch.zeros_like(state))
        alone = tcn(frame[:, None])[:, 0]
    assert not torch.allclose(remembers, fresh)
    torch.testing.assert_close(fresh, alone, atol=1e-6, rtol=0)


def test_default_size_is_small_and_remembers_a_minute_at_most() -> None:
    trunk = Trunk(TrunkConfig())
    tcn = Tcn(TcnConfig(), feature_dim=trunk.feature_dim, behaviours=2)
    weights = sum(weight.numel() for module in (trunk, tcn) for weight in module.parameters())
    assert weights < 1_000_000
    assert 61 <= tcn.receptive_field_frames <= 127


@pytest.mark.parametrize("config", [TrunkConfig(), TrunkConfig(widths=(8, 8, 12), blocks=2)])
def test_trunk_takes_raw_pixels_of_any_size(config: TrunkConfig) -> None:
    trunk = Trunk(config).eval()
    crops = torch.randint(0, 256, (3, 160, 160, 3), dtype=torch.uint8)
    with torch.inference_mode():
        features = trunk(crops)
        swapped = trunk(crops.flip(-1))
    assert features.shape == (3, 2 * config.widths[-1]) and features.dtype == torch.float32
    assert not torch.allclose(features, swapped)  # the order of the colours counts


def test_trunk_normalises_as_imagenet_models_do() -> None:
    trunk = Trunk(TrunkConfig()).eval()
    seen: list[torch.Tensor] = []
    trunk.layers.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    crops = torch.randint(0, 256, (1, 160, 160, 3), dtype=torch.uint8)
    trunk(crops)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (crops[0].numpy() / 255.0 - mean) / std
    np.testing.assert_allclose(seen[0][0].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_export_is_repeatable_and_names_its_ports(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    contents = []
    for name in "ab":
        torch.manual_seed(1)
        trunk = Trunk(TrunkConfig())
        tcn = Tcn(TcnConfig(), feature_dim=trunk.feature_dim, behaviours=2)
        (tmp_path / name).mkdir()
        export_onnx(trunk, tcn, tmp_path / name)
        contents.append([(tmp_path / name / file).read_bytes() for file in (FEATURES, TEMPORAL)])
    assert contents[0] == contents[1]
    ports = {FEATURES: (["crops"], ["features"]), TEMPORAL: (["features", "state"], ["logits", "state_out"])}
    for file, content in zip((FEATURES, TEMPORAL), contents[0], strict=True):
        graph = onnx.load_from_string(content)
        onnx.checker.check_model(graph)
        assert [entry.version for entry in graph.opset_import] == [17]
        names = [port.name for port in graph.graph.input], [port.name for port in graph.graph.output]
        assert names == ports[file]
