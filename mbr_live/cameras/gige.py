"""GigE Vision cameras of any maker, through Aravis (`libaravis-0.8`), the free library for them.

Its Python bindings cannot be had by pip, so the few functions that are needed are called as they are in C.
What `arv_camera_new` and `arv_camera_create_stream` return is given back with `g_object_unref`; buffers belong to the
stream.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_char_p, c_double, c_int, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from functools import partial
from typing import Any

import cv2
import numpy as np

from mbr_live.cameras.clocks import Clock, EpochClock, align
from mbr_live.cameras.errors import CameraLost
from mbr_live.config import GigECamera
from mbr_live.types import Image, MbrError, SourceFrame

_LIBRARY = "libaravis-0.8.so.0"
_BUFFERS = 16  # that the library may fill while a picture is being read
_WAIT_US = 100_000  # for one frame
_SUCCESS = 0  # of ArvBufferStatus
# Numbers of GenICam's pixel format naming convention, and what makes RGB of them; None: they are RGB.
_TO_RGB: dict[int, int | None] = {
    0x01080001: cv2.COLOR_GRAY2RGB,  # Mono8
    0x01080008: cv2.COLOR_BayerGRBG2RGB,
    0x01080009: cv2.COLOR_BayerRGGB2RGB,
    0x0108000A: cv2.COLOR_BayerGBRG2RGB,
    0x0108000B: cv2.COLOR_BayerBGGR2RGB,
    0x02180014: None,  # RGB8
    0x02180015: cv2.COLOR_BGR2RGB,  # BGR8
}
_FUNCTIONS: dict[str, tuple[Any, ...]] = {  # what is returned, what is taken; of those in _FAIL, before the error
    "arv_update_device_list": (None,),
    "arv_get_n_devices": (c_uint,),
    "arv_get_device_id": (c_char_p, c_uint),
    "arv_camera_new": (c_void_p, c_char_p),
    "arv_camera_create_stream": (c_void_p, c_void_p, c_void_p, c_void_p),
    "arv_camera_get_payload": (c_uint, c_void_p),
    "arv_camera_set_frame_rate": (None, c_void_p, c_double),
    "arv_camera_start_acquisition": (None, c_void_p),
    "arv_camera_stop_acquisition": (None, c_void_p),
    "arv_buffer_new_allocate": (c_void_p, c_size_t),
    "arv_stream_push_buffer": (None, c_void_p, c_void_p),
    "arv_stream_timeout_pop_buffer": (c_void_p, c_void_p, c_uint64),
    "arv_buffer_get_status": (c_int, c_void_p),
    "arv_buffer_get_timestamp": (c_uint64, c_void_p),
    "arv_buffer_get_image_width": (c_int, c_void_p),
    "arv_buffer_get_image_height": (c_int, c_void_p),
    "arv_buffer_get_image_pixel_format": (c_uint32, c_void_p),
    "arv_buffer_get_image_data": (c_void_p, c_void_p, ctypes.POINTER(c_size_t)),
    "g_object_unref": (None, c_void_p),
    "g_error_free": (None, c_void_p),
}


class _GError(ctypes.Structure):
    _fields_ = (("domain", c_uint32), ("code", c_int), ("message", c_char_p))


_Error = ctypes.POINTER(_GError)
_FAIL = frozenset(name for name in _FUNCTIONS if name.startswith("arv_camera_"))


class _AravisError(Exception):
    """What the library says of a call that failed."""


class _Aravis:
    """The library. OSError where it is not installed."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(_LIBRARY)
        for name, (returned, *taken) in _FUNCTIONS.items():
            function = getattr(self._library, name)
            function.restype = returned
            function.argtypes = [*taken, ctypes.POINTER(_Error)] if name in _FAIL else taken

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function; _AravisError where it says that it failed."""
        function = getattr(self._library, name)
        if name not in _FAIL:
            return function(*arguments)
        error = _Error()
        result = function(*arguments, ctypes.byref(error))
        if error:
            text = (error.contents.message or b"").decode(errors="replace")
            self._library.g_error_free(error)
            raise _AravisError(text)
        return result


class GigE:
    """One connection to a GigE Vision camera. Times are the camera's where it gives them, else the host's."""

    clock: Clock = "host"

    def __init__(self, name: str, source: GigECamera, stall_s: float) -> None:
        """MbrError where Aravis is not installed. A camera that gives no frame for `stall_s` is lost."""
        self.name = name
        self._source, self._stall_s = source, stall_s
        try:
            self._aravis = _Aravis()
        except OSError as error:
            raise MbrError(
                f"camera {name}: {_LIBRARY} is not there, which GigE Vision cameras need. Install Aravis 0.8: "
                "apt install libaravis-0.8-0"
            ) from error

    def __iter__(self) -> Iterator[SourceFrame]:
        call, clock, alignment, number = self._aravis.call, EpochClock(), None, 0
        with self._streaming() as stream:
            last_s = time.monotonic()
            while time.monotonic() - last_s < self._stall_s:
                buffer = call("arv_stream_timeout_pop_buffer", stream, _WAIT_US)
                time_ns = clock.now_ns()
                if buffer is None:
                    continue
                try:
                    if call("arv_buffer_get_status", buffer) == _SUCCESS:
                        last_s = time.monotonic()
                        if camera_ns := call("arv_buffer_get_timestamp", buffer):
                            alignment = align(camera_ns, time_ns, alignment)
                            self.clock, time_ns = "camera", camera_ns + alignment.offset_ns
                        yield SourceFrame(number, time_ns, partial(self._picture, buffer))
                    number += 1
                finally:
                    call("arv_stream_push_buffer", stream, buffer)
        raise CameraLost(
            "stalled", f"{self._subject} has sent no whole frame for {self._stall_s:g} s. Check its cable and power."
        )

    @property
    def _subject(self) -> str:
        return f"camera {self.name}: GigE Vision camera {self._source.address or ''}".rstrip()

    @contextmanager
    def _streaming(self) -> Iterator[int]:
        call, objects = self._aravis.call, []
        try:
            objects.append(camera := self._opened())
            objects.append(stream := call("arv_camera_create_stream", camera, None, None))
            if self._source.fps is not None:
                call("arv_camera_set_frame_rate", camera, self._source.fps)
            payload = call("arv_camera_get_payload", camera)
            for _ in range(_BUFFERS):
                call("arv_stream_push_buffer", stream, call("arv_buffer_new_allocate", payload))
            call("arv_camera_start_acquisition", camera)
            yield stream
            call("arv_camera_stop_acquisition", camera)
        except _AravisError as error:
            raise CameraLost(
                "not there",
                f"{self._subject} does not answer as it should ({error}). Check its cable, power and `address`, and "
                "that no other program uses it.",
            ) from error
        finally:
            for each in reversed(objects):
                call("g_object_unref", each)

    def _opened(self) -> int:
        call, wanted = self._aravis.call, self._source.address
        if wanted is None:
            call("arv_update_device_list")
            found = [call("arv_get_device_id", number).decode() for number in range(call("arv_get_n_devices"))]
            if len(found) > 1:
                raise MbrError(
                    f"camera {self.name}: found the cameras {', '.join(sorted(found))}, expected one. Give `address`: "
                    "one of these names, or an IP address."
                )
            if not found:
                raise CameraLost("not there", f"{self._subject} is not there; none was found. Check cable and power.")
            wanted = found[0]
        return int(call("arv_camera_new", wanted.encode()))

    def _picture(self, buffer: int) -> Image:
        call, size = self._aravis.call, c_size_t()
        width, height = (call(f"arv_buffer_get_image_{side}", buffer) for side in ("width", "height"))
        pixel_format = call("arv_buffer_get_image_pixel_format", buffer)
        data = call("arv_buffer_get_image_data", buffer, ctypes.byref(size))
        try:
            return as_rgb(ctypes.string_at(data, size.value), width, height, pixel_format)
        except ValueError as error:
            raise MbrError(f"{self._subject} {error}") from error


def as_rgb(data: bytes, width: int, height: int, pixel_format: int) -> Image:
    """The picture, uint8 [height, width, 3] RGB. ValueError where it cannot be read."""
    if pixel_format not in _TO_RGB:
        raise ValueError(
            f"sends pixel format 0x{pixel_format:08X}, expected Mono8, Bayer of 8 bits, RGB8 or BGR8. Set one of these "
            "in the camera (PixelFormat, with arv-viewer)."
        )
    channels = (3,) if pixel_format >> 24 == 2 else ()
    expected = width * height * (channels or (1,))[0]
    if len(data) < expected:
        raise ValueError(f"sent {len(data)} bytes for {width}x{height} px, expected {expected}. Check its settings.")
    pixels = np.frombuffer(data, np.uint8, expected).reshape(height, width, *channels)
    conversion = _TO_RGB[pixel_format]
    return pixels.copy() if conversion is None else np.asarray(cv2.cvtColor(pixels, conversion), dtype=np.uint8)
