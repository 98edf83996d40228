"""An ear at what inference publishes: what anybody could have heard, and when."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from dataclasses import dataclass

from mbr_live.config import Config
from mbr_live.status import LabelMessage, SystemStatus, parse_status
from mbr_live.wire import StatusSubscriber


@dataclass(frozen=True, slots=True)
class Heard:
    """When a label came, and how old its frame was."""

    at_s: float  # monotonic
    age_s: float


class Ear:
    """Hears all that is published, from a thread."""

    def __init__(self, config: Config) -> None:
        self.told: list[LabelMessage] = []
        self.status: SystemStatus | None = None
        self._heard: dict[tuple[str, int], Heard] = {}
        self._stop = threading.Event()
        self._endpoint = config.wire.status
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def heard(self, camera: str, index: int) -> Heard | None:
        """Of one label."""
        return self._heard.get((camera, index))

    def _listen(self) -> None:
        with closing(StatusSubscriber(self._endpoint)) as subscriber:
            while not self._stop.is_set():
                for data in subscriber.messages(0.1):
                    message = parse_status(data)
                    if isinstance(message, SystemStatus):
                        self.status = message
                    else:
                        self._take(message)

    def _take(self, message: LabelMessage) -> None:
        now_ns = time.monotonic_ns()
        age_s = (now_ns - message.captured_ns) / 1e9 if message.captured_ns else 0.0
        self.told.append(message)
        self._heard[message.camera, message.index] = Heard(now_ns / 1e9, age_s)

    def close(self) -> None:
        """Hear no more."""
        self._stop.set()
        self._thread.join()
