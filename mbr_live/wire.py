"""Frames and status between processes, over ZeroMQ. The only module that knows about sockets.

Capture PUSHes to inference, which binds one PULL socket; inference PUBlishes what it says for dashboards. A frame is
two parts, a JSON header and the raw pixels, neither copied on the way. Nothing that arrives is believed before it was
checked: a peer that sends garbage costs one rejected message, never the process and never its memory. With keys, all
of it is encrypted, and only those whose key is authorized are let in.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import zmq
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from zmq.auth.thread import ThreadAuthenticator

from mbr_live.keys import Keys
from mbr_live.types import Frame, MbrError

QUEUE_FRAMES = 20  # two seconds of one camera: rides out a hiccup, and bounds memory and lateness
MAX_HEADER_BYTES = 4096
MAX_DETAIL = 300  # characters
# 12 megapixels: while inference stands still, 1.7 GB of these wait at both ends. libzmq disconnects who announces more.
MAX_PIXELS = 4096 * 3072
MIN_SIDE_PX, MAX_SIDE_PX = 16, 8192
_ENCRYPTION_BYTES = 64  # CURVE adds 33 to a part, which count

_Natural = Annotated[int, Field(ge=0, lt=2**63)]
_Side = Annotated[int, Field(ge=MIN_SIDE_PX, le=MAX_SIDE_PX)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    v: Literal[1] = 1
    camera: Annotated[str, Field(min_length=1, max_length=64)]
    session: Annotated[str, Field(min_length=8, max_length=64)]  # one run of one capture process


class FrameHeader(_Message):
    """What precedes the pixels of one frame."""

    kind: Literal["frame"] = "frame"
    seq: _Natural  # counts the frames that this capture process meant to send
    index: _Natural
    source_frame: _Natural
    time_ns: _Natural
    origin_ns: _Natural
    captured_ns: _Natural  # CLOCK_MONOTONIC when the frame was in memory
    clock: Annotated[str, Field(max_length=64)]  # whose clock that is: `own_clock()`; others' must not be compared
    height: _Side
    width: _Side


@cache
def own_clock() -> str:
    """Names the monotonic clock of this machine: another after every start of the machine."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else f"{uuid.getnode():x}"


def check_size(camera: str, width_px: int, height_px: int) -> None:
    """MbrError for pictures that no frame message can hold."""
    sides_fit = all(MIN_SIDE_PX <= side <= MAX_SIDE_PX for side in (width_px, height_px))
    if not sides_fit or width_px * height_px > MAX_PIXELS:
        raise MbrError(
            f"camera {camera}: pictures of {width_px} x {height_px} px. Live pictures have {MIN_SIDE_PX} to "
            f"{MAX_SIDE_PX} px a side and at most {MAX_PIXELS / 1e6:.1f} million pixels (4096 x 3072). Set another "
            "size, a region or binning in the camera; recorded files of any size can be labelled with mbr-live batch."
        )


class CaptureCounts(BaseModel):
    """What a capture process has done with its frames so far."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    source_frames: _Natural = 0
    sampled: _Natural = 0
    sent: _Natural = 0
    dropped_queue_full: _Natural = 0  # inference did not keep up, or was not there
    dropped_on_purpose: _Natural = 0  # `replay --drop`
    dropped_disk_full: _Natural = 0  # for want of room, its row in the journal could not be written for long
    recorded: _Natural = 0
    unrecorded: _Natural = 0  # pictures that could not be kept, for lack of room


class CameraReport(BaseModel):
    """How a camera is, as its capture process sees it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    clock: Annotated[str, Field(max_length=20)] = ""  # whose clock capture times are of; empty before the first frame
    lost: Annotated[str, Field(max_length=20)] = ""  # cause of the present outage; empty while frames come
    lost_for_s: Annotated[float, Field(ge=0)] = 0.0
    detail: Annotated[str, Field(max_length=MAX_DETAIL)] = ""
    outages: Annotated[dict[str, _Natural], Field(max_length=20)] = {}  # so far, by cause
    source_fps: Annotated[float, Field(ge=0)] = 0.0  # frames that the camera itself delivers
    alarms: Annotated[dict[str, str], Field(max_length=20)] = {}  # what is wrong with the pictures, and how


class Heartbeat(_Message):
    """Sent once a second, so that silence means that the process is gone."""

    kind: Literal["heartbeat"] = "heartbeat"
    counts: CaptureCounts
    report: CameraReport = CameraReport()


class End(_Message):
    """The last message of a capture process that ends as it should."""

    kind: Literal["end"] = "end"
    last_index: Annotated[int, Field(ge=-1, lt=2**63)]  # the last tick that was sampled; -1: none
    origin_ns: _Natural  # capture time of tick 0
    counts: CaptureCounts
    report: CameraReport = CameraReport()


Header = FrameHeader | Heartbeat | End
_HEADER: TypeAdapter[Header] = TypeAdapter(Annotated[Header, Field(discriminator="kind")])


class BadMessage(Exception):
    """A message that is not ours: counted and logged by the receiver, and otherwise ignored."""


def parse(parts: list[memoryview]) -> tuple[Header, memoryview | None]:
    """Check one message; BadMessage says what is wrong with it."""
    if not parts or len(parts) > 2:
        raise BadMessage(f"{len(parts)} parts instead of 1 or 2")
    if len(parts[0]) > MAX_HEADER_BYTES:
        raise BadMessage(f"a header of {len(parts[0])} bytes, at most {MAX_HEADER_BYTES} expected")
    try:
        header = _HEADER.validate_json(bytes(parts[0]))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise BadMessage(f"header: {'.'.join(map(str, first['loc']))}: {first['msg']}"[:300]) from error
    if not isinstance(header, FrameHeader):
        if len(parts) != 1:
            raise BadMessage(f"{header.kind} message with pixels")
        return header, None
    expected = header.height * header.width * 3
    if len(parts) != 2 or len(parts[1]) != expected:
        found = len(parts[1]) if len(parts) == 2 else 0
        raise BadMessage(f"{found} pixel bytes, {header.width} x {header.height} x 3 = {expected} expected")
    return header, parts[1]


def frame_of(header: FrameHeader, pixels: memoryview) -> Frame:
    """The frame of a checked message; its pixels are a read-only view of the received bytes."""
    image = np.frombuffer(pixels, dtype=np.uint8).reshape(header.height, header.width, 3)
    return Frame(header.camera, header.index, header.source_frame, header.time_ns, header.origin_ns, image)


class FrameSender:
    """The capture side: never waits, never queues more than QUEUE_FRAMES."""

    def __init__(self, endpoint: str, camera: str, session: str, keys: Keys | None = None) -> None:
        self._camera, self._session = camera, session
        self._context = zmq.Context()  # its own, so that closing can wait for what is queued
        self._socket = _socket(zmq.PUSH, queue=QUEUE_FRAMES, linger_ms=5000, context=self._context)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # without a receiver a frame is refused and counted, not stored
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        _be_known(self._socket, keys)
        self._socket.connect(endpoint)
        self._seq = 0

    def skip(self) -> None:
        """Lose the next frame on purpose; the receiver sees the hole in the numbering."""
        self._seq += 1

    def send(self, frame: Frame, captured_ns: int) -> bool:
        """Send `frame` if there is room; False when it was refused. MbrError for one of a size that cannot be sent."""
        height, width = frame.pixels.shape[:2]
        check_size(self._camera, width, height)
        header = FrameHeader(
            camera=self._camera, session=self._session, seq=self._seq, index=frame.index,
            source_frame=frame.source_frame, time_ns=frame.time_ns, origin_ns=frame.origin_ns,
            captured_ns=captured_ns, clock=own_clock(), height=height, width=width,
        )  # fmt: skip
        self._seq += 1
        return self._push([header.model_dump_json().encode(), frame.pixels.data], 0.0)

    def heartbeat(self, counts: CaptureCounts, report: CameraReport | None = None) -> None:
        """Say that this process lives. Losing one of these to a full queue is harmless."""
        beat = Heartbeat(camera=self._camera, session=self._session, counts=counts, report=report or CameraReport())
        self._push([beat.model_dump_json().encode()], 0.0)

    def end(
        self,
        last_index: int,
        origin_ns: int,
        counts: CaptureCounts,
        report: CameraReport | None = None,
        timeout_s: float = 5.0,
    ) -> bool:
        """Say that no more frames follow; waits for room in the queue. False when nobody took it."""
        message = End(
            camera=self._camera, session=self._session, last_index=last_index, origin_ns=origin_ns, counts=counts,
            report=report or CameraReport(),
        )  # fmt: skip
        return self._push([message.model_dump_json().encode()], timeout_s)

    def close(self) -> None:
        """Close, giving what is queued up to 5 s to leave."""
        self._socket.close()
        self._context.term()

    def _push(self, parts: list[Any], timeout_s: float) -> bool:
        # Parts of one message go together: once the first is taken, the rest is.
        if not self._socket.poll(round(timeout_s * 1000), zmq.POLLOUT):
            return False
        try:
            self._socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        return True


class FrameReceiver:
    """The inference side."""

    def __init__(self, endpoint: str, keys: Keys | None = None) -> None:
        self._door = _Door(keys)
        self._socket = self._door.socket(zmq.PULL, queue=QUEUE_FRAMES)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_PIXELS * 3 + _ENCRYPTION_BYTES)
        self._door.open(self._socket, endpoint, "frames")

    def receive(self, timeout_s: float) -> tuple[Header, memoryview | None] | None:
        """The next message, or None after `timeout_s` without one. BadMessage when it is not one of ours."""
        if not self._socket.poll(max(0, round(timeout_s * 1000))):
            return None
        parts: list[memoryview] = []
        count = 0
        while True:
            part = self._socket.recv(copy=False)
            count += 1
            if count <= 2:  # a message of a million parts is counted, not kept
                parts.append(part.buffer)
            if not part.more:
                break
        if count > 2:
            raise BadMessage(f"{count} parts instead of 1 or 2")
        return parse(parts)

    def close(self) -> None:
        """Unbind."""
        self._door.close()


class StatusPublisher:
    """Publishes JSON objects for whoever looks; nobody looking costs nothing."""

    def __init__(self, endpoint: str, keys: Keys | None = None) -> None:
        self._door = _Door(keys)
        self._socket = self._door.socket(zmq.PUB, queue=1000)
        self._door.open(self._socket, endpoint, "status")

    def publish(self, message: BaseModel) -> None:
        """Send one status message."""
        self._socket.send(message.model_dump_json().encode())

    def close(self) -> None:
        """Unbind."""
        self._door.close()


class StatusSubscriber:
    """Receives what a StatusPublisher says."""

    def __init__(self, endpoint: str, keys: Keys | None = None) -> None:
        self._socket = _socket(zmq.SUB, queue=1000)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        _be_known(self._socket, keys)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self._socket.close()
            raise MbrError(
                f"{endpoint}: this is not an address to listen to ({error.strerror}). Expected the status address of a "
                "running system, such as tcp://127.0.0.1:5602."
            ) from error

    def messages(self, timeout_s: float) -> Iterator[bytes]:
        """All messages that come within `timeout_s`, the waiting ones at once."""
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0 and self._socket.poll(round(left_s * 1000) + 1):
            yield self._socket.recv()

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()


class NoAnswer(Exception):
    """A question that was not answered in time."""


class Requester:
    """Asks one question at a time of somebody else's REP socket; one that is lost does not block the next."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._socket = _socket(zmq.REQ, queue=10)
        self._socket.setsockopt(zmq.REQ_RELAXED, 1)
        self._socket.setsockopt(zmq.REQ_CORRELATE, 1)  # an answer that comes late is not taken for that of the next
        self._socket.setsockopt(zmq.MAXMSGSIZE, 65536)
        self._socket.connect(endpoint)

    def ask(self, question: str, timeout_s: float) -> str:
        """The answer to `question`; NoAnswer when none comes within `timeout_s`."""
        try:
            self._socket.send(question.encode(), zmq.NOBLOCK)
        except zmq.Again as error:
            raise NoAnswer(f"{self._endpoint} takes no questions") from error
        if not self._socket.poll(round(timeout_s * 1000)):
            raise NoAnswer(f"{self._endpoint} did not answer within {timeout_s:g} s")
        return self._socket.recv().decode(errors="replace")

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()


def free_endpoint() -> str:
    """An address on this machine that is free at the moment."""
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        return f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"


def _socket(
    kind: zmq.SocketType, *, queue: int, linger_ms: int = 0, context: zmq.Context[zmq.Socket[bytes]] | None = None
) -> zmq.Socket[bytes]:
    """A socket with bounded queues that notices a half-open connection within seconds.

    By the keep-alive of TCP, not by the heartbeats of ZeroMQ: libzmq (4.3.5) cannot read those while a queue is full,
    takes the peer for dead, and may abort the process.
    """
    socket = (context or zmq.Context.instance()).socket(kind)
    for option, value in (
        (zmq.SNDHWM, queue),
        (zmq.RCVHWM, queue),
        (zmq.LINGER, linger_ms),
        (zmq.TCP_KEEPALIVE, 1),
        (zmq.TCP_KEEPALIVE_IDLE, 2),
        (zmq.TCP_KEEPALIVE_INTVL, 1),
        (zmq.TCP_KEEPALIVE_CNT, 3),
        (zmq.TCP_MAXRT, 15_000),  # ms, for a peer that vanishes with data on the way to it
    ):
        socket.setsockopt(option, value)
    return socket


def _be_known(socket: zmq.Socket[bytes], keys: Keys | None) -> None:
    """Let a socket that connects say who it is, and insist on whom it talks to."""
    if keys is not None:
        socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = (
            keys.inference,
            keys.public,
            keys.secret,
        )


class _Door:
    """Where a socket is bound. With keys it lets in only those whose key is authorized.

    It has a context of its own: who is let in is asked within one (ZeroMQ RFC 27), so no other socket can be meant.
    """

    def __init__(self, keys: Keys | None) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._keys = keys
        self._guard: ThreadAuthenticator | None = None
        self._bound: zmq.Socket[bytes] | None = None

    def socket(self, kind: zmq.SocketType, *, queue: int) -> zmq.Socket[bytes]:
        """A socket to be opened here."""
        self._bound = _socket(kind, queue=queue, context=self._context)
        return self._bound

    def open(self, socket: zmq.Socket[bytes], endpoint: str, what: str) -> None:
        """Bind; MbrError where the address cannot be had, and nothing is left open then."""
        if self._keys is not None:
            self._guard = ThreadAuthenticator(self._context)
            self._guard.start()
            self._guard.configure_curve(domain="*", location=str(self._keys.authorized))
            socket.curve_publickey, socket.curve_secretkey = self._keys.public, self._keys.secret
            socket.curve_server = True
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise MbrError(
                f"{endpoint}: the {what} socket cannot be opened ({error.strerror}). Most often another mbr-live is "
                "running on the same address. Stop it, or set another address under [wire] in the configuration."
            ) from error

    def close(self) -> None:
        """Unbind, and send the guard home."""
        if self._bound is not None:
            self._bound.close()
        if self._guard is not None:
            self._guard.stop()
        self._context.term()
