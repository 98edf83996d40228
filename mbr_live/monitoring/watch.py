"""The dashboard in a terminal: what the animals do now and did in the last minutes, and how the system is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from itertools import zip_longest

from pydantic import ValidationError
from rich.console import Console, RenderableType
from rich.live import Live

from mbr_live.keys import Keys
from mbr_live.monitoring.watch_state import BoutEvent, Watched, WatchedCamera
from mbr_live.monitoring.watch_view import View
from mbr_live.monitoring.watch_words import (
    WHY_UNKNOWN,
    clock,
    figures_of,
    is_current,
    lasted,
    number,
    printable,
    state_of,
    triggers_of,
    troubles,
    where,
)
from mbr_live.status import StatusMessage, parse_status
from mbr_live.types import RATE_FPS
from mbr_live.wire.status import StatusSubscriber

UPDATE_S = 0.22
PLAIN_EVERY_S = 5.0
PLAIN_FIRST_S = 1.5  # inference speaks of all cameras every second


class Dashboard:
    """Takes the messages of one inference process and draws them; the clock is the caller's, in seconds."""

    def __init__(self, minutes: float = 3.0) -> None:
        """With an ethogram of the last `minutes`, up to 60; MbrError for another length."""
        self.watched = Watched(minutes)

    def take(self, message: StatusMessage, now_s: float) -> None:
        """Keep what a message says; memory stays bounded, whatever comes."""
        self.watched.take(message, now_s)

    def read(self, message: bytes, now_s: float) -> None:
        """Keep what a message from the wire says; one that is not valid is counted, which the header shows."""
        try:
            self.take(parse_status(message), now_s)
        except ValidationError:
            self.watched.unreadable += 1

    def render(self, now_s: float, width: int | None = None) -> RenderableType:
        """The picture of this moment, as wide as the terminal or `width` cells, and no higher than the terminal."""
        return View(self.watched, now_s, width)


def watch(
    endpoint: str,
    *,
    minutes: float = 3.0,
    plain: bool = False,
    seconds: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    keys: Keys | None = None,
) -> None:
    """Show what inference publishes at `endpoint` until Ctrl-C, for `seconds`, or until `stop()`.

    Without a terminal that can show it, or with `plain`, lines of text take the place of the picture.
    """
    dashboard, console = Dashboard(minutes), Console()
    deadline_s = None if seconds is None else time.monotonic() + seconds

    def over() -> bool:
        return stop() or (deadline_s is not None and time.monotonic() >= deadline_s)

    with closing(StatusSubscriber(endpoint, keys)) as subscriber:
        with suppress(KeyboardInterrupt):
            drawable = console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf")
            if drawable and not plain:
                _watch_picture(dashboard, subscriber, console, over)
            else:
                _watch_lines(dashboard, subscriber, over)
        _say(plain_lines(dashboard, time.monotonic()))


def _watch_picture(
    dashboard: Dashboard, subscriber: StatusSubscriber, console: Console, over: Callable[[], bool]
) -> None:
    with Live(dashboard.render(time.monotonic()), console=console, screen=True, auto_refresh=False) as live:
        while not over():
            for message in subscriber.messages(UPDATE_S):
                dashboard.read(message, time.monotonic())
            live.update(dashboard.render(time.monotonic()), refresh=True)


def _watch_lines(dashboard: Dashboard, subscriber: StatusSubscriber, over: Callable[[], bool]) -> None:
    next_s = time.monotonic() + PLAIN_FIRST_S
    while not over():
        for message in subscriber.messages(UPDATE_S):
            dashboard.read(message, time.monotonic())
            _say(_drained(dashboard.watched))
        if time.monotonic() >= next_s:
            next_s += PLAIN_EVERY_S
            _say(plain_lines(dashboard, time.monotonic()))


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _drained(watched: Watched) -> Iterator[str]:
    while watched.events:
        yield event_line(watched.events.popleft())


def event_line(event: BoutEvent) -> str:
    """An onset or an offset in words."""
    match event.kind:
        case "offset":
            what = f"offset after {lasted(event.lasted_s or 0.0)}"
        case "unknown":
            what = f"unknown after {lasted(event.lasted_s or 0.0)} ({WHY_UNKNOWN.get(event.why, event.why)})"
        case _:
            what = event.kind
    at = f"{clock(event.index / RATE_FPS)}.{event.index % RATE_FPS}"
    return printable(f"{at} {event.camera} {event.behaviour}: {what}")


def plain_lines(dashboard: Dashboard, now_s: float) -> list[str]:
    """What is wrong, if anything, and one line per camera."""
    watched = dashboard.watched
    cameras = [_camera_line(camera, watched, now_s) for camera in watched.cameras.values()]
    triggers = ", ".join(text.plain for text in triggers_of(watched))
    said = [f"triggers: {triggers}"] if triggers else []
    return [*(text.plain for text in troubles(watched, now_s)), *cameras, *said]


def _camera_line(camera: WatchedCamera, watched: Watched, now_s: float) -> str:
    _, state, _ = state_of(camera, watched, now_s)
    now = []
    if is_current(camera, watched, now_s):
        for name, label, value in zip_longest(watched.behaviours, camera.labels, camera.probabilities):
            now.append(f"{name} {'?' if value is None else number(value, 2)}{' ON' if label == 1 else ''}")
    parts = [where(camera), ", ".join(now), *(text.plain for text in figures_of(camera))]
    return printable("; ".join(part for part in (f"{camera.name} {state}", *parts) if part), 1000)
