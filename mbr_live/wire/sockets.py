"""Sockets with bounded queues. With keys, all is encrypted, and only those whose key is authorized are let in."""

from __future__ import annotations

from contextlib import ExitStack

import zmq
from zmq.auth.thread import ThreadAuthenticator

from mbr_live.keys import Keys
from mbr_live.types import MbrError


def free_endpoints(count: int) -> list[str]:
    """Addresses on this machine that are free at the moment, each another."""
    with zmq.Context() as context, ExitStack() as stack:
        sockets = [stack.enter_context(context.socket(zmq.PULL)) for _ in range(count)]
        return [f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}" for socket in sockets]


def bounded_socket(
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


def be_known(socket: zmq.Socket[bytes], keys: Keys | None) -> None:
    """Let a socket that connects say who it is, and insist on whom it talks to."""
    if keys is not None:
        socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = (
            keys.inference,
            keys.public,
            keys.secret,
        )


class Door:
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
        self._bound = bounded_socket(kind, queue=queue, context=self._context)
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
