"""By which clock a session runs, for the capture process that goes on with it: `<camera>.clock.json`.

A process reads the date once and counts on from there, so a date that is set does not trouble it. The next process must
not read the date again: set forward by years, as on a computer without a battery, it would leave a gap of years.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mbr_live.cameras.clocks import EpochClock
from mbr_live.files import write_atomically
from mbr_live.wire.messages import own_clock

CLOCK_SUFFIX = ".clock.json"

_log = logging.getLogger(__name__)


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid")

    monotonic: str  # names that clock: another after every start of the machine, and then only the date is left
    offset_ns: int  # from that clock to the time of the session


class SessionClock:
    """The clock of one camera's session."""

    def __init__(self, out: Path, camera: str) -> None:
        self._path = out / f"{camera}{CLOCK_SUFFIX}"
        self._kept = False

    def take_up(self) -> None:
        """Let this process count as the one before it did, where that ran since the same start of the machine."""
        try:
            before = _Kept.model_validate_json(self._path.read_text())
        except FileNotFoundError:
            return
        except (OSError, ValidationError) as error:
            _log.warning("%s: cannot be read (%s); the session goes on by the date", self._path, error)
            return
        if before.monotonic == own_clock():
            EpochClock.go_on_by(before.offset_ns)

    def keep(self) -> None:
        """Write down how this process counts; once."""
        if self._kept:
            return
        self._kept = True
        try:
            kept = _Kept(monotonic=own_clock(), offset_ns=EpochClock.offset_ns())
            write_atomically(self._path, kept.model_dump_json() + "\n", durable=False)
        except OSError as error:
            _log.warning("%s: cannot be written (%s); a restart would go by the date", self._path, error.strerror)
