"""The TTL box of docs/mbr_ttl/mbr_ttl.ino as a program: a pseudo-terminal that answers as the board does.

For trying triggers without hardware, and for measuring how long a command takes to come out of the port.
"""

from __future__ import annotations

import os
import select
import threading
import time
import tty
from dataclasses import dataclass

LINES = 10
MAX_HOLD_MS = 60_000
MAX_COMMAND_BYTES = 64


@dataclass(frozen=True, slots=True)
class Hold:
    """One command that the box carried out."""

    at_ns: int  # CLOCK_MONOTONIC when it had come whole
    line: int
    ms: int


class SimulatedBox:
    """A box at `port`, while the `with` lasts. It never forgets a hold, so it is for runs of hours, not of weeks."""

    def __init__(self, *, answers: bool = True) -> None:
        """With `answers` off, it is some other device: it takes everything and says nothing."""
        self._answers = answers
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.port = os.ttyname(self._slave)
        self.holds: list[Hold] = []
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._work, name="box", daemon=True)

    def __enter__(self) -> SimulatedBox:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._stop_write, b"x")
        self._thread.join()
        for descriptor in (self._master, self._slave, self._stop_read, self._stop_write):
            os.close(descriptor)

    def highs(self, line: int) -> list[tuple[int, int]]:
        """When `line` was high: start and end on CLOCK_MONOTONIC in ns. The last end may lie in the future."""
        spans: list[tuple[int, int]] = []
        for hold in list(self.holds):
            if hold.line != line:
                continue
            until_ns = hold.at_ns + hold.ms * 1_000_000
            if spans and hold.at_ns <= spans[-1][1]:
                spans[-1] = (spans[-1][0], until_ns)
            elif hold.ms:
                spans.append((hold.at_ns, until_ns))
        return spans

    def is_high(self, line: int) -> bool:
        """Whether `line` is high now."""
        spans = self.highs(line)
        return bool(spans) and time.monotonic_ns() < spans[-1][1]

    def _work(self) -> None:
        pending = b""
        while True:
            readable, _, _ = select.select([self._master, self._stop_read], [], [])
            if self._stop_read in readable:
                return
            pending += os.read(self._master, 4096)
            *commands, pending = pending.split(b"\n")
            pending = pending[-MAX_COMMAND_BYTES:]
            for command in commands:
                self._carry_out(command.decode("ascii", "replace").split(), time.monotonic_ns())

    def _carry_out(self, words: list[str], at_ns: int) -> None:
        match words:
            case ["?"]:
                self._say(f"mbr-ttl 1 {LINES}")
            case ["H", seq, line, ms] if seq.isdigit() and line.isdigit() and ms.isdigit() and int(line) < LINES:
                self.holds.append(Hold(at_ns, int(line), min(int(ms), MAX_HOLD_MS)))
                self._say(f"K {seq}")
            case _:
                self._say("E")

    def _say(self, text: str) -> None:
        if self._answers:
            os.write(self._master, text.encode() + b"\n")
