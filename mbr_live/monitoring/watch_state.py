"""What a dashboard has heard from inference, in bounded memory: cameras, their recent labels, onsets and offsets."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mbr_live.monitoring.ethogram import History, mark_of
from mbr_live.status import CameraStatus, LabelMessage, StatusMessage, SystemStatus
from mbr_live.types import RATE_FPS, UNKNOWN, MbrError

MAX_CAMERAS = 256  # as many as a configuration may name
MAX_BEHAVIOURS = 32
MAX_EVENTS = 1000
MAX_MINUTES = 60.0
_MOST_EARLY = 2 * MAX_CAMERAS * RATE_FPS  # messages of two seconds
_SPARE_TICKS = 1000  # a wide terminal shows a little more than was asked for: columns are whole ticks


@dataclass(frozen=True, slots=True)
class BoutEvent:
    """A bout begins, ends, is already under way when it comes into view, or is lost from view."""

    camera: str
    behaviour: str
    index: int  # tick
    kind: str  # "onset", "offset", "under way", "unknown"
    lasted_s: float | None = None  # of an offset and of "unknown"
    why: str = ""  # of "unknown": the status


class WatchedCamera:
    """One camera: the present, the recent past and the figures that inference gave."""

    def __init__(self, name: str, behaviours: int, ticks: int) -> None:
        self.name = name
        self.history = History(behaviours, ticks)
        self.figures: CameraStatus | None = None
        self.heard_s: float | None = None  # when a label came last, on the clock of the watcher
        self.status: str | None = None  # of the newest label; None before the first
        self.probabilities: list[float] = []
        self.position_px: tuple[float, float] | None = None
        self.last_index = UNKNOWN
        self.labels = [UNKNOWN] * behaviours
        self.on_since = [UNKNOWN] * behaviours  # tick at which the present bout came into view
        self.status_since = 0  # tick

    def take(self, message: LabelMessage, now_s: float) -> Iterator[tuple[int, int, str, float | None, str]]:
        """Keep one label message; yields (behaviour, tick, kind, lasted_s, why) for each bout that begins or ends."""
        count = len(self.labels)
        labels = [*message.labels[:count], *[UNKNOWN] * (count - len(message.labels))]
        self.history.put(message.index, message.ticks, [mark_of(label, message.status) for label in labels])
        if self.status is not None and message.index <= self.last_index:
            return  # late: it completes the picture of the past, but is not the present
        if self.status is not None and message.index > self.last_index + 1:
            yield from self._step(self.last_index + 1, [UNKNOWN] * count, "missed")
        yield from self._step(message.index, labels, message.status)
        if self.status != message.status:
            self.status_since = message.index
        self.status, self.heard_s, self.probabilities = message.status, now_s, message.probabilities[:count]
        x_px, y_px = message.x_px, message.y_px
        self.position_px = None if x_px is None or y_px is None else (x_px, y_px)
        self.last_index = message.index + max(message.ticks, 1) - 1

    def _step(self, index: int, labels: Sequence[int], why: str) -> Iterator[tuple[int, int, str, float | None, str]]:
        for k, (before, label) in enumerate(zip(self.labels, labels, strict=True)):
            if label == 1 and before != 1:
                yield k, index, "onset" if before == 0 else "under way", None, ""
                self.on_since[k] = index
            elif before == 1 and label != 1:
                lasted_s = (index - self.on_since[k]) / RATE_FPS
                yield k, index, "offset" if label == 0 else "unknown", lasted_s, "" if label == 0 else why
        self.labels = list(labels)


class Watched:
    """All that was heard. Whatever comes, memory stays bounded."""

    def __init__(self, minutes: float) -> None:
        if not 0 < minutes <= MAX_MINUTES:
            raise MbrError(
                f"dashboard: an ethogram of {minutes} minutes was asked for, more than 0 and at most {MAX_MINUTES:.0f} "
                "are possible. Choose a length in between."
            )
        self.minutes = minutes
        self.system: SystemStatus | None = None
        self.heard_s: float | None = None  # any message
        self.cameras: dict[str, WatchedCamera] = {}
        self.events: deque[BoutEvent] = deque(maxlen=MAX_EVENTS)
        self.unreadable = 0  # messages that were not valid
        self.unlisted = 0  # labels of cameras that inference does not list
        # Labels that came before inference had said of which cameras and behaviours, as it does once a second.
        self._early: deque[tuple[LabelMessage, float]] = deque(maxlen=_MOST_EARLY)
        self._ticks = round(minutes * 60 * RATE_FPS) + _SPARE_TICKS

    @property
    def behaviours(self) -> list[str]:
        """Names of the behaviours; none until inference has said them."""
        return self.system.behaviours[:MAX_BEHAVIOURS] if self.system else []

    def take(self, message: StatusMessage, now_s: float) -> None:
        """Keep what one message says."""
        self.heard_s = now_s
        if isinstance(message, SystemStatus):
            self._take_system(message)
            while self._early:
                self._take_label(*self._early.popleft())
        elif self.system is None:
            self._early.append((message, now_s))
        else:
            self._take_label(message, now_s)

    def _take_system(self, system: SystemStatus) -> None:
        renamed = self.system is not None and self.system.behaviours != system.behaviours
        behaviours = len(system.behaviours[:MAX_BEHAVIOURS])
        cameras = {}
        for figures in system.cameras[:MAX_CAMERAS]:
            camera = self.cameras.get(figures.name)
            # Labels come in order, so a smaller number means that the session began anew.
            if camera is None or renamed or len(camera.labels) != behaviours or figures.last_index < camera.last_index:
                camera = WatchedCamera(figures.name, behaviours, self._ticks)
            camera.figures = figures
            cameras[figures.name] = camera
        self.system, self.cameras = system, cameras

    def _take_label(self, message: LabelMessage, now_s: float) -> None:
        camera = self.cameras.get(message.camera)
        if camera is None:
            self.unlisted += 1
            return
        names = self.behaviours
        for k, index, kind, lasted_s, why in camera.take(message, now_s):
            self.events.append(BoutEvent(camera.name, names[k], index, kind, lasted_s, why))
