"""Runtimes that compute a bundle's two networks, behind one small protocol.

The embedded one is OpenVINO on the CPU. Its graphs are compiled for batch 1 and called once per lane, so that
the bytes of a label can not depend on how many cameras share the process. A bundle that looks ahead has a temporal
graph of whole stretches instead of one step; it is given one stretch at a time, of any length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from mbr_live.bundle import FEATURES, TEMPORAL, Bundle
from mbr_live.types import MbrError

Crops = NDArray[np.uint8]
Floats = NDArray[np.float32]

_WINDOW_FRAMES = 1024  # attention takes memory for the square of it


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

        A state of zeros is the start of a recording. Raises MbrError for a bundle that looks ahead.
        """
        ...

    def sequence(self, features: Floats) -> Floats:
        """Features, with kinematics, [T, D + M] of all ticks of one stretch -> logits [T, K].

        Raises MbrError for a causal bundle.
        """
        ...


class OpenVinoEngine:
    """A bundle on the CPU in float32, on `threads` threads. Raises MbrError where the graphs do not fit."""

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        manifest = bundle.manifest
        self._subject = f"Bundle {bundle.path}"
        self._features = _feature_graph(bundle, threads) if manifest.feature_dim else None
        self._step = _step_graph(bundle, threads) if manifest.causal else None
        self._sequence = None if manifest.causal else _SequenceGraph(bundle, threads)

    @property
    def name(self) -> str:
        return f"openvino {ov.__version__.split('-')[0]} cpu f32"

    def features(self, crops: Crops) -> Floats:
        if self._features is None:
            raise MbrError(f"{self._subject} has no feature network, and was given crops. Give it kinematics alone.")
        (features,) = self._features.per_lane(crops)
        return features

    def step(self, features: Floats, state: Floats) -> tuple[Floats, Floats]:
        if self._step is None:
            raise MbrError(
                f"{self._subject}: it looks ahead, and was asked for the label of a single frame. "
                "It can only label recorded files: mbr-live batch."
            )
        logits, state_out = self._step.per_lane(features, state)
        return logits, state_out

    def sequence(self, features: Floats) -> Floats:
        if self._sequence is None:
            raise MbrError(
                f"{self._subject}: it is causal, and was asked for a whole stretch at once. "
                "Step through the frames one by one."
            )
        return self._sequence.whole(features)


Ports = dict[str, tuple[tuple[int, ...], type[np.generic]]]
_ANY = -1  # a free dimension of a port


class _Graph:
    """One graph compiled for batch 1, with fixed input and output buffers that its calls reuse."""

    def __init__(self, bundle: Bundle, file: str, *, inputs: Ports, outputs: Ports, threads: int) -> None:
        self._subject = f"Bundle {bundle.path}: {file}"
        self._request = _compiled(bundle, file, inputs, outputs, threads)
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


class _SequenceGraph:
    """The temporal network of a bundle that looks ahead, for stretches of any length."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        manifest = bundle.manifest
        self._subject = f"Bundle {bundle.path}: {TEMPORAL}"
        self._input_dim, self._behaviours = manifest.input_dim, len(manifest.behaviours)
        self._receptive_field_frames = manifest.receptive_field_frames
        self._request = _compiled(
            bundle,
            TEMPORAL,
            inputs={"features": ((1, _ANY, self._input_dim), np.float32)},
            outputs={"logits": ((1, _ANY, self._behaviours), np.float32)},
            threads=threads,
        )

    def whole(self, features: Floats) -> Floats:
        """Features [T, D + M] -> logits [T, K]."""
        frames = len(features)
        if features.shape != (frames, self._input_dim) or features.dtype != np.float32:
            raise MbrError(
                f"{self._subject} was given {features.dtype} {list(features.shape)}, "
                f"expected float32 [T, {self._input_dim}]."
            )
        logits = np.empty((frames, self._behaviours), np.float32)
        for window in windows(frames, self._receptive_field_frames):
            logits[window.wanted] = self._infer(features[window.given])[window.kept]
        return logits

    def _infer(self, features: Floats) -> Floats:
        self._request.infer({"features": np.ascontiguousarray(features)[None]}, share_inputs=True)
        logits: Floats = self._request.get_tensor("logits").data[0]
        return logits


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a stretch that a network labels at once."""

    given: slice  # frames that it sees
    wanted: slice  # frames whose labels are taken
    kept: slice  # the same, counted from the first that it sees


def windows(frames: int, receptive_field_frames: int) -> Iterator[Window]:
    """Windows that cover a stretch. Where the receptive field is bounded they overlap by it on both sides, so that
    every output is that of the whole stretch at bounded memory; where it is not (0), the stretch is one window.
    """
    length = _WINDOW_FRAMES if receptive_field_frames else max(frames, 1)
    reach = max(receptive_field_frames - 1, 0)
    for start in range(0, frames, length):
        first, stop = max(start - reach, 0), min(start + length, frames)
        yield Window(slice(first, stop + reach), slice(start, stop), slice(start - first, stop - first))


def _feature_graph(bundle: Bundle, threads: int) -> _Graph:
    side = bundle.manifest.crop_px
    return _Graph(
        bundle,
        FEATURES,
        inputs={"crops": ((1, side, side, 3), np.uint8)},
        outputs={"features": ((1, bundle.manifest.feature_dim), np.float32)},
        threads=threads,
    )


def _step_graph(bundle: Bundle, threads: int) -> _Graph:
    manifest = bundle.manifest
    d, s, k = manifest.input_dim, manifest.state_size, len(manifest.behaviours)
    return _Graph(
        bundle,
        TEMPORAL,
        inputs={"features": ((1, d), np.float32), "state": ((1, s), np.float32)},
        outputs={"logits": ((1, k), np.float32), "state_out": ((1, s), np.float32)},
        threads=threads,
    )


def _compiled(bundle: Bundle, file: str, inputs: Ports, outputs: Ports, threads: int) -> ov.InferRequest:
    """A graph whose ports are as the manifest says, ready to run."""
    subject = f"Bundle {bundle.path}: {file}"
    model = _read_model(bundle.read(file), subject)
    _check_ports(model, inputs, outputs, subject)
    return ov.Core().compile_model(model, "CPU", _settings(threads)).create_infer_request()


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
    """The graph's names, shapes and types are the manifest's, to which its free dimensions are then set."""
    for kind, ports, expected in (("input", model.inputs, inputs), ("output", model.outputs, outputs)):
        found = {port.get_any_name(): port for port in ports}
        if set(found) != set(expected):
            raise MbrError(
                f"{subject} has {kind}s {sorted(found)}, expected {sorted(expected)}. "
                "The manifest is of another model: copy the bundle again, or train it anew."
            )
        for name, (shape, dtype) in expected.items():
            port = found[name]
            found_type, found_shape = port.get_element_type().to_dtype(), port.get_partial_shape()
            if found_type != np.dtype(dtype) or not found_shape.compatible(ov.PartialShape(shape)):
                raise MbrError(
                    f"{subject}: {kind} '{name}' is {found_type} {found_shape}, the manifest says "
                    f"{np.dtype(dtype)} {list(shape)}. They are of different models: train anew."
                )
    model.reshape({name: ov.PartialShape(shape) for name, (shape, _) in inputs.items()})


__all__ = ["Engine", "OpenVinoEngine", "Window", "windows"]
