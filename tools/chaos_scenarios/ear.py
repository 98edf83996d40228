"""An ear at what inference publishes: what anybody could have heard."""

from __future__ import annotations

import threading
from contextlib import closing

from mbr_live.config import Config
from mbr_live.status import LabelMessage, SystemStatus, parse_status
from mbr_live.wire.status import StatusSubscriber


class Ear:
    """Hears all that is published, from a thread."""

    def __init__(self, config: Config) -> None:
        self.told: list[LabelMessage] = []
        self.status: SystemStatus | None = None
        self._stop = threading.Event()
        self._endpoint = config.wire.status
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with closing(StatusSubscriber(self._endpoint)) as subscriber:
            while not self._stop.is_set():
                for data in subscriber.messages(0.1):
                    message = parse_status(data)
                    if isinstance(message, SystemStatus):
                        self.status = message
                    else:
                        self.told.append(message)

    def close(self) -> None:
        """Hear no more."""
        self._stop.set()
        self._thread.join()
