"""The part of TensorRT that is used here, the same in 8.6 to 11, and the little that is not.

Gone in 10: bindings by number, `execute_async_v2`. Gone in 11: the FP16 and INT8 builder flags, since a network is
typed by its graph there; `EXPLICIT_BATCH`. A version that lacks a name says so before anything is built.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from mbr_live.types import MbrError

NEEDED: dict[str, tuple[str, ...]] = {
    "Logger": ("WARNING",),
    "Runtime": ("deserialize_cuda_engine",),
    "Builder": (
        "create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network",
    ),
    "IBuilderConfig": (
        "set_flag", "clear_flag", "set_memory_pool_limit", "add_optimization_profile", "create_timing_cache",
        "set_timing_cache", "get_timing_cache", "profiling_verbosity",
    ),
    "ICudaEngine": (
        "num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_shape", "get_tensor_dtype",
        "create_execution_context", "create_engine_inspector",
    ),
    "IExecutionContext": ("set_input_shape", "set_tensor_address", "execute_async_v3"),
    "EngineInspector": ("get_engine_information",),
    "OnnxParser": ("parse", "num_errors", "get_error"),
    "BuilderFlag": ("TF32",),
    "MemoryPoolType": ("WORKSPACE",),
    "ProfilingVerbosity": ("DETAILED",),
    "LayerInformationFormat": ("JSON",),
    "TensorIOMode": ("INPUT", "OUTPUT"),
}  # fmt: skip


def tensorrt() -> Any:
    """The module. MbrError where it is not installed, or lacks a name that is needed."""
    try:
        trt = import_module("tensorrt")
    except ImportError as error:
        raise MbrError(
            f"TensorRT cannot be imported ({error}). Run: pip install 'mbr-live[gpu]', or use another engine."
        ) from error
    missing = missing_names(trt)
    if missing:
        raise MbrError(
            f"TensorRT {trt.__version__} has no {', '.join(missing)}, which this version of mbr-live needs. "
            "Use TensorRT 8.6 to 11, or another engine."
        )
    return trt


def missing_names(trt: Any) -> list[str]:
    """Names of NEEDED that a version does not have."""
    return [
        f"{owner}.{name}"
        for owner, names in NEEDED.items()
        for name in names
        if not hasattr(getattr(trt, owner, None), name)
    ]


def is_typed_by_graph(trt: Any) -> bool:
    """Whether the precision of a layer comes from the types in its graph (from TensorRT 10 on); else from flags."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def network_flags(trt: Any) -> int:
    """For `create_network`."""
    flags = trt.NetworkDefinitionCreationFlag
    if is_typed_by_graph(trt):
        return 1 << int(flags.STRONGLY_TYPED)
    return 1 << int(flags.EXPLICIT_BATCH)


def precision_flags(trt: Any, precision: str) -> list[Any]:
    """Builder flags without which a version would not use the precision of the graph."""
    if is_typed_by_graph(trt):
        return []
    wanted = {"f32": (), "f16": ("FP16",), "int8": ("INT8",)}[precision]
    return [getattr(trt.BuilderFlag, name) for name in wanted]
