"""A feature network in 8-bit integers, made from the float32 one and example crops.

Post-training static quantisation with QuantizeLinear/DequantizeLinear pairs (onnxruntime), in the form that OpenVINO
and TensorRT both run in integers: symmetric, zero-points 0, weights per channel, no quantised bias, convolutions and,
of the additions of residual blocks, the skip input alone. Pooling, and what comes after it, stays float32.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from mbr_live.types import Image, MbrError

NEWEST_OPSET = 17  # that TensorRT 8.6 reads

_RULES: dict[str, Any] = {
    "quant_format": QuantFormat.QDQ,
    "op_types_to_quantize": ["Conv", "Add"],
    "per_channel": True,
    "activation_type": QuantType.QInt8,
    "weight_type": QuantType.QInt8,
    "calibrate_method": CalibrationMethod.MinMax,
    "extra_options": {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "AddQDQPairToWeight": True,
        "DedicatedQDQPair": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": ["Conv", "Add"],
    },
}


def quantised(content: bytes, crops: Sequence[Image], progress: Callable[[int], None] = lambda done: None) -> bytes:
    """The int8 form of a float32 feature graph, from crops uint8 [H, W, 3]; the same from the same.

    Raises MbrError for a graph that can not be quantised by these rules.
    """
    with tempfile.TemporaryDirectory() as folder, _silent_about_preprocessing():
        exact, integers = Path(folder, "f32.onnx"), Path(folder, "int8.onnx")
        exact.write_bytes(content)
        quantize_static(str(exact), str(integers), _Crops(crops, progress), **_RULES)
        model = onnx.load(str(integers))
    _leave_main_branches(model.graph)
    problems = lint(model)
    if problems:
        raise MbrError(f"The int8 graph would not run everywhere: {'; '.join(problems[:5])}. Keep to float32.")
    made: bytes = model.SerializeToString(deterministic=True)
    return made


def lint(model: onnx.ModelProto) -> list[str]:
    """What of the rules an int8 graph breaks; empty when none."""
    problems = []
    opset = max(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    if opset > NEWEST_OPSET:
        problems.append(f"opset {opset}, at most {NEWEST_OPSET}")
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    consumers = _consumers(model.graph)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            problems += _zero_point_problems(node, constants.get(node.input[2]))
        if node.op_type == "DequantizeLinear":
            foreign = {each.op_type for each in consumers.get(node.output[0], ())} - {"Conv", "Add"}
            problems += [f"{node.name} feeds a {name}" for name in sorted(foreign)]
    producers = {name: node for node in model.graph.node for name in node.output}
    problems += [
        f"{node.name} is not quantised"
        for node in model.graph.node
        if node.op_type == "Conv" and not all(_is_dequantised(name, producers) for name in node.input[:2])
    ]
    return problems


class _Crops(CalibrationDataReader):  # type: ignore[misc]
    """Hands the crops over one by one."""

    def __init__(self, crops: Sequence[Image], progress: Callable[[int], None]) -> None:
        self._crops, self._progress, self._done = crops, progress, 0

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        if self._done == len(self._crops):
            return None
        self._done += 1
        self._progress(self._done)
        return {"crops": self._crops[self._done - 1][None]}


@contextmanager
def _silent_about_preprocessing() -> Iterator[None]:
    """The library advises to fold batch normalisation first, which the export has done."""

    def wanted(record: logging.LogRecord) -> bool:
        return "pre-processing" not in record.getMessage()

    logging.getLogger().addFilter(wanted)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(wanted)


def _leave_main_branches(graph: onnx.GraphProto) -> None:
    """Of every addition, take the Q/DQ pair off the input with more convolutions behind it: the main branch, whose sum
    the runtimes fuse into its last convolution. The skip input keeps its pair.
    """
    producers = {name: node for node in graph.node for name in node.output}
    depths = _depths(graph)
    dropped: set[str] = set()
    for node in graph.node:
        quantised_inputs = [each for each, name in enumerate(node.input) if _is_dequantised(name, producers)]
        if node.op_type != "Add" or len(quantised_inputs) < 2:
            continue
        main = max(quantised_inputs, key=lambda each: depths[node.input[each]])
        dequantise = producers[node.input[main]]
        quantise = producers[dequantise.input[0]]
        node.input[main] = quantise.input[0]
        dropped |= {dequantise.output[0], quantise.output[0]}
    kept = [node for node in graph.node if node.output[0] not in dropped]
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    constants = [each for each in graph.initializer if each.name in used]
    del graph.initializer[:]
    graph.initializer.extend(constants)


def _depths(graph: onnx.GraphProto) -> dict[str, int]:
    """Convolutions on the longest way from the input to each value. The nodes of a graph are in order."""
    depths: dict[str, int] = {}
    for node in graph.node:
        depth = max((depths.get(name, 0) for name in node.input), default=0) + (node.op_type == "Conv")
        depths.update(dict.fromkeys(node.output, depth))
    return depths


def _consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def _is_dequantised(name: str, producers: dict[str, onnx.NodeProto]) -> bool:
    return name in producers and producers[name].op_type == "DequantizeLinear"


def _zero_point_problems(node: onnx.NodeProto, zero: NDArray[Any] | None) -> list[str]:
    if zero is None or zero.dtype != np.int8:
        return [f"{node.name} is not of signed 8-bit integers"]
    return [f"{node.name} has a zero-point other than 0"] if np.any(zero) else []
