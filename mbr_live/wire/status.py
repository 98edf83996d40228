"""What inference says, PUBlished for whoever looks."""

from __future__ import annotations

import time
from collections.abc import Iterator

import zmq
from pydantic import BaseModel

from mbr_live.keys import Keys
from mbr_live.types import MbrError
from mbr_live.wire.sockets import Door, be_known, bounded_socket


class StatusPublisher:
    """Publishes JSON objects for whoever looks; nobody looking costs nothing."""

    def __init__(self, endpoint: str, keys: Keys | None = None) -> None:
        self._door = Door(keys)
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
        self._socket = bounded_socket(zmq.SUB, queue=1000)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        be_known(self._socket, keys)
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
