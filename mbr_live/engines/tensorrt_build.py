"""Has plans built, each in a process of its own: TensorRT takes much memory and may crash without a word."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mbr_live.bundle import Bundle
from mbr_live.engines.cuda import Cuda
from mbr_live.engines.gpu_probe import Gpu, probe_gpus
from mbr_live.engines.plans import GpuPrecision, PlanKey
from mbr_live.engines.tensorrt_api import tensorrt
from mbr_live.manifest import FEATURES, FEATURES_INT8
from mbr_live.types import MbrError

BUILD_TIMEOUT_S = 1800.0
_CONVERTS_TO_F16 = ("onnxruntime", "onnx")


def plan_key(bundle: Bundle, precision: GpuPrecision, batch: int) -> PlanKey:
    """The key of a plan on this machine. MbrError where there is no GPU, no TensorRT, or no such graph."""
    trt, gpu = tensorrt(), _gpu()
    return PlanKey(
        tensorrt=trt.__version__,
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        driver=Cuda().driver_version(),
        bundle=bundle.manifest.name,
        graph_sha256=hashlib.sha256(bundle.read(graph_file(bundle, precision))).hexdigest(),
        precision=precision,
        converter=converter(precision),
        batch=batch,
    )


def converter(precision: GpuPrecision) -> str:
    """Versions of what makes the graph of a precision; "" where a file of the bundle is the graph."""
    if precision != "f16":
        return ""
    try:
        return ", ".join(f"{name} {version(name)}" for name in _CONVERTS_TO_F16)
    except PackageNotFoundError as error:
        raise MbrError(
            f"engine tensorrt-f16: {error.name} is not installed, which makes its graph. "
            "Run: pip install 'mbr-live[gpu]', or use another engine."
        ) from error


def build_command(bundle: Path, precision: GpuPrecision, batch: int, folder: Path) -> list[str]:
    """What builds a plan in a process of its own."""
    return [sys.executable, "-m", "mbr_live.engines.tensorrt_child", str(bundle), precision, str(batch), str(folder)]


def build_in_child(
    bundle: Path, precision: GpuPrecision, batch: int, folder: Path, say: Callable[[str], None] = lambda text: None
) -> Path:
    """Build and keep a plan; `say` hears what is being done. MbrError says why there is none."""
    command = build_command(bundle, precision, batch, folder)
    last, late = "", threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:

        def end() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(BUILD_TIMEOUT_S, end)  # the builder is silent for most of its time
        timer.start()
        try:
            for line in child.stdout or ():
                last = line.strip() or last
                say(last)
            code = child.wait()
        finally:
            timer.cancel()
    plan = Path(last)
    if code or not plan.is_file():
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code} and without a plan"
        how = f"took longer than {BUILD_TIMEOUT_S:.0f} s, and was ended" if late.is_set() else how
        raise MbrError(
            f"GPU plan of {bundle} in {precision}: the builder {how}: {last}. The CPU engines work without it."
        )
    return plan


def build_in_background(bundle: Path, precision: GpuPrecision, batch: int, folder: Path) -> None:
    """Begin to build a plan and leave it to itself; what it says goes to `build.log` beside the plans."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "build.log").open("ab") as log:
        subprocess.Popen(
            build_command(bundle, precision, batch, folder),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def graph_file(bundle: Bundle, precision: GpuPrecision) -> str:
    """The file that a precision is built from. MbrError where the bundle does not have it."""
    if not bundle.manifest.feature_dim:
        raise MbrError(f"Bundle {bundle.path} has no feature network that a GPU could compute. Use openvino-f32.")
    if precision != "int8":
        return FEATURES
    if FEATURES_INT8 not in bundle.manifest.files:
        raise MbrError(
            f"Bundle {bundle.path} has no int8 features ({FEATURES_INT8}). Make them with `mbr-live calibrate int8`, "
            "or use another precision."
        )
    return FEATURES_INT8


def _gpu() -> Gpu:
    found = probe_gpus()
    if not found.gpus:
        raise MbrError(f"GPU: there is none to be used ({found.why_none}). Use a CPU engine: --engine openvino-f32.")
    return found.gpus[0]
