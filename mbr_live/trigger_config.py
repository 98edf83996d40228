"""What may stand in the `[[trigger]]`, `[[output]]` and `[watchdog]` tables of a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import time
from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from mbr_live.names import TriggerName

PULSED = ("onset", "offset", "lasting")

Behaviours = tuple[Annotated[str, Field(max_length=40)], ...]
Duration = Annotated[float, Field(gt=0, le=3600)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Section(BaseModel):
    """A table: unknown keys are errors, and nothing changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ValueError(f"{name} is no time zone. Expected a name such as Europe/Berlin or UTC") from error
    return name


class Armed(Section):
    """When a trigger may fire: a part of the session, a part of the day, or where both meet."""

    from_s: Annotated[float, Field(ge=0)] = 0.0
    to_s: Annotated[float, Field(gt=0)] | None = None
    daily_from: time | None = None
    daily_to: time | None = None  # earlier than daily_from: over midnight
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"

    @model_validator(mode="after")
    def _windows_are_whole(self) -> Self:
        if self.to_s is not None and self.to_s <= self.from_s:
            raise ValueError(f"to_s {self.to_s} is not after from_s {self.from_s}")
        if (self.daily_from is None) != (self.daily_to is None):
            raise ValueError("daily_from and daily_to belong together; one of them is missing")
        if self.daily_from is not None and self.daily_from == self.daily_to:
            raise ValueError("daily_from and daily_to are the same time; leave both out for the whole day")
        return self


class Sham(Section):
    """Trials that are decided and logged but not delivered."""

    probability: Annotated[float, Field(ge=0, le=1)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]


class Yoked(Section):
    """The trials of another session, to be repeated at the same times of this one."""

    log: Path  # a .triggers.csv
    trigger: TriggerName


class Trigger(Section):
    """One trigger of one camera."""

    name: TriggerName
    camera: str
    when: Literal["onset", "offset", "while", "lasting", "yoked"]
    all: Behaviours = ()
    any: Behaviours = ()
    none: Behaviours = ()
    lasting_s: Duration | None = None
    on_s: Annotated[float, Field(ge=0.001, le=3600)] | None = None
    max_on_s: Duration | None = None
    resume_within_s: Annotated[float, Field(ge=0, le=10)] = 0.0
    cooldown_s: Annotated[float, Field(ge=0, le=86400)] = 0.0
    max_per_hour: Annotated[int, Field(ge=1, le=36000)] = 600
    armed: Armed = Armed()
    sham: Sham | None = None
    yoked: Yoked | None = None
    dry_run: bool = False
    outputs: tuple[TriggerName, ...]

    @model_validator(mode="after")
    def _keys_fit(self) -> Self:
        behaviours = bool(self.all or self.any or self.none)
        needed = {
            "on_s": (self.on_s is not None, self.when in PULSED),
            "max_on_s": (self.max_on_s is not None, self.when in ("while", "yoked")),
            "lasting_s": (self.lasting_s is not None, self.when == "lasting"),
            "yoked": (self.yoked is not None, self.when == "yoked"),
            "all, any or none": (behaviours, self.when != "yoked"),
        }
        for key, (given, wanted) in needed.items():
            if wanted and not given:
                raise ValueError(f'{key} is missing: when = "{self.when}" needs it')
            if given and not wanted:
                raise ValueError(f'{key} has no meaning with when = "{self.when}"; leave it out')
        if self.resume_within_s and self.when != "while":
            raise ValueError('resume_within_s has a meaning with when = "while" only; leave it out')
        if len(set(self.outputs)) < len(self.outputs):
            raise ValueError("outputs: one of them is named twice")
        return self


class SerialOutput(Section):
    """A line of a TTL box on a serial port (docs/mbr_ttl/mbr_ttl.ino)."""

    kind: Literal["serial"]
    name: TriggerName
    port: str
    line: Annotated[int, Field(ge=0, le=9)]
    baud: Literal[9600, 57600, 115200, 230400, 500000, 1000000] = 115200


class GpioOutput(Section):
    """A pin of this machine."""

    kind: Literal["gpio"]
    name: TriggerName
    pin: int | str
    active_high: bool = True


class OpenEphysOutput(Section):
    """A TTL line of the Network Events plugin of the Open Ephys GUI."""

    kind: Literal["open_ephys"]
    name: TriggerName
    host: str = "127.0.0.1"
    port: Port = 5556
    line: Annotated[int, Field(ge=1, le=256)]


class LslOutput(Section):
    """A stream of markers in the Lab Streaming Layer."""

    kind: Literal["lsl"]
    name: TriggerName
    stream: Annotated[str, Field(min_length=1, max_length=100)] = "mbr-live"
    shams: bool = False


class MqttOutput(Section):
    """Messages to an MQTT broker."""

    kind: Literal["mqtt"]
    name: TriggerName
    host: str
    port: Port = 1883
    topic: Annotated[str, Field(pattern=r"^[^#+\x00]+$", max_length=200)] = "mbr-live"
    username: str | None = None
    password_file: Path | None = None
    tls: bool = False
    shams: bool = False


class WebhookOutput(Section):
    """HTTP POST of every trigger."""

    kind: Literal["webhook"]
    name: TriggerName
    url: Annotated[str, Field(pattern=r"^https?://[^/\s]+", max_length=2000)]
    token_file: Path | None = None  # its content is sent as a bearer token
    timeout_s: Annotated[float, Field(ge=0.1, le=60)] = 5.0
    shams: bool = False


class OscOutput(Section):
    """OSC messages over UDP, such as Bonsai takes."""

    kind: Literal["osc"]
    name: TriggerName
    host: str = "127.0.0.1"
    port: Port
    address: Annotated[str, Field(pattern=r"^/[!-~]+$", max_length=100)] = "/mbr/trigger"
    shams: bool = False


class ZeromqOutput(Section):
    """Messages on a PUB socket that this process binds on this machine."""

    kind: Literal["zeromq"]
    name: TriggerName
    endpoint: Annotated[str, Field(pattern=r"^(tcp://127\.0\.0\.1:[1-9]\d{0,4}|ipc://.+)$")]
    shams: bool = False


Line = SerialOutput | GpioOutput | OpenEphysOutput
Medium = LslOutput | MqttOutput | WebhookOutput | OscOutput | ZeromqOutput
AnyOutput = Line | Medium
Output = Annotated[AnyOutput, Field(discriminator="kind")]


class Watchdog(Section):
    """When labels are too old to act upon."""

    stale_after_s: Annotated[float, Field(ge=0.15, le=2.0)] = 0.25  # since the capture of the last labelled frame


def check_names(cameras: Mapping[str, bool], triggers: Sequence[Trigger], outputs: Sequence[AnyOutput]) -> None:
    """Whether triggers, outputs and cameras (name: whether its times are of the day) fit together; else ValueError."""
    for what, names in (("trigger", [t.name for t in triggers]), ("output", [o.name for o in outputs])):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"more than one {what} is named {', '.join(twice)}")
    known = {output.name for output in outputs}
    for trigger in triggers:
        if trigger.camera not in cameras:
            raise ValueError(f"trigger {trigger.name}: no camera is named {trigger.camera}, only {', '.join(cameras)}")
        if unknown := sorted(set(trigger.outputs) - known):
            there = ", ".join(sorted(known)) or "none"
            raise ValueError(f"trigger {trigger.name}: no output is named {', '.join(unknown)}; there are: {there}")
        if trigger.armed.daily_from is not None and not cameras[trigger.camera]:
            raise ValueError(
                f"trigger {trigger.name}: a played file has no time of day; leave out daily_from, daily_to"
            )
    _check_boxes([output for output in outputs if isinstance(output, SerialOutput)])


def _check_boxes(outputs: Sequence[SerialOutput]) -> None:
    places = [(output.port, output.line) for output in outputs]
    if twice_used := sorted({place for place in places if places.count(place) > 1}):
        port, line = twice_used[0]
        raise ValueError(f"two outputs use line {line} of {port}; name one output in both triggers instead")
    by_port: dict[str, SerialOutput] = {}
    for output in outputs:
        first = by_port.setdefault(output.port, output)
        if first.baud != output.baud:
            raise ValueError(
                f"outputs {first.name} and {output.name} are lines of one box at {output.port}, but baud is "
                f"{first.baud} and {output.baud}; give both that of the board's sketch"
            )


def anchored_trigger(trigger: Trigger, folder: Path) -> Trigger:
    """`trigger` with its paths relative to `folder`."""
    if trigger.yoked is None:
        return trigger
    yoked = trigger.yoked.model_copy(update={"log": folder / trigger.yoked.log})
    return trigger.model_copy(update={"yoked": yoked})


def anchored_output(output: AnyOutput, folder: Path) -> AnyOutput:
    """`output` with its paths relative to `folder`."""
    match output:
        case MqttOutput(password_file=Path() as path):
            return output.model_copy(update={"password_file": folder / path})
        case WebhookOutput(token_file=Path() as path):
            return output.model_copy(update={"token_file": folder / path})
    return output
