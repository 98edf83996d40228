"""Messages on a PUB socket, JSON like those of the status address."""

from __future__ import annotations

from mbr_live.triggers.outputs.protocol import DeliveryError, TriggerMessage
from mbr_live.wire.status import StatusPublisher


class ZeromqMessages:
    """Whoever listens hears it; who listens is not known."""

    durable = False

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._publisher: StatusPublisher | None = None

    def open(self) -> None:
        if self._publisher is None:
            self._publisher = StatusPublisher(self._endpoint)

    def send(self, message: TriggerMessage) -> bool:
        if self._publisher is None:
            raise DeliveryError("closed")
        self._publisher.publish(message)
        return False

    def close(self) -> None:
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            publisher.close()
