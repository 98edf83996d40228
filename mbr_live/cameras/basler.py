"""Basler cameras (USB3 Vision and GigE Vision) through pylon, Basler's own library: the extra `basler`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from mbr_live.cameras.clocks import Clock, EpochClock, align
from mbr_live.cameras.errors import CameraLost
from mbr_live.config import BaslerCamera
from mbr_live.types import Image, MbrError, SourceFrame

_NS = 1_000_000_000
_WAIT_MS = 500  # for one frame, before looking whether the camera is still there
_RATE_NODES = ("AcquisitionFrameRate", "AcquisitionFrameRateAbs")  # USB3; GigE
_TICK_NODES = ("GevTimestampTickFrequency", "TimestampTickFrequency")  # GigE; cameras without it count nanoseconds


class Basler:
    """One connection to a Basler camera. Times are the camera's where it gives them, else the host's."""

    clock: Clock = "host"

    def __init__(self, name: str, source: BaslerCamera) -> None:
        """MbrError where pylon is not installed."""
        self.name = name
        self._source = source
        try:
            from pypylon import genicam, pylon
        except ModuleNotFoundError as error:
            raise MbrError(
                f"camera {name}: pypylon is not installed, which Basler cameras need. Run: pip install "
                "'mbr-live[basler]'"
            ) from error
        self._pylon, self._genicam = pylon, genicam

    def __iter__(self) -> Iterator[SourceFrame]:
        clock, alignment, number = EpochClock(), None, 0
        converter = self._pylon.ImageFormatConverter()
        converter.OutputPixelFormat = self._pylon.PixelType_RGB8packed
        with self._grabbing() as camera:
            frequency_hz = self._value(camera, _TICK_NODES) or _NS
            while camera.IsGrabbing() and not camera.IsCameraDeviceRemoved():
                result = camera.RetrieveResult(_WAIT_MS, self._pylon.TimeoutHandling_Return)
                time_ns = clock.now_ns()
                if not result.IsValid():
                    continue  # nothing yet: the watchdog counts, not this loop
                try:
                    if result.GrabSucceeded():
                        if ticks := result.GetTimeStamp():
                            camera_ns = ticks * _NS // frequency_hz
                            alignment = align(camera_ns, time_ns, alignment)
                            self.clock, time_ns = "camera", camera_ns + alignment.offset_ns
                        yield SourceFrame(number, time_ns, partial(_rgb, converter, result))
                    number += 1
                finally:
                    result.Release()
        raise CameraLost("ended", f"{self._subject} is gone after {number} frames. Check its cable and power.")

    @property
    def _subject(self) -> str:
        return f"camera {self.name}: Basler {self._source.serial or 'camera'}"

    @contextmanager
    def _grabbing(self) -> Iterator[Any]:
        camera = self._opened()
        try:
            camera.StartGrabbing(self._pylon.GrabStrategy_OneByOne)
            yield camera
        except self._genicam.GenericException as error:
            raise CameraLost("ended", f"{self._subject} broke off ({_first_line(error)}). Check its cable.") from error
        finally:
            camera.Close()

    def _opened(self) -> Any:
        pylon, wanted = self._pylon, self._source
        factory = pylon.TlFactory.GetInstance()
        try:
            device = self._device(factory)
            camera = pylon.InstantCamera(factory.CreateDevice(device))
            camera.Open()
        except self._genicam.GenericException as error:
            raise CameraLost(
                "not there",
                f"{self._subject} does not open ({_first_line(error)}). Check its cable and power, and that no other "
                "program (pylon Viewer) uses it.",
            ) from error
        try:
            if wanted.settings is not None:
                pylon.FeaturePersistence.Load(str(wanted.settings), camera.GetNodeMap(), True)
            if wanted.fps is not None:
                self._set_rate(camera, wanted.fps)
        except self._genicam.GenericException as error:
            camera.Close()
            raise MbrError(
                f"{self._subject} does not take its settings ({_first_line(error)}). Check `settings` (a .pfs file "
                "that pylon Viewer saved of this model) and `fps`."
            ) from error
        return camera

    def _device(self, factory: Any) -> Any:
        found = {device.GetSerialNumber(): device for device in factory.EnumerateDevices()}
        wanted = self._source.serial
        if wanted is None and len(found) == 1:
            return next(iter(found.values()))
        if wanted in found:
            return found[wanted]
        if wanted is None and found:
            raise MbrError(
                f"camera {self.name}: found the Basler cameras {', '.join(sorted(found))}, expected one. Give `serial`."
            )
        raise CameraLost(
            "not there",
            f"{self._subject} is not there; found {', '.join(sorted(found)) or 'no Basler camera'}. Check cable, power "
            "and `serial`.",
        )

    def _set_rate(self, camera: Any, fps: float) -> None:
        nodes = camera.GetNodeMap()
        enable = nodes.GetNode("AcquisitionFrameRateEnable")
        if enable is not None and self._genicam.IsWritable(enable):
            enable.Value = True
        for name in _RATE_NODES:
            node = nodes.GetNode(name)
            if node is not None and self._genicam.IsWritable(node):
                node.Value = fps
                return
        raise MbrError(f"{self._subject} has no frame rate that can be set. Leave out `fps`.")

    def _value(self, camera: Any, names: tuple[str, ...]) -> int | None:
        for name in names:
            node = camera.GetNodeMap().GetNode(name)
            if node is not None and self._genicam.IsReadable(node):
                return int(node.Value)
        return None


def _rgb(converter: Any, result: Any) -> Image:
    return np.ascontiguousarray(converter.Convert(result).GetArray(), dtype=np.uint8)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].split(" : ")[0][:200]
