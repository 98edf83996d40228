"""A thread per output, so that a receiver that is slow or dead holds up nobody else: not labels, not another output.

What a thread may have before it is bounded. What became of every edge is reported as a `Delivery`.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from mbr_live.triggers.outputs.protocol import DeliveryError, LineOutlet, Messenger, TriggerMessage
from mbr_live.types import MbrError

MAX_COMMANDS = 100  # for a line; its commands are worth nothing a moment later
MAX_MESSAGES = 200  # for a messenger whose messages do not wait
MAX_OUTBOX = 20_000  # for a durable one: days of triggers, 20 MB
REOPEN_EVERY_S = 1.0
LOWER_EVERY_S = 0.2  # a line that could not be told to go low is told again
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 30.0
_NS = 1_000_000_000

_log = logging.getLogger(__name__)

Outcome = Literal["sent", "confirmed", "failed"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one edge at one output. `sent` means that the medium has no answer to wait for."""

    message: TriggerMessage
    output: str
    outcome: Outcome
    sent_ns: int = 0  # CLOCK_MONOTONIC when the medium had taken it; 0: never
    confirmed_ns: int = 0
    attempts: int = 1
    detail: str = ""


Report = Callable[[Delivery], None]


@dataclass(frozen=True, slots=True)
class _Hold:
    """For a line: what trigger wants it high until when (CLOCK_MONOTONIC; 0: no more)."""

    trigger: str
    until_ns: int
    message: TriggerMessage | None = None  # an edge, to be confirmed; None: a lease is renewed


class LineWorker:
    """Keeps one line high as long as a trigger holds a lease on it, and low otherwise."""

    def __init__(self, name: str, outlet: LineOutlet, report: Report) -> None:
        self.name = name
        self.error = ""  # why it cannot be used at the moment
        self._outlet, self._report = outlet, report
        self._commands: queue.Queue[_Hold | None] = queue.Queue(MAX_COMMANDS)
        self._leases: dict[str, int] = {}
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._reopen_at_s = 0.0  # not before, after it could not be opened
        self._told_ns = 0
        self._told_until_ns = 0  # until when the line is high by what it has been told
        self._low_is_owed = False  # nobody holds it any more, and it could not be told so

    def start(self, *, strict: bool) -> None:
        """Open the line; with `strict`, MbrError when that is not possible, else it is tried again and again."""
        _open_first(self.name, self._outlet, strict)
        self._thread.start()

    def edge(self, message: TriggerMessage, until_ns: int) -> None:
        """An edge of a trial: high until `until_ns` at the latest, or low if that is 0. Never waits."""
        try:
            self._commands.put_nowait(_Hold(f"{message.camera}/{message.trigger}", until_ns, message))
        except queue.Full:
            self._report(Delivery(message, self.name, "failed", detail="the output is stuck"))

    def renew(self, camera: str, trigger: str, until_ns: int) -> None:
        """Prolong the lease of a trial that is on. Never waits."""
        with suppress(queue.Full):  # then the line falls at the end of its lease
            self._commands.put_nowait(_Hold(f"{camera}/{trigger}", until_ns))

    @property
    def waiting(self) -> int:
        """Commands that have not been carried out."""
        return self._commands.qsize()

    def stop(self, timeout_s: float) -> None:
        """End every lease and close the line."""
        try:
            self._commands.put(None, timeout=timeout_s)
        except queue.Full:
            return  # the thread is stuck in the driver, and ends with the process
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while True:
            try:
                command = self._commands.get(timeout=self._next_expiry_s())
            except queue.Empty:
                self._expire()
                continue
            if command is None:
                break
            self._carry_out(command)
        self._leases.clear()
        try:
            self._tell(confirm=False)  # it is not opened anew for this: what is closed holds nothing
        except DeliveryError as error:
            _log.warning("output %s could not be told to go low at the end: %s", self.name, error)
        self._outlet.close()

    def _next_expiry_s(self) -> float | None:
        if not self._leases:
            return LOWER_EVERY_S if self._low_is_owed else None
        return max(0.0, (min(self._leases.values()) - time.monotonic_ns()) / _NS)

    def _expire(self) -> None:
        now_ns = time.monotonic_ns()
        self._leases = {trigger: until_ns for trigger, until_ns in self._leases.items() if until_ns > now_ns}
        try:
            self._hold(confirm=False)
            self.error = ""
        except DeliveryError as error:
            self._lose(error)

    def _carry_out(self, command: _Hold) -> None:
        now_ns = time.monotonic_ns()
        on = command.until_ns > now_ns
        if on:
            self._leases[command.trigger] = command.until_ns
        else:
            self._leases.pop(command.trigger, None)
        message = command.message
        if message is None and on and self._leases[command.trigger] <= self._told_until_ns:
            return  # nothing new; and told late, after the hold has ended, it would be a pulse of its own
        if message is not None and message.edge == "on" and not on:
            why = "its time was over before the output came to it"
            self._report(Delivery(message, self.name, "failed", detail=why))
            return
        try:
            confirmed = self._hold(confirm=message is not None)
        except DeliveryError as error:
            self._lose(error)
            if message is not None:
                self._report(Delivery(message, self.name, "failed", detail=str(error)))
            return
        self.error = ""
        if message is not None:
            done_ns = time.monotonic_ns()
            outcome: Outcome = "confirmed" if confirmed else "sent"
            self._report(Delivery(message, self.name, outcome, self._told_ns, done_ns if confirmed else 0))

    def _hold(self, *, confirm: bool) -> bool:
        """Tell the line what the leases say of it now."""
        self._low_is_owed = not self._leases
        self._told_until_ns = 0
        self._reopen()
        confirmed = self._tell(confirm=confirm)
        self._told_until_ns = max(self._leases.values(), default=0)
        self._low_is_owed = False
        return confirmed

    def _tell(self, *, confirm: bool) -> bool:
        self._told_ns = time.monotonic_ns()
        left_ns = max(self._leases.values(), default=0) - self._told_ns
        try:
            return self._outlet.hold(max(0, left_ns) / _NS, confirm=confirm)
        except DeliveryError:
            raise
        except Exception as error:
            # What a driver of somebody else throws must not end the thread: it is what brings the line down again.
            _log.exception("output %s", self.name)
            raise DeliveryError(f"{type(error).__name__}: {error}") from error

    def _reopen(self) -> None:
        if time.monotonic() < self._reopen_at_s:
            raise DeliveryError(self.error)
        try:
            self._outlet.open()
        except MbrError as error:
            self._reopen_at_s = time.monotonic() + REOPEN_EVERY_S
            raise DeliveryError(str(error)) from error

    def _lose(self, error: DeliveryError) -> None:
        if not self.error:
            _log.warning("output %s: %s", self.name, error)
        self.error = str(error)


class MessageWorker:
    """Sends messages in order; those of a durable messenger until the receiver has confirmed them."""

    def __init__(self, name: str, messenger: Messenger, report: Report) -> None:
        self.name, self.durable = name, messenger.durable
        self.error = ""
        self._messenger, self._report = messenger, report
        self._outbox: deque[TriggerMessage] = deque()
        self._room = MAX_OUTBOX if messenger.durable else MAX_MESSAGES
        self._changed = threading.Condition()
        self._stopping_at_s: float | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self, *, strict: bool) -> None:
        """Reach the receiver; with `strict`, MbrError when that is not possible, else it is tried again and again."""
        _open_first(self.name, self._messenger, strict)
        self._thread.start()

    def put(self, message: TriggerMessage) -> None:
        """Send `message` when its turn has come. Never waits."""
        with self._changed:
            full = len(self._outbox) >= self._room
            if not full:
                self._outbox.append(message)
            self._changed.notify()
        if full:
            self._report(Delivery(message, self.name, "failed", 0, 0, 0, f"{self._room} messages are waiting already"))

    @property
    def waiting(self) -> int:
        """Messages that have not been sent."""
        return len(self._outbox)

    def ask_to_stop(self, timeout_s: float) -> None:
        """Send what can be sent within `timeout_s`, then close. What is left is sent by the next process."""
        with self._changed:
            self._stopping_at_s = time.monotonic() + timeout_s
            self._changed.notify()

    def join(self, timeout_s: float) -> None:
        """Wait for the end that was asked for."""
        self._thread.join(timeout_s)

    def _work(self) -> None:
        attempts, pause_s = 0, _FIRST_PAUSE_S
        while (message := self._next()) is not None:
            attempts += 1
            delivery = self._try(message, attempts)
            if delivery is None:
                self._pause(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            with self._changed:
                self._outbox.popleft()
            self._report(delivery)
            attempts, pause_s = 0, _FIRST_PAUSE_S
        self._messenger.close()

    def _next(self) -> TriggerMessage | None:
        """The oldest message, when there is one; None when it is time to end."""
        with self._changed:
            while not self._outbox and self._stopping_at_s is None:
                self._changed.wait()
            over = self._stopping_at_s is not None and time.monotonic() >= self._stopping_at_s
            return None if over or not self._outbox else self._outbox[0]

    def _pause(self, seconds: float) -> None:
        with self._changed:
            if self._stopping_at_s is None:
                self._changed.wait_for(lambda: self._stopping_at_s is not None, seconds)
            else:
                self._changed.wait_for(lambda: False, min(seconds, 0.5))

    def _send(self, message: TriggerMessage) -> tuple[int, bool]:
        try:
            self._messenger.open()
            sent_ns = time.monotonic_ns()
            return sent_ns, self._messenger.send(message)
        except (DeliveryError, MbrError):
            raise
        except Exception as error:
            # What a library of somebody else throws must not end the thread, and with it all that waits.
            _log.exception("output %s", self.name)
            raise DeliveryError(f"{type(error).__name__}: {error}") from error

    def _try(self, message: TriggerMessage, attempts: int) -> Delivery | None:
        """What became of the message; None when it is to be tried again."""
        try:
            sent_ns, confirmed = self._send(message)
        except (DeliveryError, MbrError) as error:
            if not self.error:
                _log.warning("output %s: %s", self.name, error)
            self.error = str(error)
            if self.durable and not (isinstance(error, DeliveryError) and error.final):
                return None
            return Delivery(message, self.name, "failed", attempts=attempts, detail=self.error)
        self.error = ""
        done_ns = time.monotonic_ns()
        outcome: Outcome = "confirmed" if confirmed else "sent"
        return Delivery(message, self.name, outcome, sent_ns, done_ns if confirmed else 0, attempts)


def _open_first(name: str, outlet: LineOutlet | Messenger, strict: bool) -> None:
    try:
        outlet.open()
    except MbrError as error:
        if strict:
            raise
        _log.warning("%s It is tried again. (output %s)", error, name)
