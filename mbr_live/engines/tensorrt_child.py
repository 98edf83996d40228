"""Builds one plan; a process of its own, which needs onnx and onnxruntime.

python -m mbr_live.engines.tensorrt_child BUNDLE PRECISION BATCH FOLDER     prints what it does, and in the end the file
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from mbr_live.bundle import Bundle, load_bundle
from mbr_live.engines.plans import GpuPrecision, PlanHeader, PlanKey, timings_file, write_plan, write_whole
from mbr_live.engines.protocol import Ports, feature_ports
from mbr_live.engines.tensorrt_api import network_flags, precision_flags, tensorrt
from mbr_live.engines.tensorrt_build import graph_file, plan_key
from mbr_live.types import MbrError

_WORKSPACE_BYTES = 1 << 30


def main(arguments: list[str]) -> None:
    """The child."""
    path, precision, batch, folder = arguments
    if precision not in get_args(GpuPrecision):
        raise MbrError(f"tensorrt_child: {precision!r} is none of {', '.join(get_args(GpuPrecision))}.")
    bundle, lanes = load_bundle(Path(path)), int(batch)
    key = plan_key(bundle, precision, lanes)  # type: ignore[arg-type]
    began_s = time.monotonic()
    plan, layers = _built(bundle, key, Path(folder))
    header = PlanHeader(
        key=key,
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=len(plan),
        built=datetime.now(UTC).isoformat(timespec="seconds"),
        build_s=round(time.monotonic() - began_s, 1),
        layers=layers,
    )
    print(write_plan(Path(folder), header, plan), flush=True)


def graph_for(bundle: Bundle, precision: GpuPrecision) -> bytes:
    """The feature network whose types are the precision: as it is in float32 and int8, converted for float16."""
    content = bundle.read(graph_file(bundle, precision))
    if precision != "f16":
        return content
    converted = convert_float_to_float16(onnx.load_from_string(content), keep_io_types=True)
    serialised: bytes = converted.SerializeToString()
    return serialised


def _built(bundle: Bundle, key: PlanKey, folder: Path) -> tuple[bytes, dict[str, int]]:
    trt = tensorrt()
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(network_flags(trt))
    print("reading the graph", flush=True)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph_for(bundle, key.precision)):
        said = "; ".join(str(parser.get_error(number)) for number in range(parser.num_errors))
        raise MbrError(f"Bundle {bundle.path}: TensorRT {trt.__version__} cannot read its feature network: {said}")
    inputs, _ = feature_ports(bundle, key.batch)
    config = _config(trt, builder, key.precision, inputs)
    timings = timings_file(folder, key)
    cache = config.create_timing_cache(timings.read_bytes() if timings.exists() else b"")
    config.set_timing_cache(cache, False)
    print("building, which takes minutes", flush=True)
    serialised = builder.build_serialized_network(network, config)
    if serialised is None:
        raise MbrError(
            f"Bundle {bundle.path}: TensorRT {trt.__version__} could not build {key.precision} on {key.gpu}."
        )
    write_whole(timings, bytes(config.get_timing_cache().serialize()))
    plan = bytes(serialised)
    return plan, _layers(trt, logger, plan)


def _config(trt: Any, builder: Any, precision: str, inputs: Ports) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that precisions can be read back
    for flag in precision_flags(trt, precision):
        config.set_flag(flag)
    profile = builder.create_optimization_profile()
    for name, (shape, _) in inputs.items():
        profile.set_shape(name, shape, shape, shape)
    config.add_optimization_profile(profile)
    return config


def _layers(trt: Any, logger: Any, plan: bytes) -> dict[str, int]:
    """Layers by the precision of their output, as the built engine says: a wish for float16 has come out as float32."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    said = json.loads(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
    return layer_precisions(said)


def layer_precisions(information: dict[str, Any]) -> dict[str, int]:
    """From the JSON of an engine inspector: how many convolutions write which data type."""
    found: Counter[str] = Counter()
    for layer in information.get("Layers", []):
        if isinstance(layer, dict) and "Convolution" in str(layer.get("LayerType", layer.get("ParameterType", ""))):
            for output in layer.get("Outputs", []):
                found[str(output.get("Format/Datatype", output.get("Datatype", "?")))] += 1
    return dict(found)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MbrError as error:
        raise SystemExit(str(error)) from error
