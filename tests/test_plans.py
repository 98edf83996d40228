"""GPU plans without a GPU: the cache believes nothing that is damaged or of another machine; the graph is one that
TensorRT takes; every name of its API is there in 8.6 to 11; without a GPU nothing crashes and the CPU serves.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live import mbr_live, simulated, system_config

from mbr_live.bundle import Bundle, load_bundle
from mbr_live.config import DEMO_BUNDLE
from mbr_live.engines import tensorrt_build
from mbr_live.engines.choice import engine_of, open_live_engine
from mbr_live.engines.gpu_probe import Gpu, probe_gpus
from mbr_live.engines.plans import PlanHeader, PlanKey, kept_plans, read_plan, timings_file, write_plan, write_whole
from mbr_live.engines.tensorrt_api import NEEDED
from mbr_live.engines.tensorrt_child import graph_for, layer_precisions
from mbr_live.live.run import System
from mbr_live.manifest import FEATURES
from mbr_live.sinks.run_manifest import read_run
from mbr_live.types import MbrError

KEY = PlanKey(
    tensorrt="10.3.0", gpu="NVIDIA H100", compute_capability="9.0", driver="12.8", bundle="demo",
    graph_sha256="0" * 64, precision="f16", converter="onnxruntime 1.20.0", batch=8,
)  # fmt: skip
PLAN = bytes(range(256)) * 40

# What TensorRT 8.6's parser and its int8 take, and what our graphs are made of.
OPERATORS = {
    "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Constant", "Conv", "DequantizeLinear", "Div",
    "Flatten", "Gather", "Gemm", "GlobalAveragePool", "Identity", "LayerNormalization", "MatMul", "MaxPool", "Mul",
    "QuantizeLinear", "ReduceMax", "ReduceMean", "Relu", "Reshape", "Resize", "Shape", "Sigmoid", "Slice", "Split",
    "Squeeze", "Sub", "Transpose", "Unsqueeze",
}  # fmt: skip
MAX_OPSET = 17
VERSIONS = (
    ("tensorrt-bindings==8.6.1", 8),
    ("tensorrt-cu12-bindings==10.3.0", 10),
    ("tensorrt-cu12-bindings==10.16.1.11", 10),
    ("tensorrt-cu12-bindings==11.4.0.106", 11),
)
no_gpu = pytest.mark.skipif(
    bool(probe_gpus().gpus), reason="there is a GPU here: what this is about is a machine without"
)


def header(key: PlanKey = KEY, plan: bytes = PLAN) -> PlanHeader:
    digest = hashlib.sha256(plan).hexdigest()
    return PlanHeader(key=key, plan_sha256=digest, plan_bytes=len(plan), built="2026-11-25T00:00:00+00:00", build_s=1.0)


def test_a_plan_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    path = write_plan(tmp_path, header(), PLAN)
    assert read_plan(tmp_path, KEY) == (header(), PLAN)
    assert [kept.path for kept in kept_plans(tmp_path)] == [path]
    assert not list(tmp_path.glob("*.part"))


def test_a_file_that_cannot_be_written_whole_is_as_it_was_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_whole(tmp_path / "timing.cache", b"measured before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MbrError, match=r"timing\.cache cannot be written \(No space left on device\)"):
        write_whole(tmp_path / "timing.cache", b"measured now")
    assert [path.name for path in tmp_path.iterdir()] == ["timing.cache"]
    assert (tmp_path / "timing.cache").read_bytes() == b"measured before"


@pytest.mark.parametrize("field", sorted(set(PlanKey.model_fields) - {"format"}))
def test_a_plan_of_anything_else_is_another_plan(field: str, tmp_path: Path) -> None:
    """Of another driver, GPU, version, graph, precision, converter or batch."""
    write_plan(tmp_path, header(), PLAN)
    other = {"precision": "f32", "batch": 9}.get(field, "1" * 64)
    changed = KEY.model_copy(update={field: other})
    assert read_plan(tmp_path, changed) is None
    # Not even where somebody gives the file the other's name.
    (tmp_path / KEY.file_name).rename(tmp_path / changed.file_name)
    assert read_plan(tmp_path, changed) is None
    assert kept_plans(tmp_path)[0].problem == "its name is that of another plan"


@pytest.mark.parametrize("field", ["tensorrt", "gpu", "compute_capability", "driver"])
def test_what_was_measured_on_another_machine_is_not_taken(field: str, tmp_path: Path) -> None:
    """Where a graphics card or TensorRT was changed, or two machines share a home."""
    assert timings_file(tmp_path, KEY.model_copy(update={field: "another"})) != timings_file(tmp_path, KEY)
    same = KEY.model_copy(update={"bundle": "other", "graph_sha256": "1" * 64, "batch": 1, "precision": "f32"})
    assert timings_file(tmp_path, same) == timings_file(tmp_path, KEY)
    write_whole(timings_file(tmp_path, KEY), b"measured")
    assert kept_plans(tmp_path) == []


@given(st.data())
def test_whatever_is_damaged_is_never_used(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("plans")
    path = write_plan(folder, header(), PLAN)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), "cut off"):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    found = read_plan(folder, KEY)
    # The times of the header are for people: a change of them changes nothing that is believed.
    assert found is None or (found[1] == PLAN and found[0].key == KEY)


def lint(content: bytes) -> list[str]:
    """What TensorRT 8.6 to 11 would not take."""
    model = onnx.load_from_string(content)
    problems = [f"opset {each.version}" for each in model.opset_import if not each.domain and each.version > MAX_OPSET]
    problems += [f"domain {each.domain}" for each in model.opset_import if each.domain not in ("", "ai.onnx")]
    problems += [f"operator {node.op_type}" for node in model.graph.node if node.op_type not in OPERATORS]
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = constants.get(node.input[2]) if len(node.input) > 2 else None
            if zero is not None and (zero.dtype != np.int8 or np.any(zero)):
                problems.append(f"{node.name}: zero point {zero.dtype} {zero.ravel()[:3]}")
    return problems


def test_the_graphs_of_the_demo_bundle_are_such_as_tensorrt_takes(demo_bundle: Bundle) -> None:
    for name in demo_bundle.manifest.contents:
        if name.endswith(".onnx"):
            assert lint(demo_bundle.read(name)) == [], name
    assert lint(graph_for(demo_bundle, "f16")) == []


def test_a_graph_in_float16_computes_nearly_the_same(demo_bundle: Bundle) -> None:
    import onnxruntime

    crops = np.random.default_rng(4).integers(0, 256, (2, 160, 160, 3), np.uint8)
    found = []
    for content in (demo_bundle.read(FEATURES), graph_for(demo_bundle, "f16")):
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        found.append(np.concatenate([session.run(None, {"crops": crop[None]})[0] for crop in crops]))
    exact, half = found
    assert half.dtype == np.float32  # its ports are those of the bundle
    assert 0 < np.linalg.norm(half - exact) < 0.01 * np.linalg.norm(exact)
    types = {each.data_type for each in onnx.load_from_string(graph_for(demo_bundle, "f16")).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types


def test_the_key_of_a_plan_tells_what_converted_its_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph in float16 depends on the library that makes it, others on the bundle alone."""
    monkeypatch.setattr(tensorrt_build, "tensorrt", lambda: SimpleNamespace(__version__="10.3.0"))
    monkeypatch.setattr(tensorrt_build, "_gpu", lambda: Gpu("NVIDIA H100", 81559, "9.0"))
    monkeypatch.setattr(tensorrt_build, "Cuda", lambda: SimpleNamespace(driver_version=lambda: "12.8"))
    bundle = load_bundle(DEMO_BUNDLE)
    now = {precision: tensorrt_build.plan_key(bundle, precision, 1) for precision in ("f32", "f16", "int8")}
    monkeypatch.setattr(tensorrt_build, "version", lambda name: f"of another {name}")
    later = {precision: tensorrt_build.plan_key(bundle, precision, 1) for precision in ("f32", "f16", "int8")}
    assert {precision for precision in now if now[precision].file_name != later[precision].file_name} == {"f16"}

    def gone(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(tensorrt_build, "version", gone)
    with pytest.raises(MbrError, match=r"tensorrt-f16: onnxruntime is not installed.*mbr-live\[gpu\]"):
        tensorrt_build.plan_key(bundle, "f16", 1)


def test_precisions_are_read_back_from_what_the_inspector_says() -> None:
    said = {
        "Layers": [
            {"LayerType": "CaskConvolution", "Outputs": [{"Format/Datatype": "Half"}]},
            {"LayerType": "CaskConvolution", "Outputs": [{"Format/Datatype": "Float"}]},
            {"LayerType": "Reformat", "Outputs": [{"Format/Datatype": "Float"}]},
            "a name alone",
        ]
    }
    assert layer_precisions(said) == {"Half": 1, "Float": 1}


STUB = "\n".join(
    f"void *{name}(void) {{ return 0; }}"
    for name in (
        "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
        "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getBuilderPluginRegistry",
        "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins", "_ZN11nvuffparser15createUffParserEv",
        "_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi", "_ZN14nvcaffeparser117createCaffeParserEv",
        "_ZN14nvcaffeparser123shutdownProtobufLibraryEv",
    )
)  # fmt: skip
CHECK = """
import importlib.machinery, importlib.util, sys
package = importlib.util.module_from_spec(importlib.machinery.ModuleSpec("tensorrt_bindings", None, is_package=True))
package.__path__ = []
sys.modules["tensorrt_bindings"] = package
spec = importlib.util.spec_from_file_location("tensorrt_bindings.tensorrt", sys.argv[1])
trt = importlib.util.module_from_spec(spec)
sys.modules["tensorrt_bindings.tensorrt"] = trt
spec.loader.exec_module(trt)
sys.path.insert(0, sys.argv[2])
from mbr_live.engines.tensorrt_api import is_typed_by_graph, missing_names, network_flags, precision_flags
print(missing_names(trt), is_typed_by_graph(trt), network_flags(trt))
for precision in ("f32", "f16", "int8"):
    print(precision, [str(flag) for flag in precision_flags(trt, precision)])
"""


@pytest.mark.parametrize(("wheel", "major"), VERSIONS, ids=[wheel for wheel, _ in VERSIONS])
def test_every_name_is_there_in_the_real_bindings(wheel: str, major: int, tmp_path: Path) -> None:
    """The real Python bindings, against a library that has their symbols and does nothing."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here (Debian: apt-get install gcc)")
    quickly = ("--quiet", "--retries=1", "--no-deps")
    fetch = [sys.executable, "-m", "pip", "download", *quickly, "--dest", str(tmp_path), wheel]
    if subprocess.run(fetch, capture_output=True, check=False).returncode:
        pytest.skip(f"{wheel} is not to be had here: no package registry, or not for this Python")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        binding = archive.extract("tensorrt_bindings/tensorrt.so", tmp_path)
    (tmp_path / "stub.c").write_text(STUB)
    for name in ("nvinfer", "nvonnxparser", "nvparsers", "nvinfer_plugin"):
        library = tmp_path / f"lib{name}.so.{major}"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "stub.c"], check=True)
    root = Path(importlib.util.find_spec("mbr_live").origin or "").parent.parent  # type: ignore[union-attr]
    done = subprocess.run(
        [sys.executable, "-c", CHECK, binding, str(root)], env={"LD_LIBRARY_PATH": str(tmp_path)}, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names, *precisions = done.stdout.splitlines()
    assert names.startswith("[] ")
    if major == 8:
        assert names == "[] False 1"
        assert precisions == ["f32 []", "f16 ['BuilderFlag.FP16']", "int8 ['BuilderFlag.INT8']"]
    else:
        assert names.split()[1] == "True"
        assert precisions == ["f32 []", "f16 []", "int8 []"]


def test_the_engine_uses_no_name_that_is_not_checked() -> None:
    """Every attribute of TensorRT that our modules touch is in NEEDED, or one of the two that differ."""
    import mbr_live.engines.tensorrt_child
    import mbr_live.engines.tensorrt_engine

    allowed = {*NEEDED, *(name for names in NEEDED.values() for name in names), "__version__"}
    for module in (mbr_live.engines.tensorrt_child, mbr_live.engines.tensorrt_engine):
        tree = ast.parse(Path(module.__file__).read_text())
        attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        used = {node.attr for node in attributes if _owner(node) in _TENSORRT_OBJECTS}
        assert used <= allowed, used - allowed


_TENSORRT_OBJECTS = {"trt", "builder", "config", "parser", "engine", "_context", "_engine", "_runtime"}


def _owner(node: ast.Attribute) -> str:
    return node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")


@no_gpu
@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_without_a_gpu_an_engine_that_was_named_is_a_clear_error(precision: str) -> None:
    done = mbr_live("batch", "any.mp4", "--out", "out", "--engine", f"tensorrt-{precision}")
    assert done.returncode == 2
    assert "TensorRT" in done.stderr or "GPU" in done.stderr
    assert not Path("out").exists()
    done = mbr_live("engine", "build", "--precision", precision)
    assert done.returncode == 2 and "CPU engines work" in done.stderr
    with pytest.raises(MbrError, match=r"GPU|TensorRT"):
        engine_of(load_bundle(DEMO_BUNDLE), f"tensorrt-{precision}")  # type: ignore[arg-type]


@no_gpu
def test_live_the_cpu_serves_and_says_so(tmp_path: Path) -> None:
    config = system_config(tmp_path / "live", simulated("cage")).model_copy(update={"engine": "tensorrt-f16"})
    with System(config) as system:
        done = mbr_live("status", system.config_path, "--json")
        assert system.inference.restarts == 0
    assert done.returncode in (0, 1), done.stderr
    assert '"engine": "openvino' in done.stdout and "tensorrt-f16 cannot serve" in done.stdout
    assert read_run(config.out / "cage.run.json").engine.startswith("openvino")
    engine, note = open_live_engine(load_bundle(DEMO_BUNDLE), "tensorrt-f16", recorded="openvino-f32")
    assert engine.name.startswith("openvino") and note is not None


def test_plans_are_listed_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "mbr-live" / "plans"
    path = write_plan(folder, header(), PLAN)
    done = mbr_live("engine", "list")
    assert done.returncode == 0 and "NVIDIA" in done.stdout and path.name in done.stdout
    path.write_bytes(path.read_bytes()[:-1])
    done = mbr_live("engine", "list")
    assert done.returncode == 1 and "cut off" in done.stdout
    done = mbr_live("engine", "remove", "nothing.plan")
    assert done.returncode == 2 and path.exists()
    done = mbr_live("engine", "remove", path.name, path.name)
    assert done.returncode == 0 and not path.exists(), done.stderr


BUILDING = "print('building, which takes minutes', flush=True)"


@pytest.mark.parametrize(
    ("builder", "limit_s", "said"),
    [
        (f"{BUILDING}; import time; time.sleep(60)", 1.0, "took longer than 1 s, and was ended: "),
        (f"{BUILDING}; import os; os.kill(os.getpid(), 9)", 60.0, "was ended by signal 9: building, which takes"),
        ("import sys; sys.exit('no memory')", 60.0, "ended with code 1 and without a plan: no memory"),
        (BUILDING, 60.0, "ended with code 0 and without a plan: building, which takes"),
    ],
)
def test_a_builder_that_comes_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, builder: str, limit_s: float, said: str
) -> None:
    monkeypatch.setattr(tensorrt_build, "build_command", lambda *_: [sys.executable, "-c", builder])
    monkeypatch.setattr(tensorrt_build, "BUILD_TIMEOUT_S", limit_s)
    with pytest.raises(MbrError, match=f"GPU plan of bundle in f16: the builder {said}"):
        tensorrt_build.build_in_child(Path("bundle"), "f16", 1, tmp_path)


def test_a_builder_ends_with_the_file_of_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tmp_path / "a plan"
    builder = f"{BUILDING}; open({str(plan)!r}, 'w').close(); print({str(plan)!r})"
    monkeypatch.setattr(tensorrt_build, "build_command", lambda *_: [sys.executable, "-c", builder])
    said: list[str] = []
    assert tensorrt_build.build_in_child(Path("bundle"), "f16", 1, tmp_path, said.append) == plan
    assert said == ["building, which takes minutes", str(plan)]
