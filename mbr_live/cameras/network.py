"""Network cameras, by FFmpeg through PyAV: H.264 or H.265 over RTSP, and JPEG pictures over HTTP.

Options ask for what has arrived at once, not for smooth playback. FFmpeg's own timeouts are the first defence against
a dead connection; the watchdog of `mbr_live.cameras.live_camera` does not rely on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit

import av
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from mbr_live.cameras.clocks import Clock, EpochClock, align
from mbr_live.cameras.errors import CameraLost, Cause
from mbr_live.config import MjpegCamera, NetworkCamera, RtspCamera
from mbr_live.types import MbrError, SourceFrame
from mbr_live.video.decoding import Picture

AFTER_WATCHDOG_S = 1.0  # so that the watchdog says why, and the abandoned thread ends soon after

_AT_ONCE = {"fflags": "nobuffer", "probesize": "32", "analyzeduration": "0", "fpsprobesize": "0"}
_CAUSES: tuple[tuple[tuple[type[Exception], ...], Cause, str], ...] = (
    ((av.error.ConnectionRefusedError,), "refused", "Check that the camera is on, and its address and port"),
    (
        (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError, av.error.PermissionError),
        "denied",
        "Check user and password_file",
    ),
    ((av.error.HTTPNotFoundError,), "not there", "Check the path behind the address; the camera's manual names it"),
    ((av.error.ExitError, av.error.TimeoutError), "silent", "Check that the camera is on, and the network"),
    ((OSError,), "not there", "Check the name or address, and the network"),
)


def rtsp(name: str, source: RtspCamera, open_within_s: float, stall_s: float) -> NetworkStream:
    """A camera that speaks RTSP; its RTP timestamps give exact intervals."""
    options = _AT_ONCE | {"rtsp_transport": source.transport, "allowed_media_types": "video"}
    return NetworkStream(name, source, open_within_s, stall_s, format="rtsp", options=options, clock="camera")


def mjpeg(name: str, source: MjpegCamera, open_within_s: float, stall_s: float) -> NetworkStream:
    """A camera that sends JPEG pictures over HTTP; these come without times."""
    return NetworkStream(name, source, open_within_s, stall_s, format="mpjpeg", options=_AT_ONCE, clock="host")


class NetworkStream:
    """One connection to a network camera. CameraLost when it ends, however it does."""

    def __init__(
        self,
        name: str,
        source: NetworkCamera,
        open_within_s: float,
        stall_s: float,
        *,
        format: Literal["rtsp", "mpjpeg"],
        options: Mapping[str, str],
        clock: Clock,
    ) -> None:
        self.name, self.clock = name, clock
        self._source, self._format, self._options = source, format, dict(options)
        self._timeouts_s = (open_within_s, stall_s + AFTER_WATCHDOG_S)

    def __iter__(self) -> Iterator[SourceFrame]:
        clock, colours = EpochClock(), VideoReformatter()
        number, alignment = 0, None
        with self._opened() as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # frame threads would hold frames back
            for packet in self._packets(container, stream):
                host_ns = clock.now_ns()
                for decoded in _decoded(packet):
                    time_ns = host_ns
                    if self.clock == "camera":
                        camera_ns = _camera_ns(decoded)
                        if camera_ns is None:
                            continue
                        alignment = align(camera_ns, host_ns, alignment)
                        time_ns = camera_ns + alignment.offset_ns
                    yield SourceFrame(number, time_ns, Picture(decoded, colours))
                    number += 1
        raise CameraLost(
            "ended", f"{self._subject} ended the connection after {number} frames. Check the camera's power and log."
        )

    @property
    def _subject(self) -> str:
        return f"camera {self.name}: {self._source.url}"

    @contextmanager
    def _opened(self) -> Iterator[av.container.InputContainer]:
        try:
            container = av.open(
                self._url(),
                format=self._format,
                options=self._options,
                timeout=self._timeouts_s,
            )
        except (av.FFmpegError, OSError) as error:
            raise self._lost(error, "does not open") from error
        with container:
            if not container.streams.video:
                raise CameraLost("unreadable", f"{self._subject} has no video. Check the path behind the address.")
            yield container

    def _packets(self, container: av.container.InputContainer, stream: VideoStream) -> Iterator[av.Packet[VideoStream]]:
        try:
            yield from container.demux(stream)
        except (av.FFmpegError, OSError) as error:
            lost = self._lost(error, "stopped delivering")
            lost.cause = "stalled" if lost.cause == "silent" else "ended"
            raise lost from error

    def _lost(self, error: Exception, what: str) -> CameraLost:
        for kinds, cause, remedy in _CAUSES:
            if isinstance(error, kinds):
                why = "no answer" if isinstance(error, av.error.ExitError) else _words(error)
                return CameraLost(cause, f"{self._subject} {what} ({why}). {remedy}.")
        return CameraLost(
            "unreadable", f"{self._subject} {what} ({_words(error)}). Expected video. Check the path of the address."
        )

    def _url(self) -> str:
        source = self._source
        if source.user is None or source.password_file is None:
            return source.url
        login = f"{quote(source.user, safe='')}:{quote(_password(self.name, source.password_file), safe='')}"
        parts = urlsplit(source.url)
        return parts._replace(netloc=f"{login}@{parts.netloc}").geturl()


def _camera_ns(decoded: av.VideoFrame) -> int | None:
    """None for a frame that the decoder gives without a time, as it may at a break."""
    if decoded.pts is None or decoded.time_base is None:
        return None
    return round(decoded.pts * decoded.time_base * 1_000_000_000)


def _decoded(packet: av.Packet[VideoStream]) -> list[av.VideoFrame]:
    """The frames of a packet; one that the network has damaged has none."""
    try:
        return [frame for frame in packet.decode() if isinstance(frame, av.VideoFrame)]
    except av.error.InvalidDataError:
        return []


def _words(error: Exception) -> str:
    """What it says, without the address, which may hold the password."""
    return getattr(error, "strerror", None) or type(error).__name__


def _password(camera: str, path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise MbrError(
            f"camera {camera}: password_file {path} cannot be read ({getattr(error, 'strerror', 'not text')}). "
            "Expected a file that holds the password alone and that this user may read."
        ) from error
