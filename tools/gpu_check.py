"""Every GPU check and benchmark there is, on a machine with an NVIDIA GPU: one JSON file and one table.

    python tools/gpu_check.py [--bundle BUNDLE ...] [--out gpu_check.json] [--seconds 1.0]

1. What is there: GPU, driver, versions (`gpu_probe`).
2. torch on the GPU, where torch is installed and sees it: features of batch 1 to 256 in float32 and float16, eager and
   as a CUDA graph, held against the CPU.
3. TensorRT, where it can be imported: builds plans in float32, float16 and, where the bundle has it, int8; reads their
   precisions back; holds them against the CPU; batch 1 to 256; latency at batch 1 and 32; whole crops-to-logits.
4. `pytest -m gpu`.

Each part that cannot be run says why, and the others go on. Without a GPU it says so and ends with code 2.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mbr_live.bundle import Bundle, load_bundle
from mbr_live.config import DEMO_BUNDLE
from mbr_live.engines.gpu_probe import probe_gpus
from mbr_live.engines.openvino_engine import OpenVinoEngine
from mbr_live.engines.parity import limits, parity, passes, timed_s
from mbr_live.engines.plans import GpuPrecision, plan_folder, read_plan
from mbr_live.engines.tensorrt_build import build_in_child, plan_key
from mbr_live.engines.tensorrt_engine import TensorRtEngine
from mbr_live.manifest import FEATURES
from mbr_live.types import CROP_PX, RATE_FPS, MbrError

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LATENCY_BATCHES = (1, 32)
_say = Console(stderr=True)

Row = dict[str, Any]


def main() -> int:
    """0: everything that could be run passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, action="append", help="model bundle; default: the demo bundle")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--seconds", type=float, default=1.0, help="least time of one measurement")
    options = parser.parse_args()
    found = probe_gpus()
    if not found.gpus:
        print(f"no GPU to check: {found.why_none}", file=sys.stderr)
        return 2
    report: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": _machine(found.gpus)}
    rows: list[Row] = []
    for path in options.bundle or [DEMO_BUNDLE]:
        bundle = load_bundle(path)
        for part in (_torch_rows, _tensorrt_rows):
            rows += _tried(part, bundle, options.seconds)
    report["rows"] = rows
    report["tests"] = _tests()
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    Console(width=140).print(_table(rows, report["machine"]))
    print(f"pytest -m gpu: {report['tests']['summary']}\n{options.out}")
    return int(
        any(row.get("passed") is False or "failed" in row for row in rows) or report["tests"]["code"] not in (0, 5)
    )


def _machine(gpus: tuple[Any, ...]) -> Row:
    versions = {}
    for name in ("mbr-live", "torch", "tensorrt", "cuda-python", "onnx", "onnxruntime", "openvino", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {"gpus": [vars_of(gpu) for gpu in gpus], "python": platform.python_version(), "versions": versions}


def vars_of(gpu: Any) -> Row:
    """The fields of a dataclass with slots."""
    return {name: getattr(gpu, name) for name in gpu.__slots__}


def _tried(part: Callable[[Bundle, float], Iterator[Row]], bundle: Bundle, seconds: float) -> list[Row]:
    """The rows of a part; where it breaks off, why."""
    rows: list[Row] = []
    try:
        for row in part(bundle, seconds):
            _say.print(row, highlight=False, markup=False)
            rows.append({"bundle": bundle.manifest.name, **row})
    except (MbrError, ImportError, RuntimeError) as error:
        rows.append({"bundle": bundle.manifest.name, "engine": part.__name__.strip("_"), "failed": str(error)[:500]})
        _say.print(rows[-1], highlight=False, markup=False)
    return rows


def _crops(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).integers(0, 256, (batch, CROP_PX, CROP_PX, 3), np.uint8)


def _torch_rows(bundle: Bundle, seconds: float) -> Iterator[Row]:
    import torch

    from mbr_live.engines.onnx_torch import OnnxGraph

    if not torch.cuda.is_available():
        raise MbrError("torch sees no GPU: is it a build for the CPU alone?")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    reference = OpenVinoEngine(bundle).features(_crops(8))
    graph = OnnxGraph(bundle.read(FEATURES), f"Bundle {bundle.path}").to("cuda")
    for kind, half in (("f32", False), ("f16", True)):
        for batch in BATCHES:
            crops = torch.from_numpy(_crops(batch)).cuda()

            def run(crops: Any = crops, half: bool = half) -> Any:
                with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=half):
                    return graph({"crops": crops})["features"]

            row = {"engine": f"torch {torch.__version__} eager", "precision": kind, "batch": batch}
            if batch == 8:
                error = np.linalg.norm(run().float().cpu().numpy() - reference) / np.linalg.norm(reference)
                row |= {"feature_error": float(error), "passed": bool(error <= (0.01 if half else 1e-4))}
            yield row | _speed(run, batch, seconds, torch.cuda.synchronize)
            yield {**row, "engine": f"torch {torch.__version__} graph"} | _speed(
                _recorded(run), batch, seconds, torch.cuda.synchronize
            )


def _recorded(run: Callable[[], Any]) -> Callable[[], Any]:
    """The same work as a CUDA graph."""
    import torch

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    def replay() -> Any:
        graph.replay()
        return kept

    return replay


def _tensorrt_rows(bundle: Bundle, seconds: float) -> Iterator[Row]:
    reference = OpenVinoEngine(bundle)
    precisions: list[GpuPrecision] = ["f32", "f16", *(["int8"] if bundle.manifest.int8 else [])]  # type: ignore[list-item]
    for precision in precisions:
        for batch in BATCHES:
            key = plan_key(bundle, precision, batch)
            if read_plan(plan_folder(), key) is None:
                build_in_child(
                    bundle.path, precision, batch, plan_folder(), lambda text: _say.print(text, markup=False)
                )
            engine = TensorRtEngine(bundle, precision=precision, batch=batch)
            row: Row = {"engine": f"tensorrt {key.tensorrt}", "precision": precision, "batch": batch}
            row |= {"layers": engine.header.layers, "build_s": engine.header.build_s}
            if batch in LATENCY_BATCHES:
                found = parity(engine, reference, bundle.manifest)
                allowed = limits(bundle, precision, gpu=True)
                row |= {"feature_error": found.feature_error, "probability_error": found.probability_error}
                row |= {"passed": passes(found, allowed)}
            crops = _crops(batch)
            yield row | _speed(lambda engine=engine, crops=crops: engine.features(crops), batch, seconds)  # type: ignore[misc]


def _speed(run: Callable[[], Any], batch: int, seconds: float, wait: Callable[[], None] = lambda: None) -> Row:
    """Latency of one call, waited for, and frames per second; with TensorRT copies to and from the GPU included."""

    def waited() -> None:
        run()
        wait()

    times_s = np.array(timed_s(waited, seconds))
    p50, p99 = np.percentile(times_s, [50, 99]) * 1e3
    fps = batch * len(times_s) / times_s.sum()
    return {
        "p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3), "frames_per_s": round(float(fps)),
        "cameras": int(fps // RATE_FPS),
    }  # fmt: skip


def _tests() -> Row:
    began_s = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    return {
        "code": done.returncode,
        "summary": lines[-1] if lines else done.stderr[-500:],
        "s": time.monotonic() - began_s,
    }


def _table(rows: list[Row], machine: Row) -> Table:
    names = (
        "bundle",
        "engine",
        "precision",
        "batch",
        "frames_per_s",
        "p50_ms",
        "p99_ms",
        "cameras",
        "feature_error",
        "passed",
    )
    table = Table(*names, title=f"{machine['gpus'][0]['name']}, {machine['versions']}")
    for row in rows:
        cells = [str(row.get(name, "")) for name in names]
        if "failed" in row:
            cells[2] = row["failed"]
        table.add_row(*cells)
    return table


if __name__ == "__main__":
    raise SystemExit(main())
