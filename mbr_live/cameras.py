"""Live sources: the simulated camera, cameras that OpenCV opens, and files played at their own pace."""

from __future__ import annotations

import time
from collections.abc import Iterator

import cv2
import numpy as np

from mbr_live.config import OpenCvCamera, Simulated, VideoSource
from mbr_live.simulate import Simulation
from mbr_live.sources import Source, VideoFile
from mbr_live.types import Image, MbrError, SourceFrame

_NS = 1_000_000_000
_BACKENDS = {
    "v4l2": cv2.CAP_V4L2,
    "ffmpeg": cv2.CAP_FFMPEG,
    "dshow": cv2.CAP_DSHOW,
    "msmf": cv2.CAP_MSMF,
    "avfoundation": cv2.CAP_AVFOUNDATION,
}


class CameraLost(MbrError):
    """A camera that was delivering frames stopped: worth trying again, unlike one that never opened."""


def open_camera(name: str, source: Simulated | VideoSource | OpenCvCamera, *, after_ns: int | None = None) -> Source:
    """The live source of camera `name`; a file that was played up to time `after_ns` goes on from there."""
    match source:
        case Simulated():
            return SimulatedCamera(name, source)
        case VideoSource():
            return PacedFile(name, source, after_ns)
        case OpenCvCamera():
            return Camera(name, source)


class _EpochClock:
    """Nanoseconds since the epoch that never step back: the epoch is read once, the rest is monotonic."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now_ns(self) -> int:
        return time.monotonic_ns() + self._offset_ns


class SimulatedCamera:
    """The simulator as a camera with hardware timestamps; like a camera, it does not wait for a slow reader."""

    def __init__(self, name: str, source: Simulated) -> None:
        self.name = name
        self._source = source

    def __iter__(self) -> Iterator[SourceFrame]:
        simulation = Simulation(self._source.condition, self._source.seed)
        fps = simulation.condition.fps
        clock = _EpochClock()
        start_ns = clock.now_ns()
        number = 0
        while True:
            due_ns = start_ns + int(number * _NS / fps)
            late_ns = clock.now_ns() - due_ns
            if late_ns < 0:
                time.sleep(-late_ns / _NS)
            simulation.advance()
            if late_ns < _NS / fps:  # a frame that nobody came for in time is gone, as in a camera
                yield SourceFrame(number, due_ns, simulation.render)
            number += 1


class PacedFile:
    """A file that delivers its frames when their time has come; times stay those of the file."""

    def __init__(self, name: str, source: VideoSource, after_ns: int | None) -> None:
        self.name = name
        self._after_ns = -1 if after_ns is None else after_ns
        self._file = VideoFile(source.path)
        self._speed = source.speed

    def __iter__(self) -> Iterator[SourceFrame]:
        start_ns: int | None = None
        for frame in self._file:
            if frame.time_ns > self._after_ns:
                now_ns, due_ns = time.monotonic_ns(), int(frame.time_ns / self._speed)
                start_ns = now_ns - due_ns if start_ns is None else start_ns
                time.sleep(max(0, start_ns + due_ns - now_ns) / _NS)
                yield frame


class Camera:
    """A camera that OpenCV opens. Drained at its own rate; times are the host's, taken when a frame was grabbed."""

    def __init__(self, name: str, source: OpenCvCamera) -> None:
        self.name = name
        self._source = source

    def __iter__(self) -> Iterator[SourceFrame]:
        capture = self._open()
        clock = _EpochClock()
        number = 0
        try:
            while capture.grab():
                yield SourceFrame(number, clock.now_ns(), lambda: self._picture(capture))
                number += 1
        finally:
            capture.release()
        raise CameraLost(
            f"camera {self.name}: {self._source.device} stopped delivering after {number} frames. "
            "Check its cable and power, and whether another program took it."
        )

    def _open(self) -> cv2.VideoCapture:
        wanted = self._source
        capture = cv2.VideoCapture(wanted.device, _BACKENDS[wanted.backend])
        if not capture.isOpened():
            raise MbrError(
                f"camera {self.name}: {wanted.device!r} does not open with {wanted.backend}. Expected a camera that is "
                "plugged in and free. Check the device, its permissions, and that no other program uses it."
            )
        for key, value in (
            (cv2.CAP_PROP_FRAME_WIDTH, wanted.width_px),
            (cv2.CAP_PROP_FRAME_HEIGHT, wanted.height_px),
            (cv2.CAP_PROP_FPS, wanted.fps),
        ):
            if value is not None:
                capture.set(key, value)
        return capture

    def _picture(self, capture: cv2.VideoCapture) -> Image:
        found, picture = capture.retrieve()
        if not found:
            raise CameraLost(f"camera {self.name}: a frame was announced but could not be read. Check the cable.")
        if picture.ndim == 2:
            return np.ascontiguousarray(cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB))
        return np.ascontiguousarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
