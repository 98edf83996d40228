"""The few calls of the CUDA runtime that an engine needs, through cuda-python; every error is told."""

from __future__ import annotations

import ctypes
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbr_live.types import MbrError


class Cuda:
    """The runtime of one device. Make it only where `gpu_probe` found a GPU: without one, libraries may crash."""

    def __init__(self, device: int = 0) -> None:
        self._runtime = _runtime()
        self._call("cudaSetDevice", device)

    def stream(self) -> int:
        """A new stream that waits for no other."""
        return int(self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking))

    def device_memory(self, size: int) -> int:
        """Address of `size` new bytes on the device."""
        return int(self._call("cudaMalloc", size))

    def pinned(self, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        """An array in memory that the device reads and writes by itself; it lives as long as the process."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = int(self._call("cudaMallocHost", size))
        bytes_ = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return bytes_.view(dtype).reshape(shape)

    def copy_in(self, to: int, array: NDArray[Any], stream: int) -> None:
        """Pinned memory to the device, in the order of the stream."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", to, array.ctypes.data, array.nbytes, kind, stream)

    def copy_out(self, array: NDArray[Any], from_: int, stream: int) -> None:
        """The device to pinned memory, in the order of the stream."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, from_, array.nbytes, kind, stream)

    def wait(self, stream: int) -> None:
        """Until the stream has done all."""
        self._call("cudaStreamSynchronize", stream)

    def begin_capture(self, stream: int) -> None:
        """What is given to the stream from here on is recorded, not done."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> Any:
        """The recording, ready to be launched."""
        graph = self._call("cudaStreamEndCapture", stream)
        return self._call("cudaGraphInstantiate", graph, 0)

    def launch(self, graph: Any, stream: int) -> None:
        """Do what was recorded."""
        self._call("cudaGraphLaunch", graph, stream)

    def driver_version(self) -> str:
        """Newest CUDA version that the driver serves."""
        number = int(self._call("cudaDriverGetVersion"))
        return f"{number // 1000}.{number % 1000 // 10}"

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *values = getattr(self._runtime, name)(*arguments)
        if int(error):
            raise MbrError(
                f"GPU: {name} failed ({error}). Look at it with nvidia-smi; the CPU engines work without it "
                "(--engine openvino-f32)."
            )
        return values[0] if values else None


def _runtime() -> Any:
    for name in ("cuda.bindings.runtime", "cuda.cudart"):  # cuda-python 12.6 and newer; older
        try:
            return import_module(name)
        except ImportError:
            continue
    raise MbrError("The GPU engines need cuda-python, which is not installed. Run: pip install 'mbr-live[gpu]'")
