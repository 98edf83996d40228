"""Runs the ONNX graphs of a bundle in torch, operator by operator as the ONNX specification defines them.

Written for exactness, not for speed: it is what the engines are held against. Its operators are those that
`mbr_live.training.models` exports and `mbr_live.training.merging` adds; a graph with another one is refused when it is
loaded. The published converter (onnx2torch) does not know LSTM and slices in a way that torch no longer allows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor
from torch.nn import functional

from mbr_live.types import MbrError

Attributes = dict[str, Any]
Operator = Callable[..., Any]
"""Takes the attributes and then the inputs (None where an optional one is absent); gives a tensor or several."""


class OnnxGraph:
    """A graph from the bytes of an ONNX file, on the CPU. MbrError, naming `subject`, where torch can not run it."""

    def __init__(self, content: bytes, subject: str) -> None:
        try:
            model = onnx.load_from_string(content)
            onnx.checker.check_model(model)
        except Exception as error:  # protobuf and the checker have exceptions of their own, without a common base
            raise MbrError(f"{subject} is no ONNX graph ({str(error).splitlines()[0]}). Train it anew.") from error
        foreign = sorted({node.op_type for node in model.graph.node} - OPERATORS.keys())
        if foreign:
            raise MbrError(f"{subject} has operators that the torch engine does not know: {', '.join(foreign)}.")
        self.inputs = {port.name: _shape(port) for port in model.graph.input}
        self.outputs = {port.name: _shape(port) for port in model.graph.output}
        self._constants = {each.name: _tensor(each) for each in model.graph.initializer}
        self._nodes = [
            (
                OPERATORS[node.op_type],
                {each.name: _attribute(each) for each in node.attribute},
                list(node.input),
                list(node.output),
            )
            for node in model.graph.node
        ]

    def to(self, device: str) -> OnnxGraph:
        """Move the weights to a device; numbers that say shapes and places stay where Python reads them."""
        self._constants = {
            name: value.to(device) if value.is_floating_point() or value.ndim > 1 else value
            for name, value in self._constants.items()
        }
        return self

    @torch.inference_mode()
    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values: dict[str, Any] = {**self._constants, **inputs, "": None}
        for operator, attributes, taken, given in self._nodes:
            result = operator(attributes, *(values[name] for name in taken))
            results = result if isinstance(result, tuple) else (result,)
            values.update(zip(given, results, strict=False))  # optional outputs that nobody asks for have no name
        return {name: values[name] for name in self.outputs}


def _shape(port: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    """Sizes of the dimensions; None where free."""
    return tuple(each.dim_value or None for each in port.type.tensor_type.shape.dim)


def _tensor(proto: onnx.TensorProto) -> Tensor:
    return torch.from_numpy(numpy_helper.to_array(proto).copy())


def _attribute(proto: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(proto)
    if isinstance(value, onnx.TensorProto):
        return _tensor(value)
    return value.decode() if isinstance(value, bytes) else value


def _numbers(tensor: Tensor | None, default: Sequence[int]) -> list[int]:
    return list(default) if tensor is None else [int(each) for each in tensor.reshape(-1)]


def _pads(a: Attributes, x: Tensor, value: float) -> Tensor:
    """Pads the last dimensions as the attribute says, before a convolution or pooling that pads no more."""
    if a.get("auto_pad", "NOTSET") != "NOTSET" or not any(a.get("pads", ())):
        return x
    half = len(a["pads"]) // 2
    pairs = [each for axis in reversed(range(half)) for each in (a["pads"][axis], a["pads"][axis + half])]
    return functional.pad(x, pairs, value=value)


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.conv2d(
        _pads(a, x, 0.0), weight, bias, a.get("strides", (1, 1)), 0, a.get("dilations", (1, 1)), a.get("group", 1)
    )


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    return functional.max_pool2d(_pads(a, x, -torch.inf), a["kernel_shape"], a.get("strides", (1, 1)))


def _average_pool(a: Attributes, x: Tensor) -> Tensor:
    size, strides = a["kernel_shape"], a.get("strides", (1, 1))
    sums = functional.avg_pool2d(_pads(a, x, 0.0), size, strides)
    if a.get("count_include_pad", 0) or not any(a.get("pads", ())):
        return sums
    return sums / functional.avg_pool2d(_pads(a, torch.ones_like(x[:1, :1]), 0.0), size, strides)


def _batch_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return functional.batch_norm(x, mean, variance, scale, bias, eps=a.get("epsilon", 1e-5))


def _layer_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.layer_norm(x, x.shape[a.get("axis", -1) :], scale, bias, a.get("epsilon", 1e-5))


def _gemm(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x = x.T if a.get("transA") else x
    product: Tensor = a.get("alpha", 1.0) * (x @ (weight.T if a.get("transB") else weight))
    return product if bias is None else product + a.get("beta", 1.0) * bias


def _reduce(function: Callable[..., Tensor]) -> Operator:
    """A reduction whose axes are an attribute, as in opset 17, or an input, as later."""

    def operator(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        over = a.get("axes") or _numbers(axes, range(x.ndim))
        reduced: Tensor = function(x, dim=tuple(over), keepdim=bool(a.get("keepdims", 1)))
        return reduced

    return operator


def _slice(
    a: Attributes, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    first = _numbers(starts, ())
    chosen = [slice(None)] * x.ndim
    for axis, start, end, step in zip(
        _numbers(axes, range(len(first))), first, _numbers(ends, ()), _numbers(steps, [1] * len(first)), strict=True
    ):
        chosen[axis] = slice(start, end, step)
    return x[tuple(chosen)]


def _split(a: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = a.get("axis", 0)
    if sizes is None:
        raise MbrError("a Split without sizes is not an operator that the torch engine knows.")
    return tuple(torch.split(x, _numbers(sizes, ()), dim=axis))


def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    wanted = _numbers(shape, ())
    if not a.get("allowzero", 0):
        wanted = [x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(a: Attributes, x: Tensor) -> Tensor:
    axis = a.get("axis", 1) % (x.ndim + 1)
    return x.reshape(int(torch.tensor(x.shape[:axis]).prod()), -1)


def _unsqueeze(a: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    ndim = x.ndim + axes.numel()
    for axis in sorted(each % ndim for each in _numbers(axes, ())):
        x = x.unsqueeze(axis)
    return x


def _squeeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(_numbers(axes, ())))


def _gather(a: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = a.get("axis", 0) % x.ndim
    flat = torch.where(indices < 0, indices + x.shape[axis], indices).reshape(-1)
    return x.index_select(axis, flat).reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def _clip(a: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return torch.clamp(x, low, high)


def _constant_of_shape(a: Attributes, shape: Tensor) -> Tensor:
    value = a.get("value", torch.zeros(1))
    return torch.full(_numbers(shape, ()), value.item(), dtype=value.dtype)


def _constant(a: Attributes) -> Tensor:
    if "value" not in a:
        raise MbrError(f"a Constant given as {', '.join(a)} is not an operator that the torch engine knows.")
    value: Tensor = a["value"]
    return value


def _cast(a: Attributes, x: Tensor) -> Tensor:
    zero = numpy_helper.to_array(helper.make_tensor("", a["to"], (1,), [0]))
    return x.to(torch.from_numpy(zero.copy()).dtype)


def _quantize(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    limits = torch.iinfo(zero.dtype)
    scale, offset = (_along(each, a.get("axis", 1), x.ndim) for each in (scale, zero))
    return torch.clamp(torch.round(x / scale) + offset, limits.min, limits.max).to(zero.dtype)


def _dequantize(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    scale, offset = (_along(each, a.get("axis", 1), x.ndim) for each in (scale, zero))
    return (x.to(scale.dtype) - offset.to(scale.dtype)) * scale


def _along(values: Tensor, axis: int, ndim: int) -> Tensor:
    """Values per channel in a shape that broadcasts along `axis`."""
    if values.ndim == 0:
        return values
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)


def _lstm(
    a: Attributes,
    x: Tensor,
    w_in: Tensor,
    w_hidden: Tensor,
    bias: Tensor,
    _lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """x [T, B, I] -> y [T, directions, B, H], last hidden and last cell [directions, B, H]."""
    directions, size = w_hidden.shape[0], w_hidden.shape[2]
    # ONNX orders the gates input, output, forget, cell; torch input, forget, cell, output.
    order = torch.arange(4 * size).reshape(4, size)[[0, 2, 3, 1]].reshape(-1)
    weights: list[Tensor] = []
    for direction in range(directions):
        b_in, b_hidden = bias[direction].chunk(2)
        weights += [w_in[direction][order], w_hidden[direction][order], b_in[order], b_hidden[order]]
    zeros = x.new_zeros(directions, x.shape[1], size)
    start = (zeros if hidden is None else hidden, zeros if cell is None else cell)
    y, hidden, cell = torch.lstm(x, start, weights, True, 1, 0.0, False, directions == 2, False)
    return y.reshape(*y.shape[:2], directions, size).transpose(1, 2), hidden, cell


OPERATORS: dict[str, Operator] = {
    "Add": lambda a, x, y: x + y,
    "And": lambda a, x, y: x & y,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda a, *each: torch.cat(each, dim=a["axis"]),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": lambda a, x, y: torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc"),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda a, x: x.mean(dim=(2, 3), keepdim=True),
    "GreaterOrEqual": lambda a, x, y: x >= y,
    "Identity": lambda a, x: x,
    "LSTM": _lstm,
    "LayerNormalization": _layer_norm,
    "Less": lambda a, x, y: x < y,
    "MatMul": lambda a, x, y: x @ y,
    "MaxPool": _max_pool,
    "Mul": lambda a, x, y: x * y,
    "Not": lambda a, x: ~x,
    "QuantizeLinear": _quantize,
    "Range": lambda a, start, stop, step: torch.arange(start.item(), stop.item(), step.item(), dtype=start.dtype),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "Relu": lambda a, x: torch.relu(x),
    "Reshape": _reshape,
    "Shape": lambda a, x: torch.tensor(x.shape[a.get("start", 0) : a.get("end", x.ndim)]),
    "Sigmoid": lambda a, x: torch.sigmoid(x),
    "Slice": _slice,
    "Softmax": lambda a, x: torch.softmax(x, dim=a.get("axis", -1)),
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": lambda a, x, y: x - y,
    "Sum": lambda a, *each: sum(each),
    "Tanh": lambda a, x: torch.tanh(x),
    "Transpose": lambda a, x: x.permute(a["perm"]) if "perm" in a else x.T,
    "Unsqueeze": _unsqueeze,
    "Where": lambda a, condition, x, y: torch.where(condition, x, y),
}
"""What an operator computes, by its ONNX name."""
