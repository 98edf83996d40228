"""The reference computes what ONNX says: every operator against the specification's own evaluator, and whole graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="training is not installed: pip install 'mbr-live[train]'")
onnx = pytest.importorskip("onnx", reason="training is not installed: pip install 'mbr-live[train]'")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from mbr_live.datasets.temporal_config import LstmConfig, TcnConfig, TransformerConfig  # noqa: E402
from mbr_live.engines.onnx_torch import OPERATORS, OnnxGraph  # noqa: E402
from mbr_live.training.models import export_onnx  # noqa: E402
from mbr_live.training.temporal import Ensemble, TemporalModel, build_temporal  # noqa: E402
from mbr_live.types import MbrError  # noqa: E402

RNG = np.random.default_rng(5)


def floats(*shape: int) -> NDArray[np.float32]:
    return RNG.standard_normal(shape).astype(np.float32)


def whole(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


Case = tuple[str, list[Any], dict[str, Any]]
"""Operator, inputs, attributes."""

PICTURE = floats(2, 4, 7, 6)
INTEGERS = np.arange(-6, 6, dtype=np.int8).reshape(2, 3, 2)
BOTH_WAYS = {"hidden_size": 4, "direction": "bidirectional"}
CASES: list[Case] = [
    ("Conv", [PICTURE, floats(6, 4, 3, 3), floats(6)], {"strides": [2, 1], "pads": [1, 0, 2, 1]}),
    ("Conv", [PICTURE, floats(4, 2, 3, 3)], {"group": 2, "dilations": [2, 1], "kernel_shape": [3, 3]}),
    ("MaxPool", [PICTURE], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("AveragePool", [PICTURE], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", [PICTURE], {"kernel_shape": [3, 3], "pads": [1, 0, 1, 1]}),
    ("AveragePool", [PICTURE], {"kernel_shape": [2, 3], "strides": [2, 1]}),
    ("GlobalAveragePool", [PICTURE], {}),
    ("BatchNormalization", [PICTURE, floats(4), floats(4), floats(4), np.abs(floats(4))], {"epsilon": 1e-3}),
    ("LayerNormalization", [floats(3, 5), floats(5), floats(5)], {"axis": -1}),
    ("Gemm", [floats(3, 4), floats(5, 4), floats(5)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", [floats(4, 3), floats(4, 5)], {"transA": 1}),
    ("MatMul", [floats(2, 3, 4), floats(4, 5)], {}),
    ("ReduceMean", [PICTURE], {"axes": [2, 3], "keepdims": 0}),
    ("ReduceMax", [PICTURE], {"axes": [-1]}),
    ("Slice", [PICTURE, whole(1, -4), whole(3, 2**62), whole(1, 2), whole(1, 2)], {}),
    ("Split", [floats(2, 9), whole(2, 3, 4)], {"axis": -1}),
    ("Reshape", [floats(2, 6), whole(0, -1, 3)], {}),
    ("Flatten", [PICTURE], {"axis": 2}),
    ("Unsqueeze", [floats(2, 3), whole(0, -1)], {}),
    ("Squeeze", [floats(1, 3, 1), whole(0, 2)], {}),
    ("Gather", [floats(3, 4, 2), whole(2, -1, 0).reshape(3, 1)], {"axis": 1}),
    ("Gather", [floats(3, 4), np.array(-2, np.int64)], {"axis": 0}),
    ("Clip", [floats(3, 4), np.float32(-0.5), np.float32(0.5)], {}),
    ("Concat", [floats(2, 3), floats(2, 1)], {"axis": -1}),
    ("Transpose", [PICTURE], {"perm": [0, 2, 3, 1]}),
    ("Cast", [np.array([[3, 200]], np.uint8)], {"to": TensorProto.FLOAT}),
    ("ConstantOfShape", [whole(2, 3)], {"value": helper.make_tensor("", TensorProto.INT64, (1,), [7])}),
    ("Div", [whole(7, -7), whole(2, 2)], {}),
    ("Div", [floats(3), floats(3)], {}),
    ("Range", [np.array(1, np.int64), np.array(9, np.int64), np.array(3, np.int64)], {}),
    ("Shape", [PICTURE], {"start": 1}),
    ("Where", [np.array([True, False]), floats(2), floats(2)], {}),
    ("GreaterOrEqual", [whole(1, 2), whole(2, 2)], {}),
    ("Less", [whole(1, 2), whole(2, 2)], {}),
    ("And", [np.array([True, False]), np.array([True, True])], {}),
    ("Not", [np.array([True, False])], {}),
    ("Softmax", [floats(2, 3, 4)], {"axis": 1}),
    ("Sigmoid", [floats(4)], {}),
    ("Tanh", [floats(4)], {}),
    ("Relu", [floats(4)], {}),
    ("Add", [floats(3, 1), floats(4)], {}),
    ("Sub", [floats(3, 1), floats(4)], {}),
    ("Mul", [floats(3, 1), floats(4)], {}),
    ("Sum", [floats(3, 1), floats(4), floats(3, 4)], {}),
    ("Identity", [floats(2)], {}),
    ("Constant", [], {"value": numpy_helper.from_array(floats(3))}),
    ("QuantizeLinear", [3 * floats(2, 3, 2), np.float32(0.02), np.int8(0)], {}),
    ("QuantizeLinear", [floats(2, 3, 2), np.abs(floats(3)), np.zeros(3, np.int8)], {"axis": 1}),
    ("DequantizeLinear", [INTEGERS, np.abs(floats(2)), np.zeros(2, np.int8)], {"axis": 0}),
    ("LSTM", [floats(6, 1, 3), floats(2, 16, 3), floats(2, 16, 4), floats(2, 32)], BOTH_WAYS),
    ("LSTM", [floats(6, 2, 3), floats(1, 16, 3), floats(1, 16, 4), floats(1, 32)], {"hidden_size": 4}),
]  # fmt: skip


def one_node(node: Any, inputs: dict[str, NDArray[Any]], outputs: dict[str, NDArray[Any]]) -> Any:
    """A model of one node whose ports are as the arrays."""
    ports = (
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in arrays.items()
        ]
        for arrays in (inputs, outputs)
    )
    # The evaluator knows DequantizeLinear from opset 19 on, where it means the same.
    opset = helper.make_opsetid("", 19 if node.op_type.endswith("Linear") else 17)
    return helper.make_model(helper.make_graph([node], "one", *ports), opset_imports=[opset], ir_version=9)


@pytest.mark.parametrize(("operator", "inputs", "attributes"), CASES, ids=[case[0] for case in CASES])
def test_operators_are_as_specified(operator: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    given = {f"in{n}": np.asarray(value) for n, value in enumerate(inputs)}
    outputs = [f"out{n}" for n in range({"Split": 3, "LSTM": 3}.get(operator, 1))]
    node = helper.make_node(operator, list(given), outputs, **attributes)
    model = one_node(node, given, dict.fromkeys(outputs, np.zeros((), np.float32)))
    expected = ReferenceEvaluator(model).run(None, given)
    model = one_node(node, given, dict(zip(outputs, expected, strict=True)))
    found = OnnxGraph(model.SerializeToString(), "test")(
        {name: torch.from_numpy(value.copy()) for name, value in given.items()}
    )
    for name, value in zip(outputs, expected, strict=True):
        assert found[name].numpy().shape == value.shape
        assert found[name].numpy().dtype == value.dtype
        np.testing.assert_allclose(found[name].numpy(), value, rtol=1e-4, atol=1e-5)


def test_every_operator_is_tested() -> None:
    assert {case[0] for case in CASES} == OPERATORS.keys()


@pytest.mark.parametrize(
    "config",
    [TcnConfig(), LstmConfig(layers=2), TransformerConfig(), LstmConfig(offline=True), TransformerConfig(offline=True)],
    ids=lambda config: f"{config.kind}{'-offline' if getattr(config, 'offline', False) else ''}",
)
def test_graphs_are_as_the_modules_that_were_exported(config: Any, tmp_path: Path) -> None:
    torch.manual_seed(3)
    members: list[TemporalModel] = [build_temporal(config, feature_dim=8, behaviours=2) for _ in range(2)]
    model = Ensemble(members, [range(8), range(8)], plain=5, raw=3).eval()
    export_onnx(None, model, tmp_path, kinematics=8)
    graph = OnnxGraph((tmp_path / "temporal.onnx").read_bytes(), "test")
    with torch.inference_mode():
        if model.is_live:
            inputs = {"features": torch.randn(3, 8), "state": torch.randn(3, model.state_size)}
            expected = dict(zip(("logits", "state_out"), model.step(*inputs.values()), strict=True))
        else:
            inputs = {"features": torch.randn(1, 40, 8)}
            expected = {"logits": model(inputs["features"])}
    found = graph(inputs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


def test_an_operator_that_is_not_known_is_refused() -> None:
    port = helper.make_tensor_value_info("x", TensorProto.FLOAT, (2,))
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, (2,))
    graph = helper.make_graph([helper.make_node("Erf", ["x"], ["y"])], "one", [port], [out])
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    with pytest.raises(MbrError, match="operators that the torch engine does not know: Erf"):
        OnnxGraph(content, "Bundle b: features.onnx")
    for broken in (b"", b"no graph", content[:-5]):
        with pytest.raises(MbrError, match="is no ONNX graph"):
            OnnxGraph(broken, "Bundle b: features.onnx")
