"""OSC over UDP: camera, trigger, trial, 1 or 0, sham 1 or 0, frame, capture time in s since the epoch.

Types `s s i i i i d`: no booleans, which Bonsai's parser refuses, and a double for the time, which a float would round.
"""

from __future__ import annotations

from pythonosc.osc_message_builder import OscMessageBuilder
from pythonosc.udp_client import UDPClient

from mbr_live.triggers.outputs.protocol import DeliveryError, TriggerMessage, unusable


class OscMessages:
    """UDP says nothing back: sent is all that can be known."""

    durable = False

    def __init__(self, name: str, host: str, port: int, address: str) -> None:
        self._name, self._host, self._port, self._address = name, host, port, address
        self._client: UDPClient | None = None

    def open(self) -> None:
        if self._client is not None:
            return
        try:
            self._client = UDPClient(self._host, self._port)
        except OSError as error:
            raise unusable(
                self._name, f"the host {self._host} is not known", f"({error})", "Check the name."
            ) from error

    def send(self, message: TriggerMessage) -> bool:
        if self._client is None:
            raise DeliveryError("closed")
        builder = OscMessageBuilder(self._address)
        for value, kind in (
            (message.camera, "s"), (message.trigger, "s"), (message.trial, "i"), (int(message.edge == "on"), "i"),
            (int(message.sham), "i"), (message.frame, "i"), (message.time_ns / 1e9, "d"),
        ):  # fmt: skip
            builder.add_arg(value, kind)
        try:
            self._client.send(builder.build())
        except OSError as error:
            raise DeliveryError(str(error)) from error
        return False

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()
