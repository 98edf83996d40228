"""The int8 graph follows the rules by which OpenVINO and TensorRT run it in integers, and is always the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

onnx = pytest.importorskip("onnx", reason="training is not installed: pip install 'mbr-live[train]'")
pytest.importorskip("onnxruntime", reason="training is not installed: pip install 'mbr-live[train]'")

import numpy as np  # noqa: E402
from onnx import numpy_helper  # noqa: E402

from mbr_live.bundle import Bundle  # noqa: E402
from mbr_live.engines.parity import probe  # noqa: E402
from mbr_live.manifest import FEATURES  # noqa: E402
from mbr_live.quantisation.graph import lint, quantised  # noqa: E402


@pytest.fixture(scope="module")
def content(demo_bundle: Bundle) -> bytes:
    return quantised(demo_bundle.read(FEATURES), list(probe()[::6]))


@pytest.fixture
def model(content: bytes) -> onnx.ModelProto:
    return onnx.load_from_string(content)


def test_the_same_crops_give_the_same_bytes(content: bytes, demo_bundle: Bundle) -> None:
    done: list[int] = []
    assert quantised(demo_bundle.read(FEATURES), list(probe()[::6]), done.append) == content
    assert done == [1, 2, 3, 4]


def test_convolutions_and_skip_inputs_alone_are_quantised(model: onnx.ModelProto) -> None:
    producers = {name: node for node in model.graph.node for name in node.output}
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["Conv"] == 10
    assert kinds["QuantizeLinear"] == kinds["DequantizeLinear"] == 2 * kinds["Conv"] + kinds["Add"]

    def origin(name: str) -> str:
        """The operator that makes a value, across a Q/DQ pair."""
        node = producers[name]
        if node.op_type == "DequantizeLinear":
            return "quantised " + producers[producers[node.input[0]].input[0]].name
        return node.name

    for node in model.graph.node:
        if node.op_type == "Add":
            skip, main = sorted(map(origin, node.input), reverse=True)
            assert skip.startswith("quantised") and "/skip/" in skip
            assert "/second/" in main
        if node.op_type in ("ReduceMean", "ReduceMax", "Concat", "BatchNormalization", "Relu"):
            assert not any(origin(name).startswith("quantised") for name in node.input if name in producers)
    assert lint(model) == []


def test_weights_have_a_scale_per_channel(model: onnx.ModelProto) -> None:
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Conv":
            channels = constants[producers[producers[node.input[1]].input[0]].input[0]].shape[0]
            assert constants[producers[node.input[1]].input[1]].shape == (channels,)
            assert constants[node.input[2]].dtype == np.float32  # the bias


def newer_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 18


def shifted(model: onnx.ModelProto) -> None:
    name = next(node for node in model.graph.node if node.op_type == "QuantizeLinear").input[2]
    (zero,) = (each for each in model.graph.initializer if each.name == name)
    values = numpy_helper.to_array(zero)
    zero.CopyFrom(numpy_helper.from_array(values + np.int8(3), name))


def unsigned(model: onnx.ModelProto) -> None:
    name = next(node for node in model.graph.node if node.op_type == "QuantizeLinear").input[2]
    (zero,) = (each for each in model.graph.initializer if each.name == name)
    zero.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(zero).astype(np.uint8), name))


def feeding_a_relu(model: onnx.ModelProto) -> None:
    dequantised = next(node for node in model.graph.node if node.op_type == "DequantizeLinear").output[0]
    next(node for node in model.graph.node if node.op_type == "Relu").input[0] = dequantised


def float_convolution(model: onnx.ModelProto) -> None:
    producers = {name: node for node in model.graph.node for name in node.output}
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    node.input[0] = producers[producers[node.input[0]].input[0]].input[0]


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (newer_opset, "opset 18, at most 17"),
        (shifted, "zero-point other than 0"),
        (unsigned, "not of signed 8-bit integers"),
        (feeding_a_relu, "feeds a Relu"),
        (float_convolution, "is not quantised"),
    ],
)
def test_what_breaks_a_rule_is_named(
    model: onnx.ModelProto, broken: Callable[[onnx.ModelProto], None], problem: str
) -> None:
    broken(model)
    assert any(problem in each for each in lint(model))
