"""TensorRT on an NVIDIA GPU: the feature network from a plan, `batch` lanes at a time.

The temporal network stays on the CPU in float32, as in every engine: it is a hundredth of the work (0.06 ms a lane and
step), and the packed state of a lane stays what it is everywhere, an array that can be written down.

A batch that is not full is padded, so every lane always goes through the same kernels; that its bytes do not depend on
its neighbours is tried when the engine is opened. What is launched is a CUDA graph; its first results are held against
an ordinary run, since a graph that recorded nothing gives old results without any error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbr_live.bundle import Bundle
from mbr_live.engines.cuda import Cuda
from mbr_live.engines.openvino_engine import OpenVinoEngine
from mbr_live.engines.plans import GpuPrecision, PlanHeader, plan_folder, read_plan
from mbr_live.engines.protocol import Crops, Floats, Ports, check_lanes, feature_ports
from mbr_live.engines.tensorrt_api import tensorrt
from mbr_live.engines.tensorrt_build import plan_key
from mbr_live.manifest import FEATURES
from mbr_live.types import MbrError


class NoPlan(MbrError):
    """There is no plan for this machine yet."""


class TensorRtEngine:
    """A bundle on the first GPU. NoPlan where none was built; MbrError where there is no GPU, or the plan fails."""

    def __init__(self, bundle: Bundle, *, precision: GpuPrecision = "f16", batch: int = 1) -> None:
        key = plan_key(bundle, precision, batch)
        found = read_plan(plan_folder(), key)
        if found is None:
            raise NoPlan(
                f"Bundle {bundle.path}: there is no plan for {precision}, {batch} lane(s), on {key.gpu} with TensorRT "
                f"{key.tensorrt}. Build it, which takes minutes: mbr-live engine build {bundle.path} "
                f"--precision {precision} --batch {batch}"
            )
        self._header, plan = found
        self._subject, self._batch, self._precision = f"Bundle {bundle.path}: {FEATURES}", batch, precision
        self._ports = feature_ports(bundle)[0]
        self._network = _Network(plan, *feature_ports(bundle, batch), subject=self._subject)
        self._temporal = OpenVinoEngine(bundle)
        self._check_lanes_are_independent()

    @property
    def name(self) -> str:
        return f"tensorrt {self._header.key.tensorrt} {self._header.key.gpu.replace(' ', '-')} {self._precision}"

    @property
    def header(self) -> PlanHeader:
        """Of the plan that runs."""
        return self._header

    def features(self, crops: Crops) -> Floats:
        lanes = check_lanes(self._subject, (crops,), self._ports)
        results = [
            self._network.run(_padded(crops[start : start + self._batch], self._batch))[: lanes - start]
            for start in range(0, lanes, self._batch)
        ]
        return np.concatenate(results) if results else np.empty((0, self._network.outputs.shape[1]), np.float32)

    def step(self, features: Floats, state: Floats) -> tuple[Floats, Floats]:
        return self._temporal.step(features, state)

    def sequence(self, features: Floats) -> Floats:
        return self._temporal.sequence(features)

    def _check_lanes_are_independent(self) -> None:
        """The bytes of a lane must depend neither on its neighbours nor on its place in the batch."""
        noise = np.random.default_rng(0).integers(0, 256, (self._batch, *self._network.inputs.shape[1:]), np.uint8)
        together, turned = self._network.run(noise), self._network.run(noise[::-1])[::-1]
        alone = self._network.run(_padded(noise[:1], self._batch))[:1]
        if together.tobytes() != turned.tobytes() or together[:1].tobytes() != alone.tobytes():
            raise MbrError(
                f"{self._subject}: on {self._header.key.gpu} the features of a lane depend on the other lanes of its "
                "batch. Labels would depend on the number of cameras: use --batch 1."
            )


class _Network:
    """A plan with its buffers and its CUDA graph."""

    def __init__(self, plan: bytes, inputs: Ports, outputs: Ports, *, subject: str) -> None:
        trt, self._cuda = tensorrt(), Cuda()
        self._logger = trt.Logger(trt.Logger.WARNING)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise MbrError(f"{subject}: TensorRT refused its plan. Build it anew: mbr-live engine remove --all")
        _check_tensors(trt, self._engine, inputs, outputs, subject)
        self._context = self._engine.create_execution_context()
        self._stream = self._cuda.stream()
        (name, (shape, dtype)), (name_out, (shape_out, dtype_out)) = (
            next(iter(inputs.items())),
            next(iter(outputs.items())),
        )
        self.inputs, self.outputs = self._cuda.pinned(shape, dtype), self._cuda.pinned(shape_out, dtype_out)
        self._there = [self._cuda.device_memory(buffer.nbytes) for buffer in (self.inputs, self.outputs)]
        self._context.set_input_shape(name, shape)
        for tensor, address in zip((name, name_out), self._there, strict=True):
            self._context.set_tensor_address(tensor, address)
        self._graph: Any = self._recorded(subject)

    def run(self, crops: Crops) -> Floats:
        """Crops of a whole batch -> features, a fresh array."""
        self.inputs[:] = crops
        self._cuda.launch(self._graph, self._stream)
        self._cuda.wait(self._stream)
        return np.array(self.outputs)

    def _recorded(self, subject: str) -> Any:
        """The CUDA graph; two ordinary runs come first, and its results are held against theirs."""
        noise = np.random.default_rng(1).integers(0, 256, (2, *self.inputs.shape), np.uint8)
        ordinary = [self._ordinary(crops) for crops in noise]
        self._cuda.begin_capture(self._stream)
        self._queue()
        self._graph = self._cuda.end_capture(self._stream)
        if any(self.run(crops).tobytes() != found.tobytes() for crops, found in zip(noise, ordinary, strict=True)):
            raise MbrError(
                f"{subject}: its CUDA graph computes other features than an ordinary run. Use another engine."
            )
        return self._graph

    def _ordinary(self, crops: Crops) -> Floats:
        self.inputs[:] = crops
        self._queue()
        self._cuda.wait(self._stream)
        return np.array(self.outputs)

    def _queue(self) -> None:
        self._cuda.copy_in(self._there[0], self.inputs, self._stream)
        if not self._context.execute_async_v3(self._stream):
            raise MbrError("GPU: TensorRT did not take the work. Look at it with nvidia-smi.")
        self._cuda.copy_out(self.outputs, self._there[1], self._stream)


def _padded(crops: Crops, batch: int) -> NDArray[np.uint8]:
    return np.concatenate((crops, np.zeros((batch - len(crops), *crops.shape[1:]), np.uint8)))


def _check_tensors(trt: Any, engine: Any, inputs: Ports, outputs: Ports, subject: str) -> None:
    found = {}
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        found[name] = (is_input, tuple(engine.get_tensor_shape(name)))
    wanted = {name: (ports is inputs, shape) for ports in (inputs, outputs) for name, (shape, _) in ports.items()}
    if found != wanted:
        raise MbrError(f"{subject}: its plan has the tensors {found}, expected {wanted}. Build it anew.")
