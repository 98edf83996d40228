"""Live sources: the simulated camera, cameras that OpenCV opens, network cameras, and files at their own pace.

A camera is iterated once, in a thread of its own (`mbr_live.cameras.reader`): a library call may hang for ever. All
trouble that trying again may mend is a CameraLost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Protocol

import cv2
import numpy as np

from mbr_live.cameras.basler import Basler
from mbr_live.cameras.clocks import Clock, EpochClock, driver_age_ns
from mbr_live.cameras.errors import CameraLost
from mbr_live.cameras.gige import GigE
from mbr_live.cameras.network import mjpeg, rtsp
from mbr_live.config import (
    BaslerCamera,
    CameraSource,
    GigECamera,
    MjpegCamera,
    OpenCvCamera,
    RtspCamera,
    Simulated,
    VideoSource,
)
from mbr_live.simulation.camera import Simulation
from mbr_live.types import Image, SourceFrame
from mbr_live.video.sources import VideoFile

_NS = 1_000_000_000
_BACKENDS = {
    "v4l2": cv2.CAP_V4L2,
    "ffmpeg": cv2.CAP_FFMPEG,
    "dshow": cv2.CAP_DSHOW,
    "msmf": cv2.CAP_MSMF,
    "avfoundation": cv2.CAP_AVFOUNDATION,
}


class LiveSource(Protocol):
    """A source that says whose clock its times are of; known when the first frame is there."""

    clock: Clock

    def __iter__(self) -> Iterator[SourceFrame]: ...


def open_camera(
    name: str, source: CameraSource, *, after_ns: int | None = None, open_within_s: float = 5.0, stall_s: float = 2.0
) -> LiveSource:
    """The live source of camera `name`; a file that was played up to time `after_ns` goes on from there.

    `open_within_s` and `stall_s` are for libraries that know how to give up opening and reading.
    """
    match source:
        case Simulated():
            return SimulatedCamera(source)
        case VideoSource():
            return PacedFile(source, after_ns)
        case OpenCvCamera():
            return Camera(name, source)
        case RtspCamera():
            return rtsp(name, source, open_within_s, stall_s)
        case MjpegCamera():
            return mjpeg(name, source, open_within_s, stall_s)
        case BaslerCamera():
            return Basler(name, source)
        case GigECamera():
            return GigE(name, source, stall_s)


class SimulatedCamera:
    """The simulator as a camera with hardware timestamps; like a camera, it does not wait for a slow reader."""

    clock: Clock = "simulated"

    def __init__(self, source: Simulated) -> None:
        self._source = source

    def __iter__(self) -> Iterator[SourceFrame]:
        simulation = Simulation(self._source.condition, self._source.seed)
        fps = simulation.condition.fps
        clock = EpochClock()
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

    clock: Clock = "file"

    def __init__(self, source: VideoSource, after_ns: int | None) -> None:
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
    """A camera that OpenCV opens. Drained at its own rate; times are the driver's where V4L2 gives them, else the
    host's, taken when a frame was grabbed.
    """

    def __init__(self, name: str, source: OpenCvCamera) -> None:
        self.name = name
        self.clock: Clock = "host"
        self._source = source

    def __iter__(self) -> Iterator[SourceFrame]:
        capture = self._open()
        clock = EpochClock()
        number, time_ns = 0, 0
        try:
            while capture.grab():
                age_ns = self._age_ns(capture)
                if number == 0 and age_ns is not None:
                    self.clock = "driver"
                time_ns = max(time_ns + 1, clock.now_ns() - (age_ns or 0))  # also where a stamp is missing
                yield SourceFrame(number, time_ns, lambda: self._picture(capture))
                number += 1
        finally:
            capture.release()
        raise CameraLost(
            "ended",
            f"camera {self.name}: {self._source.device} stopped delivering after {number} frames. "
            "Check its cable and power, and whether another program took it.",
        )

    def _open(self) -> cv2.VideoCapture:
        wanted = self._source
        capture = cv2.VideoCapture(wanted.device, _BACKENDS[wanted.backend])
        if not capture.isOpened():
            raise CameraLost(
                "not there",
                f"camera {self.name}: {wanted.device!r} does not open with {wanted.backend}. Expected a camera that is "
                "plugged in and free. Check the device, its permissions, and that no other program uses it.",
            )
        for key, value in (
            (cv2.CAP_PROP_FRAME_WIDTH, wanted.width_px),
            (cv2.CAP_PROP_FRAME_HEIGHT, wanted.height_px),
            (cv2.CAP_PROP_FPS, wanted.fps),
        ):
            if value is not None:
                capture.set(key, value)
        return capture

    def _age_ns(self, capture: cv2.VideoCapture) -> int | None:
        if self._source.backend != "v4l2":
            return None  # elsewhere this property is a position in a file
        return driver_age_ns(capture.get(cv2.CAP_PROP_POS_MSEC), time.monotonic_ns())

    def _picture(self, capture: cv2.VideoCapture) -> Image:
        found, picture = capture.retrieve()
        if not found:
            raise CameraLost(
                "ended", f"camera {self.name}: a frame was announced but could not be read. Check the cable."
            )
        if picture.ndim == 2:
            return np.ascontiguousarray(cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB))
        return np.ascontiguousarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
