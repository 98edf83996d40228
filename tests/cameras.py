"""Real camera servers for the tests, and ways to break them: RTSP by GStreamer, MJPEG over HTTP, a cut cable."""

from __future__ import annotations

import base64
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import pytest

from mbr_live.simulation.camera import Simulation

SYSTEM_PYTHON = "/usr/bin/python3"  # its packages come from the distribution, as GStreamer's bindings do
RTSP_PACKAGES = (
    "gir1.2-gst-rtsp-server-1.0 python3-gst-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good "
    "gstreamer1.0-plugins-ugly"
)
_CAN_SERVE = """
import gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gst, GstRtspServer
Gst.init(None)
assert all(map(Gst.ElementFactory.find, ("multifilesrc", "jpegdec", "x264enc", "rtph264pay", "clocksync")))
"""


def why_no_rtsp() -> str | None:
    """What is missing for an RTSP server; None when nothing is."""
    if (
        shutil.which(SYSTEM_PYTHON)
        and not subprocess.run([SYSTEM_PYTHON, "-c", _CAN_SERVE], capture_output=True).returncode
    ):
        return None
    return f"no RTSP server: apt-get install {RTSP_PACKAGES}"


def needs_rtsp() -> None:
    """Skip the test, saying why, where there is no RTSP server."""
    if why := why_no_rtsp():
        pytest.skip(why)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_pictures(folder: Path, frames: int = 60, seed: int = 5) -> Path:
    """The simulated mouse as `%05d.jpg`."""
    simulation = Simulation("box", seed)
    for number in range(frames):
        simulation.advance()
        cv2.imwrite(str(folder / f"{number:05d}.jpg"), cv2.cvtColor(simulation.render(), cv2.COLOR_RGB2BGR))
    return folder


class RtspServer:
    """`tests/rtsp_server.py` as a process."""

    def __init__(self, pictures: Path, port: int | None = None, fps: int = 30) -> None:
        self.port = port or free_port()
        self._pictures, self._fps = pictures, fps
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/cage"

    def start(self, size: tuple[int, int] | None = None) -> RtspServer:
        """Returns when it serves."""
        program = Path(__file__).with_name("rtsp_server.py")
        command = [SYSTEM_PYTHON, program, self.port, self._pictures, self._fps, *(size or ())]
        self._process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def stall(self) -> None:
        """The machine stands still: connections stay open, nothing comes."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Die at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


class MjpegServer:
    """JPEG pictures one after the other over HTTP, in a thread; `user:password` where a login is wanted."""

    def __init__(self, pictures: Path, port: int | None = None, fps: float = 30.0, login: str | None = None) -> None:
        self.port = port or free_port()
        self._pictures = [path.read_bytes() for path in sorted(pictures.glob("*.jpg"))]
        self._period_s, self._login = 1 / fps, login
        self._server: ThreadingHTTPServer | None = None
        self._serving = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/video"

    def start(self) -> MjpegServer:
        outer = self

        class Request(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._server = Server(("127.0.0.1", self.port), Request)
        self._serving.set()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def close(self) -> None:
        """End every connection, and listen no more."""
        self._serving.clear()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        if self._login is not None:
            expected = "Basic " + base64.b64encode(self._login.encode()).decode()
            if request.headers.get("Authorization") != expected:
                request.send_response(401)
                request.send_header("WWW-Authenticate", 'Basic realm="camera"')
                request.end_headers()
                return
        if request.path != "/video":
            request.send_error(404)
            return
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        request.end_headers()
        with suppress(OSError):
            for picture in self._forever():
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                request.wfile.write(head.encode() + picture + b"\r\n")

    def _forever(self) -> Iterator[bytes]:
        number, due_s = 0, time.monotonic()
        while self._serving.is_set():
            yield self._pictures[number % len(self._pictures)]
            number += 1
            due_s += self._period_s
            time.sleep(max(0.0, due_s - time.monotonic()))


class Cable:
    """A TCP proxy before a server, that can be cut: then nothing passes, and neither side is told (half-open)."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._generation = 0  # connections of before a cut stay dead after it
        self._whole = True
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._whole = False
        self._generation += 1

    def mend(self) -> None:
        self._whole = True

    def close(self) -> None:
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                if not self._whole:
                    continue  # accepted by the kernel, and never answered
                try:
                    server = socket.create_connection(("127.0.0.1", self._to_port))
                except ConnectionRefusedError:
                    client.close()
                    continue
                self._sockets.append(server)
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        generation = self._generation
        with suppress(OSError):
            while data := source.recv(65536):
                if generation != self._generation:
                    return  # silence, no FIN
                sink.sendall(data)
        if generation == self._generation:
            with suppress(OSError):
                sink.shutdown(socket.SHUT_RDWR)
