"""Runtimes that compute a bundle's two networks, behind one small protocol.

The embedded one is OpenVINO on the CPU. Its graphs are compiled for batch 1 and called once per lane, so that
the bytes of a label can not depend on how many cameras share the process.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from mbr_live.bundle import FEATURES, TEMPORAL, Bundle
from mbr_live.types import MbrError

Crops = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Engine(Protocol):
    """Computes features and logits of B lanes. Not thread-safe: one engine per thread."""

    @property
    def name(self) -> str:
        """Runtime, version, device and precision, for the record of a run."""
        ...

    def features(self, crops: Crops) -> Floats:
        """Crops uint8 [B, H, W, 3] RGB -> features float32 [B, D]. MbrError for a bundle without a feature network."""
        ...

    def step(self, features: Floats, state: Floats) -> tuple[Floats, Floats]:
        """Features, with kinematics, [B, D + M] and packed state [B, S] -> logits [B, K] and state [B, S].

        A state of zeros is the start of a recording.
        """
        ...


class OpenVinoEngine:
    """A bundle on the CPU in float32, on `threads` threads. Raises MbrError where the graphs do not fit."""

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        manifest = bundle.manifest
        d, s, k = manifest.input_dim, manifest.state_size, len(manifest.behaviours)
        self._subject = f"Bundle {bundle.path}"
        self._features = _feature_graph(bundle, threads) if manifest.feature_dim else None
        self._temporal = _Graph(
            bundle,
            TEMPORAL,
            inputs={"features": ((1, d), np.float32), "state": ((1, s), np.float32)},
            outputs={"logits": ((1, k), np.float32), "state_out": ((1, s), np.float32)},
            threads=threads,
        )

    @property
    def name(self) -> str:
        return f"openvino {ov.__version__.split('-')[0]} cpu f32"

    def features(self, crops: Crops) -> Floats:
        if self._features is None:
            raise MbrError(f"{self._subject} has no feature network, and was given crops. Give it kinematics alone.")
        (features,) = self._features.per_lane(crops)
        return features

    def step(self, features: Floats, state: Floats) -> tuple[Floats, Floats]:
        logits, state_out = self._temporal.per_lane(features, state)
        return logits, state_out


Ports = dict[str, tuple[tuple[int, ...], type[np.generic]]]


class _Graph:
    """One graph compiled for batch 1, with fixed input and output buffers that its calls reuse."""

    def __init__(self, bundle: Bundle, file: str, *, inputs: Ports, outputs: Ports, threads: int) -> None:
        self._subject = f"Bundle {bundle.path}: {file}"
        model = _read_model(bundle.read(file), self._subject)
        _check_ports(model, inputs, outputs, self._subject)
        compiled = ov.Core().compile_model(model, "CPU", _settings(threads))
        self._request = compiled.create_infer_request()
        self._inputs = [self._bind(name, *port) for name, port in inputs.items()]
        self._outputs = [self._bind(name, *port) for name, port in outputs.items()]

    def _bind(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        buffer = np.zeros(shape, dtype)
        self._request.set_tensor(name, ov.Tensor(buffer, shared_memory=True))
        return buffer

    def per_lane(self, *arrays: NDArray[Any]) -> list[NDArray[Any]]:
        """Run every lane by itself; arrays [B, ...] in, fresh arrays [B, ...] out."""
        lanes = len(arrays[0])
        for array, buffer in zip(arrays, self._inputs, strict=True):
            if array.shape != (lanes, *buffer.shape[1:]) or array.dtype != buffer.dtype:
                raise MbrError(
                    f"{self._subject} was given {array.dtype} {list(array.shape)}, "
                    f"expected {buffer.dtype} {[lanes, *buffer.shape[1:]]}."
                )
        results = [np.empty((lanes, *buffer.shape[1:]), buffer.dtype) for buffer in self._outputs]
        for lane in range(lanes):
            for array, buffer in zip(arrays, self._inputs, strict=True):
                buffer[0] = array[lane]
            self._request.infer()
            for result, buffer in zip(results, self._outputs, strict=True):
                result[lane] = buffer[0]
        return results


def _feature_graph(bundle: Bundle, threads: int) -> _Graph:
    side = bundle.manifest.crop_px
    return _Graph(
        bundle,
        FEATURES,
        inputs={"crops": ((1, side, side, 3), np.uint8)},
        outputs={"features": ((1, bundle.manifest.feature_dim), np.float32)},
        threads=threads,
    )


def _settings(threads: int) -> dict[str, Any]:
    """Everything that OpenVINO would otherwise choose by the machine (bf16 where the CPU has it)."""
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        # Its fusing of small operations gains nothing here, and with one thread it crashes (2026.4) on attention.
        "SNIPPETS_MODE": "DISABLE",
    }


def _read_model(content: bytes, subject: str) -> ov.Model:
    try:
        return ov.Core().read_model(content)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise MbrError(f"{subject} is no ONNX graph that OpenVINO reads ({reason}). Train it anew.") from error


def _check_ports(model: ov.Model, inputs: Ports, outputs: Ports, subject: str) -> None:
    """The graph's names, shapes and types are the manifest's; its batch is then set to 1."""
    for kind, ports, expected in (("input", model.inputs, inputs), ("output", model.outputs, outputs)):
        found = {port.get_any_name(): port for port in ports}
        if set(found) != set(expected):
            raise MbrError(f"{subject} has {kind}s {sorted(found)}, expected {sorted(expected)}.")
        for name, (shape, dtype) in expected.items():
            port = found[name]
            found_type, found_shape = port.get_element_type().to_dtype(), port.get_partial_shape()
            if found_type != np.dtype(dtype) or not found_shape.compatible(ov.PartialShape(shape)):
                raise MbrError(
                    f"{subject}: {kind} '{name}' is {found_type} {found_shape}, the manifest says "
                    f"{np.dtype(dtype)} {list(shape)}. They are of different models: train anew."
                )
    model.reshape({name: ov.PartialShape(shape) for name, (shape, _) in inputs.items()})


__all__ = ["Engine", "OpenVinoEngine"]
