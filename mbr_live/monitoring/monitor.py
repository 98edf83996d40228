"""The monitor process: listens to inference, serves metrics, and calls the alarm command. Nobody waits for it."""

from __future__ import annotations

import logging
import subprocess
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from pydantic import BaseModel, ConfigDict, ValidationError

from mbr_live.config import Config, Monitor
from mbr_live.files import write_atomically
from mbr_live.keys import load_keys
from mbr_live.monitoring.alarms import SILENT_AFTER_S, Alarm, Raised, hear, look, raised, taken_up, to_keep
from mbr_live.monitoring.exposition import SystemMetrics
from mbr_live.processes import notify, stop_signal
from mbr_live.status import SystemStatus, parse_status
from mbr_live.types import MbrError
from mbr_live.wire.status import StatusSubscriber

LOOK_EVERY_S = 0.5
COMMAND_TIMEOUT_S = 30.0
ALARMS_FILE = "alarms.json"
MAX_WAITING = 100  # alarms that wait for the command; older ones go, and the log says so

_log = logging.getLogger(__name__)


def monitor(config: Config) -> None:
    """Run until told to stop. MbrError where the port cannot be had or there is nothing to do."""
    settings = config.monitor
    if settings is None:
        raise MbrError("monitor: the configuration has no [monitor] table. Add one with metrics_port or alarm_command.")
    work = _Monitor(settings, config.out / ALARMS_FILE)
    with ExitStack() as stack:
        stack.callback(work.close)
        work.open()
        subscriber = stack.enter_context(closing(StatusSubscriber(config.wire.status, load_keys(config.wire.keys))))
        stop = stack.enter_context(stop_signal())
        notify("READY=1")
        while not stop.requested:
            notify("WATCHDOG=1")
            for message in subscriber.messages(LOOK_EVERY_S):
                work.take(message)
            work.look()


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid")

    raised: list[Raised]


def _read(kept: Path) -> list[Raised]:
    try:
        return _Kept.model_validate_json(kept.read_text()).raised
    except FileNotFoundError:
        return []
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        _log.warning("%s: cannot be read (%s); alarms that are raised are told again", kept, str(error).splitlines()[0])
        return []


class _Monitor:
    def __init__(self, settings: Monitor, kept: Path) -> None:
        """`kept`: where alarms that are raised are remembered, so that each is told once, and told to be over."""
        self._settings, self._kept = settings, kept
        self._watch = taken_up(_read(kept), time.monotonic(), time.time())
        self._voice = _Voice(settings.alarm_command) if settings.alarm_command else None
        self._close_server: Callable[[], None] | None = None

    def open(self) -> None:
        """Serve metrics, if a port is given."""
        port = self._settings.metrics_port
        if port is None:
            return
        registry = CollectorRegistry(auto_describe=False)
        registry.register(SystemMetrics(self._latest))
        try:
            server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
        except OSError as error:
            raise MbrError(
                f"monitor: port {port} cannot be opened for metrics ({error.strerror}). Most often another program has "
                "it. Set another monitor.metrics_port."
            ) from error

        def close() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        self._close_server = close

    def take(self, message: bytes) -> None:
        """A message of inference; labels are not for this process."""
        try:
            status = parse_status(message)
        except ValidationError:
            _log.warning("a status message was not understood: is inference of another version?")
            return
        if isinstance(status, SystemStatus):
            self._watch = hear(status, time.monotonic(), self._watch)

    def look(self) -> None:
        """Raise and clear."""
        alarms, self._watch = look(time.monotonic(), self._settings.alarm_after_s, self._watch)
        for alarm in alarms:
            _log.log(logging.ERROR if alarm.raised else logging.INFO, "%s", alarm.text)
            if self._voice:
                self._voice.say(alarm)
        if alarms:
            self._keep()
        if self._voice:
            self._voice.go_on()

    def _keep(self) -> None:
        alarms = _Kept(raised=to_keep(self._watch, time.monotonic(), time.time()))
        try:
            write_atomically(self._kept, alarms.model_dump_json(indent=2) + "\n")
        except OSError as error:
            _log.warning("%s: cannot be written (%s); a restart would tell alarms again", self._kept, error.strerror)

    def _latest(self) -> tuple[SystemStatus | None, frozenset[tuple[str, str]]]:
        watch = self._watch
        fresh = time.monotonic() - watch.heard_s <= SILENT_AFTER_S
        return (watch.system if fresh else None), frozenset(raised(watch))

    def close(self) -> None:
        """End the server and the command."""
        if self._close_server:
            self._close_server()
        if self._voice:
            self._voice.close()


class _Voice:
    """Calls the alarm command, one alarm after the other, without waiting for it."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self._command = command
        self._waiting: deque[str] = deque()
        self._process: subprocess.Popen[str] | None = None
        self._kill_at_s = 0.0

    def say(self, alarm: Alarm) -> None:
        """Queue one alarm."""
        if len(self._waiting) == MAX_WAITING:
            self._waiting.popleft()
            _log.error("alarm command: too slow, an alarm was given up: %s", self._command[0])
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._waiting.append(alarm.model_dump_json()[:-1] + f',"at":"{at}"}}\n')

    def go_on(self) -> None:
        """Look after the running command, and start the next."""
        if self._process is not None:
            self._watch_over(self._process)
        if self._process is None and self._waiting:
            self._start(self._waiting.popleft())

    def _start(self, line: str) -> None:
        try:
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, text=True)
        except OSError as error:
            _log.error("alarm command: %s cannot be run (%s)", self._command[0], error.strerror)
            return
        self._kill_at_s = time.monotonic() + COMMAND_TIMEOUT_S
        stdin = self._process.stdin
        if stdin is not None:
            try:
                stdin.write(line)  # shorter than a pipe's buffer: nobody waits
                stdin.close()
            except BrokenPipeError:
                _log.warning("alarm command: %s ended without reading the alarm", self._command[0])

    def _watch_over(self, process: subprocess.Popen[str]) -> None:
        code = process.poll()
        if code is None and time.monotonic() < self._kill_at_s:
            return
        if code is None:
            process.kill()
            process.wait()
            _log.error("alarm command: %s took over %.0f s and was ended", self._command[0], COMMAND_TIMEOUT_S)
        elif code:
            _log.error("alarm command: %s ended with exit code %d", self._command[0], code)
        self._process = None

    def close(self) -> None:
        """Let a running command finish, for a moment."""
        if self._process is not None:
            try:
                self._process.wait(5.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
