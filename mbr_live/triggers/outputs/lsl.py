"""Markers in the Lab Streaming Layer: one string channel, JSON in every marker."""

from __future__ import annotations

import time

import pylsl

from mbr_live.clock_offset import offset_ns
from mbr_live.triggers.outputs.protocol import DeliveryError, TriggerMessage


class LslMarkers:
    """A stream of type Markers. Its times are of the decision, on LSL's own clock."""

    durable = False  # LSL has no answer, and a marker that comes late is not one

    def __init__(self, name: str, stream: str, session: str) -> None:
        self._name, self._stream, self._session = name, stream, session
        self._outlet: pylsl.StreamOutlet | None = None

    def open(self) -> None:
        if self._outlet is None:
            info = pylsl.StreamInfo(self._stream, "Markers", 1, 0, "string", f"{self._stream}-{self._session}")
            self._outlet = pylsl.StreamOutlet(info)

    def send(self, message: TriggerMessage) -> bool:
        if self._outlet is None:
            raise DeliveryError("the stream is closed")
        decided_ns = message.decided_ns + offset_ns(_local_clock_ns, time.time_ns)
        self._outlet.push_sample([message.model_dump_json()], decided_ns / 1e9)
        return False

    def close(self) -> None:
        self._outlet = None


def _local_clock_ns() -> int:
    return int(pylsl.local_clock() * 1e9)
