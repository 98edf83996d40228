"""The log of one camera: `<camera>.camera.csv`, a row when it is lost, when it is back, and for every alarm.

A row is one write, as in every log, so a process that is killed in the middle of an outage leaves its cause behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mbr_live.appending import WaitingRows
from mbr_live.cameras.errors import Cause
from mbr_live.files import cut_torn_row
from mbr_live.types import MbrError

CAMERA_LOG_SUFFIX = ".camera.csv"
CAMERA_LOG_HEADER = "event,time_ns,frame,cause,width_px,height_px,detail"


@dataclass(frozen=True, slots=True)
class Event:
    """One row. `frame` is the tick that was served last before "lost", first after it, or at an alarm."""

    event: str  # "began", "lost", "back", "alarm", "cleared"
    time_ns: int  # capture time of that frame
    frame: int
    cause: str = ""  # of "lost"; name of an alarm
    width_px: int = 0  # of the pictures, of "began" and "back"
    height_px: int = 0
    detail: str = ""

    def row(self) -> str:
        """As it is written."""
        detail = " ".join(self.detail.replace(",", ";").split())
        return f"{self.event},{self.time_ns},{self.frame},{self.cause},{self.width_px},{self.height_px},{detail}\n"


@dataclass(frozen=True, slots=True)
class Outage:
    """A stretch without frames."""

    cause: str
    first_frame: int  # the first tick that was missed
    last_frame: int | None  # the last one; None while it lasts
    duration_s: float | None  # from the last frame before it to the first after it


class CameraLog:
    """Writes the log of one camera, or goes on with the one that is there."""

    def __init__(self, path: Path) -> None:
        self._rows = WaitingRows(path, CAMERA_LOG_HEADER + "\n")  # a camera that never opens leaves nothing behind
        events: list[Event] = []
        if path.exists():
            cut_torn_row(path)
            events = list(read_events(path))
        self.counts = Counter(event.cause for event in events if event.event == "lost")
        self.began = next((event for event in events if event.event == "began"), None)
        connections = [event for event in events if event.event in ("began", "lost", "back")]
        self.open_cause = connections[-1].cause or None if connections else None  # only of "lost"
        told = {event.cause: event for event in events if event.event in ("alarm", "cleared")}
        self.raised = {name: event.detail for name, event in told.items() if event.event == "alarm"}  # at its end

    def began_with(self, time_ns: int, frame: int, width_px: int, height_px: int, clock: str) -> None:
        """The first frame of the session; pictures keep its size from now on."""
        self.began = Event("began", time_ns, frame, "", width_px, height_px, f"{clock} clock")
        self._append(self.began)

    def lost(self, time_ns: int, frame: int, cause: Cause, detail: str) -> None:
        """No frame comes any more after the one of tick `frame`."""
        self._append(Event("lost", time_ns, frame, cause, 0, 0, detail))
        self.counts[cause] += 1
        self.open_cause = cause

    def back(self, time_ns: int, frame: int, width_px: int, height_px: int, detail: str) -> None:
        """Tick `frame` is the first that was served again."""
        self._append(Event("back", time_ns, frame, "", width_px, height_px, detail))
        self.open_cause = None

    def alarm(self, time_ns: int, frame: int, name: str, detail: str, *, raised: bool) -> None:
        """Something is wrong with the pictures, or is so no more."""
        self._append(Event("alarm" if raised else "cleared", time_ns, frame, name, 0, 0, detail))

    def _append(self, event: Event) -> None:
        self._rows.append(event.row())

    def flush(self) -> None:
        """Write what had to wait for room on the disk."""
        self._rows.flush()

    def close(self) -> None:
        """Close the file."""
        self._rows.close()


def read_events(path: Path) -> Iterator[Event]:
    """The rows of an outage log; MbrError when it is not one. An empty one, whose first row found no room, has none."""
    with path.open(errors="replace") as lines:
        # A row that is being written, or was torn off by a power cut, is not one yet; the same goes for the header.
        whole = (line.rstrip("\n") for line in lines if line.endswith("\n"))
        header = next(whole, CAMERA_LOG_HEADER)
        if header != CAMERA_LOG_HEADER:
            raise MbrError(f"{path}: found the header {header[:60]!r}, expected {CAMERA_LOG_HEADER!r}. Check the file.")
        for line in whole:
            yield _event(path, line)


def read_outages(path: Path) -> list[Outage]:
    """All outages of a camera, oldest first."""
    found: list[Outage] = []
    lost: Event | None = None
    for event in read_events(path):
        if event.event == "back" and lost is not None:
            duration_s = (event.time_ns - lost.time_ns) / 1e9
            found.append(Outage(lost.cause, lost.frame + 1, event.frame - 1, duration_s))
        if event.event in ("lost", "back"):
            lost = event if event.event == "lost" else None
    return found + ([Outage(lost.cause, lost.frame + 1, None, None)] if lost else [])


def _event(path: Path, line: str) -> Event:
    try:
        event, time_ns, frame, cause, width, height, detail = line.split(",")
        return Event(event, int(time_ns), int(frame), cause, int(width), int(height), detail)
    except ValueError as error:
        raise MbrError(f"{path}: the row {line!r} is damaged ({error}). Was the file edited?") from error
