"""Questions to the software of others, by REQ and REP."""

from __future__ import annotations

import zmq

from mbr_live.wire.sockets import bounded_socket


class NoAnswer(Exception):
    """A question that was not answered in time."""


class Requester:
    """Asks one question at a time of somebody else's REP socket; one that is lost does not block the next."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._socket = bounded_socket(zmq.REQ, queue=10)
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
