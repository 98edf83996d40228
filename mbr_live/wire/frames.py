"""Frames from captures to inference: PUSH to a PULL that inference binds. A frame is two parts, a JSON header and the
raw pixels, neither copied on the way.
"""

from __future__ import annotations

from typing import Any

import zmq

from mbr_live.keys import Keys
from mbr_live.types import Frame
from mbr_live.wire.messages import (
    MAX_PIXELS,
    BadMessage,
    CameraReport,
    CaptureCounts,
    End,
    FrameHeader,
    Header,
    Heartbeat,
    check_size,
    own_clock,
    parse,
)
from mbr_live.wire.sockets import Door, be_known, bounded_socket

QUEUE_FRAMES = 20  # two seconds of one camera: rides out a hiccup, and bounds memory and lateness
_ENCRYPTION_BYTES = 64  # CURVE adds 33 to a part, which count


class FrameSender:
    """The capture side: never waits, never queues more than QUEUE_FRAMES."""

    def __init__(self, endpoint: str, camera: str, session: str, keys: Keys | None = None) -> None:
        self._camera, self._session = camera, session
        self._context = zmq.Context()  # its own, so that closing can wait for what is queued
        self._socket = bounded_socket(zmq.PUSH, queue=QUEUE_FRAMES, linger_ms=5000, context=self._context)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # without a receiver a frame is refused and counted, not stored
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        be_known(self._socket, keys)
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
        self._door = Door(keys)
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
