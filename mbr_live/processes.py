"""How the processes of a live system are started, watched, restarted and asked to stop."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

SUPERVISOR_VARIABLE = "MBR_LIVE_SUPERVISOR"
EXIT_FAILED = 1  # trying again may help
EXIT_USER_ERROR = 2  # something that trying again does not mend
RESTARTS_PER_MINUTE = 5
_LOOK_EVERY_S = 0.5
_PAUSE_S = 0.3  # between a death and the restart


def notify(state: str) -> None:
    """Tell systemd, where it started this process, how it is: READY=1, WATCHDOG=1 (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address is None:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to_systemd:
        to_systemd.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


@dataclass
class Stop:
    """Whether this process should come to an end."""

    signalled: bool = False
    supervisor_pid: int | None = None

    @property
    def requested(self) -> bool:
        """Asked to by a signal, or left behind by a supervisor that died."""
        orphaned = self.supervisor_pid is not None and os.getppid() != self.supervisor_pid
        return self.signalled or orphaned


@contextmanager
def stop_signal() -> Iterator[Stop]:
    """SIGTERM and SIGINT ask for a clean end instead of breaking off."""
    supervisor = os.environ.get(SUPERVISOR_VARIABLE)
    stop = Stop(supervisor_pid=int(supervisor) if supervisor else None)

    def ask(_signal: int, _frame: FrameType | None) -> None:
        stop.signalled = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def repeat(work: Callable[[], None], every_s: float) -> None:
    """Do `work` now, every `every_s` seconds until told to stop, and once more then; systemd hears that it goes on."""
    with stop_signal() as stop:
        notify("READY=1")
        next_s = 0.0
        while not stop.requested:
            notify("WATCHDOG=1")
            if time.monotonic() >= next_s:
                next_s = time.monotonic() + every_s
                work()
            time.sleep(_LOOK_EVERY_S)
    work()


@dataclass
class Child:
    """One supervised process; what it says goes to its own log file."""

    name: str
    arguments: Sequence[str]  # of mbr-live
    log: Path
    restarts_per_minute: int = RESTARTS_PER_MINUTE  # more often, and it is given up
    endless: bool = True  # it comes to no end of its own: whoever else told it to end, it is restarted
    restarts: int = 0
    failed: bool = False  # given up
    _process: subprocess.Popen[bytes] | None = None
    _deaths_s: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    _start_at_s: float = 0.0
    _log_start: int = 0  # where in the log file the words of the running process begin

    def start(self) -> None:
        """Start the process."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mbr_live", *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, SUPERVISOR_VARIABLE: str(os.getpid())},
                start_new_session=True,  # Ctrl-C reaches the supervisor only, which stops the others in order
            )

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def exit_code(self) -> int | None:
        """How the last process ended; None while it runs or waits for its restart."""
        return self._process.poll() if self._process else None

    @property
    def ended_well(self) -> bool:
        """It came to the end of its work."""
        return self.exit_code == 0

    def revive(self, now_s: float) -> bool:
        """Restart the process if it died, with a pause, unless it dies again and again. True if it was restarted."""
        code = self.exit_code
        if self.failed or code is None or (code == 0 and not self.endless):
            return False
        if not self._start_at_s:
            lately = [at_s for at_s in self._deaths_s if now_s - at_s < 60]
            self.failed = code == EXIT_USER_ERROR or len(lately) >= self.restarts_per_minute
            self._deaths_s.append(now_s)
            self._start_at_s = now_s + _PAUSE_S
        if self.failed or now_s < self._start_at_s:
            return False
        self._start_at_s = 0.0
        self.restarts += 1
        self.start()
        return True

    def ask_to_stop(self) -> None:
        """Send SIGTERM."""
        if self.pid is not None and self._process is not None:
            self._process.terminate()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; kill the process when it does not come. False if it had to be killed."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
        return True

    def last_words(self) -> str:
        """What the process said since it was started; of an error, what follows the name of the program."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read()[-4000:].decode(errors="replace").strip().rpartition("mbr-live: ")[2]


def begin_afresh() -> NoReturn:
    """Become a new process of the same command line and id: the one thing that no hanging thread survives."""
    logging.shutdown()
    open_files = Path("/proc/self/fd")
    for descriptor in sorted(int(file.name) for file in open_files.iterdir()) if open_files.is_dir() else ():
        if descriptor > 2:
            with suppress(OSError):  # the listing's own
                os.set_inheritable(descriptor, False)  # a device that a C library left open would stay in use
    os.execv(sys.executable, sys.orig_argv)


def end_now() -> NoReturn:
    """End well, without waiting for threads that hang."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


def stop_all(children: Sequence[Child], timeout_s: float) -> None:
    """Ask all to stop, then wait for each."""
    for child in children:
        child.ask_to_stop()
    deadline_s = time.monotonic() + timeout_s
    for child in children:
        child.wait(max(0.1, deadline_s - time.monotonic()))
