"""All outputs of one output process: who is told what, and what came of it."""

from __future__ import annotations

import queue
import secrets
import time
from collections.abc import Iterator, Sequence

from mbr_live.trigger_config import AnyOutput
from mbr_live.triggers.outputs import make_outlets
from mbr_live.triggers.outputs.protocol import TriggerMessage
from mbr_live.triggers.outputs.workers import Delivery, LineWorker, MessageWorker
from mbr_live.types import MbrError


class Pool:
    """A worker for each output. Nothing here waits for a receiver."""

    def __init__(self, outputs: Sequence[AnyOutput]) -> None:
        """Not yet open. MbrError where a package or a secret is missing."""
        self._deliveries: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        lines, messengers = make_outlets(outputs, secrets.token_hex(6))
        report = self._deliveries.put
        self._lines = {name: LineWorker(name, outlet, report) for name, outlet in lines.items()}
        self._messengers = {name: MessageWorker(name, outlet, report) for name, outlet in messengers.items()}
        self._running: set[str] = set()

    def start(self, *, strict: bool) -> None:
        """Open every output; with `strict`, MbrError naming all that cannot be used, else these are tried again."""
        problems = []
        for worker in self._workers():
            try:
                worker.start(strict=strict)
            except MbrError as error:
                problems.append(str(error))
            else:
                self._running.add(worker.name)
        if problems:
            raise MbrError("\n".join(problems))

    def edge(self, message: TriggerMessage, names: Sequence[str], until_ns: int) -> None:
        """Tell outputs `names` of an edge; lines are high until `until_ns` (monotonic; 0: low) at the latest."""
        for name in names:
            if name in self._lines:
                self._lines[name].edge(message, until_ns)
        for name in names:
            if name in self._messengers:
                self._messengers[name].put(message)

    def renew(self, camera: str, trigger: str, names: Sequence[str], until_ns: int) -> None:
        """Prolong what a trigger holds."""
        for name in names:
            if name in self._lines:
                self._lines[name].renew(camera, trigger, until_ns)

    def send_again(self, message: TriggerMessage, name: str) -> bool:
        """Send what an earlier process decided, if output `name` is one that takes it late."""
        messenger = self._messengers.get(name)
        if messenger is None or not messenger.durable:
            return False
        messenger.put(message)
        return True

    def deliveries(self) -> Iterator[Delivery]:
        """What has become of edges since the last call."""
        while not self._deliveries.empty():
            yield self._deliveries.get()

    def waiting(self) -> dict[str, int]:
        """How much waits, by output."""
        return {worker.name: worker.waiting for worker in self._workers()}

    def _workers(self) -> list[LineWorker | MessageWorker]:
        return [*self._lines.values(), *self._messengers.values()]

    def error(self, name: str) -> str:
        """Why output `name` cannot be used at the moment; empty when it can."""
        return (self._lines.get(name) or self._messengers[name]).error

    def stop(self, timeout_s: float) -> None:
        """Lines low, messages sent as far as that goes in `timeout_s`."""
        running, self._running = self._running, set()
        for line in self._lines.values():
            if line.name in running:
                line.stop(min(timeout_s, 1.0))
        messengers = [messenger for messenger in self._messengers.values() if messenger.name in running]
        for messenger in messengers:
            messenger.ask_to_stop(timeout_s)
        deadline_s = time.monotonic() + timeout_s + 1.0
        for messenger in messengers:
            messenger.join(max(0.0, deadline_s - time.monotonic()))

    def close(self) -> None:
        """Let go at once."""
        self.stop(0.2)
