"""What is wrong with a running system, from what inference says of it: raised and cleared with patience, told once.

A pure state machine; `mbr_live.monitoring.monitor` gives it the messages, the time and a voice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mbr_live.status import CameraStatus, OutputStatus, SystemStatus

SILENT_AFTER_S = 5.0  # inference speaks once a second

Kind = Literal[
    "inference_silent", "camera_silent", "nothing_classified", "frames_dropped", "recording_stopped", "labels_waiting",
    "camera_unwell", "output_silent", "output_unusable", "trigger_failed",
]  # fmt: skip
_TEXTS: dict[Kind, str] = {
    "inference_silent": "inference says nothing: it died, hangs, or cannot be reached",
    "camera_silent": "no frames come from the camera",
    "nothing_classified": "frames come, and none of them gets a label",
    "frames_dropped": "frames are lost between camera and label",
    "recording_stopped": "pictures are not recorded, for lack of room on the disk; labels go on",
    "labels_waiting": "the disk takes no labels: they wait in memory, at most ten minutes of them, and triggers rest",
    "camera_unwell": "the picture shows nothing, is blurred or slow, or the camera was moved: see the status",
    "output_silent": "the output process says nothing: no trigger can fire",
    "output_unusable": "the output cannot be reached: what it is told waits or fails",
    "trigger_failed": "an edge could not be delivered: see the receipts",
}


class Alarm(BaseModel):
    """Something that somebody should know, or (`raised` false) need not worry about any more."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    subject: str  # a camera, an output, or "inference" or "output" for a process
    raised: bool
    lasted_s: float  # how long it has been so, or was so
    text: str


class Raised(BaseModel):
    """An alarm that is raised, as it is kept for the next process that watches."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    subject: str
    since: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class _Held:
    """A condition that holds, or did until lately."""

    since_s: float
    last_s: float  # when it held last
    raised: bool = False


_Condition = tuple[Kind, str]
_SILENCE: _Condition = ("inference_silent", "inference")


@dataclass(frozen=True, slots=True)
class Watch:
    """What is remembered between two looks; times are of the watcher's clock, in seconds."""

    heard_s: float  # when inference spoke last or, before that, when watching began
    system: SystemStatus | None = None
    holding: frozenset[_Condition] = frozenset()  # as of that status
    held: Mapping[_Condition, _Held] = field(default_factory=dict)


def hear(system: SystemStatus, now_s: float, watch: Watch) -> Watch:
    """Take a status of inference."""
    before = {camera.name: camera for camera in watch.system.cameras} if watch.system else {}
    holding = {(kind, each.name) for each in system.cameras for kind in _conditions(before.get(each.name), each)}
    outputs = frozenset(_output_conditions(system.output) if system.output else ())
    return replace(watch, heard_s=now_s, system=system, holding=frozenset(holding) | outputs)


def look(now_s: float, after_s: float, watch: Watch) -> tuple[list[Alarm], Watch]:
    """What is to be told now.

    A condition is raised when it has been there for `after_s`, and cleared when it has been away for `after_s`; shorter
    pauses do not count, so what comes and goes is raised too. While inference is silent nothing is known of its
    cameras: their alarms stay.
    """
    silent = now_s - watch.heard_s > SILENT_AFTER_S
    holding = frozenset([_SILENCE]) if silent else watch.holding
    alarms: list[Alarm] = []
    held: dict[_Condition, _Held] = {}
    for condition in sorted({*holding, *watch.held}):
        now = watch.held.get(condition, _Held(now_s, now_s))
        if condition in holding or (silent and now.raised):
            now = replace(now, last_s=now_s)
        if now_s - now.last_s >= after_s:
            alarms += [_alarm(condition, False, now.last_s - now.since_s)] if now.raised else []
            continue
        if not now.raised and now.last_s - now.since_s >= after_s:
            now = replace(now, raised=True)
            alarms.append(_alarm(condition, True, now_s - now.since_s))
        held[condition] = now
    return alarms, replace(watch, held=held)


def raised(watch: Watch) -> frozenset[tuple[Kind, str]]:
    """Kind and subject of every alarm that is raised."""
    return frozenset(condition for condition, now in watch.held.items() if now.raised)


def to_keep(watch: Watch, now_s: float, date_s: float) -> list[Raised]:
    """The alarms that are raised, for a process that watches later; `date_s` is the date at `now_s`."""
    held = sorted(watch.held.items())
    return [Raised(kind=kind, subject=of, since=date_s - now_s + at.since_s) for (kind, of), at in held if at.raised]


def taken_up(kept: Iterable[Raised], now_s: float, date_s: float) -> Watch:
    """The watch of a process that goes on: what is still wrong was told already; what is not will be told as over."""
    held = {(each.kind, each.subject): _Held(each.since - date_s + now_s, now_s, raised=True) for each in kept}
    return Watch(now_s, held=held)


def _conditions(before: CameraStatus | None, now: CameraStatus) -> Iterator[Kind]:
    if now.unwritten:
        yield "labels_waiting"
    elif now.state in ("stale", "waiting"):
        yield "camera_silent"
    if now.alarms:
        yield "camera_unwell"
    if before is None:
        return
    if sum(now.drops.values()) > sum(before.drops.values()):
        yield "frames_dropped"
    if now.unrecorded > before.unrecorded:
        yield "recording_stopped"
    classified, rows = (_grown(before, now, *names) for names in (("ok", "warmup"), tuple(now.rows)))
    if now.state == "live" and rows and not classified:
        yield "nothing_classified"


def _output_conditions(output: OutputStatus) -> Iterator[_Condition]:
    if not output.up:
        yield "output_silent", "output"
        return
    for each in output.outputs:
        if each.error:
            yield "output_unusable", each.name
        if each.failing:
            yield "trigger_failed", each.name


def _grown(before: CameraStatus, now: CameraStatus, *statuses: str) -> int:
    return sum(now.rows.get(status, 0) - before.rows.get(status, 0) for status in statuses)


def _alarm(condition: _Condition, raised: bool, lasted_s: float) -> Alarm:
    kind, subject = condition
    text = _TEXTS[kind] if raised else f"over: {_TEXTS[kind]}"
    return Alarm(kind=kind, subject=subject, raised=raised, lasted_s=round(lasted_s, 1), text=f"{subject}: {text}")
