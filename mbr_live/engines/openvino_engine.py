"""OpenVINO on the CPU: the embedded engine, in float32, bfloat16 or int8.

Only the feature network has a precision; the temporal network stays in float32, since it takes little time and its
errors would add up in the state. Lanes are computed one by one, or in groups of a fixed size by a graph compiled for
that size: that the bytes of both are the same is not promised by OpenVINO, so it is tried when the engine is opened.

Threads take different lanes: two threads on one lane wait for each other, and more so when a core has other work. Only
a live lane that comes alone has several, where that was found to be quicker when the engine was opened, and while few
come: few cameras are answered sooner, and as many are carried as before. These threads are bound to a core each: after
a rest, Linux wakes a thread on the core of the one that wakes it, and leaves it there for longer than a call takes.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from itertools import cycle
from typing import Any, Literal, get_args

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from mbr_live.bundle import Bundle
from mbr_live.engines.protocol import (
    Crops,
    Floats,
    Ports,
    check_lanes,
    check_stretch,
    feature_ports,
    no_features,
    no_sequence,
    no_step,
    temporal_ports,
    windows,
)
from mbr_live.manifest import FEATURES, FEATURES_INT8, TEMPORAL
from mbr_live.types import MbrError

Precision = Literal["f32", "bf16", "int8"]

# What the convolutions of the compiled feature network must be reported to run in. OpenVINO lowers int8 without a word
# to float32 where it can not use it.
_RUNS_IN: dict[Precision, frozenset[str]] = {
    "f32": frozenset({"f32"}),
    "bf16": frozenset({"bf16"}),
    "int8": frozenset({"u8", "i8"}),
}

_TRIALS = 8
_LONE_THREADS = 4  # at most: more gain little on one lane, and capture has use for the other cores
_LONE_LOAD = 0.35  # of the time: beyond it a thread for each lane carries more, and on a busy machine loses less
_NEW_SHARE = 0.02  # of a new interval in the mean one
_LONGEST_INTERVAL_S = 1.0  # that counts
_WORTH_MORE_THREADS_S = 0.001  # a lane must be this much quicker on them than on one, which wakes no other thread


class OpenVinoEngine:
    """A bundle on the CPU, `batch` lanes at a time where there are as many, on up to `threads` threads.

    `live`: lanes come when they come, often alone, and each is wanted soon.

    Raises MbrError where the graphs do not fit the manifest, or the CPU or the bundle does not have the precision.
    """

    def __init__(
        self, bundle: Bundle, *, precision: Precision = "f32", threads: int = 1, batch: int = 1, live: bool = False
    ) -> None:
        if precision not in get_args(Precision) or threads < 1 or batch < 1:
            raise ValueError(f"precision {precision!r}, threads {threads}, batch {batch}")
        manifest = bundle.manifest
        if precision != "f32" and not manifest.feature_dim:
            raise MbrError(f"Bundle {bundle.path} has no feature network that could run in {precision}: openvino-f32.")
        self._bundle, self._precision = bundle, precision
        self._features = _Features(bundle, precision, threads, batch, live) if manifest.feature_dim else None
        self._step = _Graph(bundle, TEMPORAL, *temporal_ports(bundle)) if manifest.causal else None
        self._sequence = None if manifest.causal else _SequenceGraph(bundle)

    @property
    def name(self) -> str:
        return name_in(self._precision)

    def features(self, crops: Crops) -> Floats:
        if self._features is None:
            raise no_features(self._bundle)
        return self._features(crops)

    def step(self, features: Floats, state: Floats) -> tuple[Floats, Floats]:
        if self._step is None:
            raise no_step(self._bundle)
        logits, state_out = self._step.per_lane(features, state)
        return logits, state_out

    def sequence(self, features: Floats) -> Floats:
        if self._sequence is None:
            raise no_sequence(self._bundle)
        return self._sequence.whole(features)

    def precisions(self) -> dict[str, int]:
        """How many convolutions of the compiled feature network run in which precision, as OpenVINO reports it."""
        return dict(self._features.single.precisions()) if self._features else {}


def version() -> str:
    """Version of OpenVINO."""
    return str(ov.__version__).split("-")[0]


def name_in(precision: Precision) -> str:
    """What an engine of this precision is called."""
    return f"openvino {version()} cpu {precision}"


def cpu_name() -> str:
    """The CPU as OpenVINO names it."""
    return str(ov.Core().get_property("CPU", "FULL_DEVICE_NAME")).strip()


def has_bf16() -> bool:
    """Whether this CPU computes in bfloat16."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class _Call:
    """One call of a graph that may be on its way, and its buffers."""

    def __init__(self, request: ov.InferRequest, inputs: Ports, outputs: Ports) -> None:
        self._request = request
        self.inputs = [self._bind(name, *port) for name, port in inputs.items()]
        self.outputs = [self._bind(name, *port) for name, port in outputs.items()]
        self._results: list[NDArray[Any]] | None = None  # where the outputs of the call on its way belong

    def _bind(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        buffer = np.zeros(shape, dtype)
        self._request.set_tensor(name, ov.Tensor(buffer, shared_memory=True))
        return buffer

    def run(self, arrays: Sequence[NDArray[Any]], results: list[NDArray[Any]]) -> None:
        """From arrays into results, in this thread."""
        self._fill(arrays)
        self._request.infer()
        self._take(results)

    def start(self, arrays: Sequence[NDArray[Any]], results: list[NDArray[Any]]) -> None:
        """The same in another thread; the results are there after the next `finish`, with which this begins."""
        self.finish()
        self._fill(arrays)
        self._request.start_async()
        self._results = results

    def finish(self) -> None:
        """Wait for the call that is on its way, if one is."""
        if self._results is not None:
            results, self._results = self._results, None
            self._request.wait()
            self._take(results)

    def _fill(self, arrays: Sequence[NDArray[Any]]) -> None:
        for array, buffer in zip(arrays, self.inputs, strict=True):
            buffer[:] = array

    def _take(self, results: list[NDArray[Any]]) -> None:
        for result, buffer in zip(results, self.outputs, strict=True):
            result[:] = buffer


class _Graph:
    """One graph compiled for fixed inputs and outputs; `calls` of it can be on their way at the same time, each on as
    many `threads`.
    """

    def __init__(
        self,
        bundle: Bundle,
        file: str,
        inputs: Ports,
        outputs: Ports,
        hint: str = "f32",
        *,
        calls: int = 1,
        threads: int = 1,
    ) -> None:
        self._subject, self._ports = f"Bundle {bundle.path}: {file}", inputs
        self._model = _compiled(bundle, file, inputs, outputs, hint, calls, threads)
        self._calls = [_Call(self._model.create_infer_request(), inputs, outputs) for _ in range(calls)]
        self._at_once = len(self._calls[0].inputs[0])

    def per_lane(self, *arrays: NDArray[Any]) -> list[NDArray[Any]]:
        """Arrays [B, ...] in, fresh arrays [B, ...] out; as many lanes at once as the graph takes, which divides B."""
        lanes = check_lanes(self._subject, arrays, self._ports)
        results = [np.empty((lanes, *buffer.shape[1:]), buffer.dtype) for buffer in self._calls[0].outputs]
        groups = [slice(lane, lane + self._at_once) for lane in range(0, lanes, self._at_once)]
        alone = len(groups) == 1 or len(self._calls) == 1
        for group, call in zip(groups, cycle(self._calls)):
            work = call.run if alone else call.start  # handing work to a thread costs more than one lane gains
            work([array[group] for array in arrays], [result[group] for result in results])
        for call in self._calls:
            call.finish()
        return results

    def precisions(self) -> Counter[str]:
        """Precisions in which the compiled convolutions run."""
        reports = [each.get_rt_info() for each in self._model.get_runtime_model().get_ops()]
        return Counter(
            report["runtimePrecision"].astype(str)
            for report in reports
            if report["layerType"].astype(str) == "Convolution"
        )


class _Features:
    """The feature network: one graph for single lanes, another for groups of `batch` lanes, and perhaps one for a lane
    that comes alone.
    """

    def __init__(self, bundle: Bundle, precision: Precision, threads: int, batch: int, live: bool) -> None:
        self._subject = f"Bundle {bundle.path}: {FEATURES}"
        file, hint = _feature_file(bundle, precision)
        self.single = _Graph(bundle, file, *feature_ports(bundle), hint, calls=threads)
        found = self.single.precisions()
        if found and not found.keys() & _RUNS_IN[precision]:
            raise MbrError(
                f"Bundle {bundle.path}: {precision} was asked for, but OpenVINO {version()} runs the convolutions of "
                f"{file} in {', '.join(sorted(found))} on this CPU ({cpu_name()}). Use another engine: mbr-live "
                "engine check lists them."
            )
        self._batch = batch
        self._together = None
        if batch > 1:
            self._together = _Graph(bundle, file, *feature_ports(bundle, batch), hint, calls=threads)
            self._check_same_bytes(bundle, self._together)
        self._lone, self._lone_s = None, math.inf
        self._last_s, self._interval_s = time.perf_counter(), _LONGEST_INTERVAL_S  # when a lane came, how often they do
        if live and threads > 1:
            shared = _Graph(bundle, file, *feature_ports(bundle), hint, threads=min(threads, _LONE_THREADS))
            self._lone_s = _serves_in_s(shared, self.single, feature_ports(bundle)[0])
            self._lone = shared if math.isfinite(self._lone_s) else None

    def __call__(self, crops: Crops) -> Floats:
        check_lanes(self._subject, (crops,), self.single._ports)
        if self._lone is not None and len(crops) and self._few_come(len(crops)) and len(crops) == 1:
            return self._lone.per_lane(crops)[0]
        return self._on_a_thread_each(crops)

    def _few_come(self, lanes: int) -> bool:
        """Whether lanes that come alone, as often as these, leave the cores time for what else there is to do."""
        now_s = time.perf_counter()
        since_s = min(now_s - self._last_s, _LONGEST_INTERVAL_S)  # a night without cameras is not to be made up for
        self._interval_s += _NEW_SHARE * (since_s - lanes * self._interval_s)
        self._last_s = now_s
        return self._lone_s < _LONE_LOAD * self._interval_s

    def _on_a_thread_each(self, crops: Crops) -> Floats:
        grouped = len(crops) - len(crops) % self._batch if self._together else 0
        if self._together is None or not grouped:
            return self.single.per_lane(crops)[0]
        (together,) = self._together.per_lane(crops[:grouped])
        if grouped == len(crops):
            return together
        return np.concatenate((together, self.single.per_lane(crops[grouped:])[0]))

    def _check_same_bytes(self, bundle: Bundle, together: _Graph) -> None:
        """A label must not depend on how many lanes share the process."""
        shape = feature_ports(bundle, self._batch)[0]["crops"][0]
        crops = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        if together.per_lane(crops)[0].tobytes() != self.single.per_lane(crops)[0].tobytes():
            raise MbrError(
                f"{self._subject}: on this CPU ({cpu_name()}) OpenVINO {version()} computes other features for "
                f"{self._batch} lanes at once than for one. Labels would depend on the number of cameras: use batch 1."
            )


def _serves_in_s(one: _Graph, other: _Graph, inputs: Ports) -> float:
    """How long a call of a graph takes, where it gives the bytes of another, and sooner by enough to wake other threads
    for it; else infinity.
    """
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, shape, np.uint8) for shape, _ in inputs.values()]
    trials = [[_trial(graph, arrays) for graph in (one, other)] for _ in range(_TRIALS)]
    took_s, other_took_s = (min(trial[place][0] for trial in trials) for place in (0, 1))
    same = all(trial[0][1] == trial[1][1] for trial in trials)
    return took_s if same and other_took_s - took_s > _WORTH_MORE_THREADS_S else math.inf


def _trial(graph: _Graph, arrays: Sequence[NDArray[Any]]) -> tuple[float, bytes]:
    """Seconds of one call, and what came of it."""
    start_s = time.perf_counter()
    (result,) = graph.per_lane(*arrays)
    return time.perf_counter() - start_s, result.tobytes()


def _feature_file(bundle: Bundle, precision: Precision) -> tuple[str, str]:
    """The graph of a precision, and the precision of those layers that the graph itself does not quantise."""
    if precision == "bf16" and not has_bf16():
        raise MbrError(
            f"bf16 was asked for, but this CPU ({cpu_name()}) does not compute in it. Use openvino-f32, or "
            "openvino-int8 where the bundle has it."
        )
    if precision != "int8":
        return FEATURES, precision
    if FEATURES_INT8 not in bundle.manifest.files:
        raise MbrError(
            f"Bundle {bundle.path} has no int8 features ({FEATURES_INT8}). Make them with `mbr-live calibrate int8`, "
            "or use another engine."
        )
    return FEATURES_INT8, "f32"


class _SequenceGraph:
    """The temporal network of a bundle that looks ahead, for stretches of any length."""

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self._subject = f"Bundle {bundle.path}: {TEMPORAL}"
        self._input_dim, self._behaviours = manifest.input_dim, len(manifest.behaviours)
        self._receptive_field_frames = manifest.receptive_field_frames
        self._request = _compiled(bundle, TEMPORAL, *temporal_ports(bundle), "f32").create_infer_request()

    def whole(self, features: Floats) -> Floats:
        """Features [T, D + M] -> logits [T, K]."""
        check_stretch(self._subject, features, self._input_dim)
        logits = np.empty((len(features), self._behaviours), np.float32)
        for window in windows(len(features), self._receptive_field_frames):
            logits[window.wanted] = self._infer(features[window.given])[window.kept]
        return logits

    def _infer(self, features: Floats) -> Floats:
        self._request.infer({"features": np.ascontiguousarray(features)[None]}, share_inputs=True)
        logits: Floats = self._request.get_tensor("logits").data[0]
        return logits


def _compiled(
    bundle: Bundle, file: str, inputs: Ports, outputs: Ports, hint: str, calls: int = 1, threads: int = 1
) -> ov.CompiledModel:
    """A graph whose ports are as the manifest says, ready for `calls` at a time, of so many threads each."""
    subject = f"Bundle {bundle.path}: {file}"
    model = _read_model(bundle.read(file), subject)
    _check_ports(model, inputs, outputs, subject)
    return ov.Core().compile_model(model, "CPU", _settings(hint, calls, threads))


def _settings(hint: str, calls: int, threads: int) -> dict[str, Any]:
    """Everything that OpenVINO would otherwise choose by the machine (bf16 where the CPU has it)."""
    return {
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": calls * threads,
        "NUM_STREAMS": calls,
        "ENABLE_CPU_PINNING": threads > 1,
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
