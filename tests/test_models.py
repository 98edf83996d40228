"""The feature network, and the export of both networks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training is not installed: pip install 'mbr-live[train]'")

from mbr_live.manifest import FEATURES, TEMPORAL  # noqa: E402
from mbr_live.training.models import Trunk, TrunkConfig, export_onnx  # noqa: E402
from mbr_live.training.temporal import Tcn, TcnConfig  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
