"""TTL lines of a small box on a serial port: an Arduino with the sketch docs/mbr_ttl/mbr_ttl.ino.

    ?                       ->  mbr-ttl 1 LINES
    H SEQ LINE MS           ->  K SEQ         LINE is high for MS milliseconds from now, low at once if MS is 0

ASCII, one command a line, ended by a line feed. The box ends every hold itself, to the millisecond and also when nobody
speaks to it any more.
"""

from __future__ import annotations

import math
import threading
import time

import serial

from mbr_live.triggers.outputs.protocol import DeliveryError, unusable

HELLO_WITHIN_S = 4.0  # opening the port resets an Arduino, which then takes up to two seconds to come up
CONFIRM_WITHIN_S = 0.1
_ASK_EVERY_S = 0.5
_MAX_LINE_BYTES = 200


class SerialBox:
    """One port, shared by the lines on it."""

    def __init__(self, port: str, baud: int) -> None:
        self._path, self._baud = port, baud
        self._port: serial.Serial | None = None
        self._lock = threading.Lock()
        self._seq = 0
        self.lines = 0  # that the box has
        self._in_use: set[int] = set()  # lines
        self._pending = b""  # an answer that has not come whole

    def open(self, name: str, line: int) -> None:
        """Take one line, for output `name`.

        The port is opened with the first and stays open until the last is given back, since opening resets an Arduino.
        """
        with self._lock:
            if self._port is None:
                self._connect(name)
            if line >= self.lines:
                self._drop_unused()
                raise unusable(
                    name, f"line {line} was asked for, but the box has", f"{self.lines} lines from 0 on",
                    "Choose one of these.",
                )  # fmt: skip
            self._in_use.add(line)

    def _connect(self, name: str) -> None:
        """Open the port and wait until the box answers."""
        try:
            port = serial.Serial(self._path, self._baud, timeout=0, write_timeout=CONFIRM_WITHIN_S, exclusive=True)
        except (OSError, ValueError) as error:  # SerialException is an OSError
            raise unusable(
                name, f"the serial port {self._path} cannot be opened", f"({error})",
                "Check the name (on Linux: ls /dev/serial/by-id), the cable, that no other program has it open, "
                "and that you may use it (group dialout).",
            ) from error  # fmt: skip
        self._port, self._pending = port, b""
        try:
            heard = self._greet()
        except DeliveryError as error:
            self._drop()
            raise unusable(name, f"{self._path} was lost while it was opened:", str(error), "") from error
        if heard is not None:
            self._drop()
            raise unusable(
                name, f"no TTL box answers at {self._path}; heard", heard or "nothing",
                f"Expected 'mbr-ttl 1' within {HELLO_WITHIN_S:.0f} s. Load docs/mbr_ttl/mbr_ttl.ino onto the "
                f"board, and check the baud rate ({self._baud}).",
            )  # fmt: skip

    def _greet(self) -> str | None:
        """None once the box has said its name; else what was heard."""
        deadline_s, heard = time.monotonic() + HELLO_WITHIN_S, ""
        while time.monotonic() < deadline_s:
            self._write(b"?\n")
            until_s = min(deadline_s, time.monotonic() + _ASK_EVERY_S)
            while (line := self._line(until_s)) is not None:
                match line.split():
                    case ["mbr-ttl", "1", lines] if lines.isdigit():
                        self.lines = int(lines)
                        return None
                heard = line[:60]
        return repr(heard) if heard else ""

    def hold(self, line: int, on_s: float, *, confirm: bool) -> bool:
        """Hold one line; see `LineOutlet.hold`."""
        with self._lock:
            if self._port is None:
                raise DeliveryError("the port is closed")
            self._seq += 1
            self._line(0.0)  # answers to what was not to be confirmed
            self._write(f"H {self._seq} {line} {math.ceil(on_s * 1000)}\n".encode())
            if not confirm:
                return False
            wanted = f"K {self._seq}"
            deadline_s = time.monotonic() + CONFIRM_WITHIN_S
            while (answer := self._line(deadline_s)) is not None:
                if answer == wanted:
                    return True
            raise DeliveryError(f"no answer within {CONFIRM_WITHIN_S * 1000:.0f} ms")

    def close(self, line: int) -> None:
        """Give one line back; the box ends what is held."""
        with self._lock:
            self._in_use.discard(line)
            self._drop_unused()

    def _drop_unused(self) -> None:
        if not self._in_use:
            self._drop()

    def _drop(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            port.close()

    def _write(self, data: bytes) -> None:
        if self._port is None:
            raise DeliveryError("the port is closed")
        try:
            self._port.write(data)
        except OSError as error:
            self._drop()
            raise DeliveryError(f"the port is lost ({error})") from error

    def _line(self, deadline_s: float) -> str | None:
        """The next whole line; None when none has come by `deadline_s`, on the monotonic clock."""
        if self._port is None:
            raise DeliveryError("the port is closed")
        while b"\n" not in self._pending:
            left_s = deadline_s - time.monotonic()
            try:
                self._port.timeout = max(0.0, min(left_s, 0.02))
                # One byte waits; what has come with it is taken along.
                data = self._port.read(max(1, self._port.in_waiting))
            except OSError as error:
                self._drop()
                raise DeliveryError(f"the port is lost ({error})") from error
            self._pending = (self._pending + data)[-_MAX_LINE_BYTES:]
            if not data and left_s <= 0:
                return None
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode("ascii", "replace").strip()


class SerialLine:
    """One line of a box. A line that nobody holds is low, so opening need not say it."""

    def __init__(self, box: SerialBox, name: str, line: int) -> None:
        self._box, self._name, self._line = box, name, line

    def open(self) -> None:
        self._box.open(self._name, self._line)

    def hold(self, on_s: float, *, confirm: bool) -> bool:
        return self._box.hold(self._line, on_s, confirm=confirm)

    def close(self) -> None:
        self._box.close(self._line)
