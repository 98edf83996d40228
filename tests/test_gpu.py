"""What takes a GPU: marked `gpu`, and skipped, saying so, where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mbr_live.bundle import Bundle
from mbr_live.engines.choice import engine_of
from mbr_live.engines.gpu_probe import probe_gpus
from mbr_live.engines.openvino_engine import OpenVinoEngine
from mbr_live.engines.parity import limits, parity, passes, probe
from mbr_live.engines.plans import GpuPrecision, kept_plans, plan_folder, read_plan
from mbr_live.engines.tensorrt_build import build_in_child, plan_key
from mbr_live.engines.tensorrt_engine import NoPlan, TensorRtEngine

_found = probe_gpus()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not _found.gpus, reason=f"no GPU: {_found.why_none}"),
]


@pytest.fixture(params=["f32", "f16"])
def precision(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GpuPrecision:
    pytest.importorskip("tensorrt", reason="TensorRT is not installed: pip install 'mbr-live[gpu]'")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wanted: GpuPrecision = request.param
    return wanted


def test_a_plan_is_built_loaded_and_computes_the_same(precision: GpuPrecision, demo_bundle: Bundle) -> None:
    with pytest.raises(NoPlan, match="engine build"):
        TensorRtEngine(demo_bundle, precision=precision)
    path = build_in_child(demo_bundle.path, precision, 8, plan_folder())
    assert [kept.path for kept in kept_plans(plan_folder())] == [path]
    engine = TensorRtEngine(demo_bundle, precision=precision, batch=8)
    found = parity(engine, OpenVinoEngine(demo_bundle), demo_bundle.manifest)
    assert passes(found, limits(demo_bundle, precision, gpu=True)), found
    half = sum(count for name, count in engine.header.layers.items() if "alf" in name or "F16" in name.upper())
    assert (half > 0) == (precision == "f16"), engine.header.layers


def test_labels_do_not_depend_on_the_number_of_lanes(precision: GpuPrecision, demo_bundle: Bundle) -> None:
    build_in_child(demo_bundle.path, precision, 8, plan_folder())
    engine = TensorRtEngine(demo_bundle, precision=precision, batch=8)
    crops = probe()
    together = engine.features(crops)
    for lanes in (1, 2, 5, 8):
        parts = [engine.features(crops[start : start + lanes]) for start in range(0, len(crops), lanes)]
        assert np.concatenate(parts).tobytes() == together.tobytes()


def test_a_damaged_plan_is_no_plan(precision: GpuPrecision, demo_bundle: Bundle) -> None:
    path = build_in_child(demo_bundle.path, precision, 1, plan_folder())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert read_plan(plan_folder(), plan_key(demo_bundle, precision, 1)) is None
    with pytest.raises(NoPlan):
        engine_of(demo_bundle, f"tensorrt-{precision}")  # type: ignore[arg-type]
