"""What inference publishes for people who look: one message per label, one a second about the system.

The output process has no socket: it leaves its own status in the folder of the session, and inference passes it on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

OUTPUT_STATUS_FILE = "output.status.json"
OUTPUT_SILENT_AFTER_NS = 3_000_000_000  # it speaks once a second

Liveness = Literal["waiting", "live", "stale", "ended"]
"""waiting: no frame yet; stale: no frame for over a second; ended: the capture process said so."""


class LabelMessage(BaseModel):
    """What a row of the label log says, and how late it came."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["label"] = "label"
    camera: str
    index: int
    ticks: int = 1  # more than one only for a gap
    status: str
    x_px: float | None = None
    y_px: float | None = None
    probabilities: list[float] = []  # empty where nothing is known
    labels: list[int]  # 1, 0 or -1 per behaviour
    latency_ms: float | None = None  # capture to label; None for a gap
    time_ns: int = 0  # capture time, as in the label log
    # On the monotonic clock of the machine named by `clock`: frame in memory (None where another machine captured it),
    # message received, label written. None for a gap.
    clock: str = ""
    captured_ns: int | None = None
    received_ns: int | None = None
    labelled_ns: int | None = None


class CameraStatus(BaseModel):
    """How one camera has been doing since inference started."""

    model_config = ConfigDict(extra="forbid")

    name: str
    state: Liveness
    fps: float  # labelled frames per second over the last seconds
    last_index: int  # -1: none yet
    latency: dict[str, float] = {}  # p50_ms, p95_ms, p99_ms, max_ms
    rows: dict[str, int] = {}  # rows of the label log, by status
    lost: str = ""  # why no frames come from the camera; empty while they do
    lost_for_s: float = 0.0
    detail: str = ""  # of that
    outages: dict[str, int] = {}  # how often it was lost, by cause
    source_fps: float = 0.0  # frames that the camera itself delivers
    alarms: dict[str, str] = {}  # what is wrong with its pictures: blind, blurred, moved, slow
    drops: dict[str, int] = {}  # frames and ticks without a label, by cause
    drift: dict[str, float] = {}  # distance from training in the last hours, by measure
    drifted: list[str] = []  # the measures that are unlike training
    unwritten: int = 0  # rows that wait in memory, since the disk takes none
    unrecorded: int = 0  # pictures that were to be recorded, and for which there was no room


class OutputState(BaseModel):
    """How one output is."""

    model_config = ConfigDict(extra="forbid")

    name: str
    waiting: int  # messages that it has not taken
    error: str = ""  # why it cannot be used at the moment
    failing: bool = False  # whether something could not be delivered within the last minute
    delivered: dict[str, int] = {}  # edges in this session, by outcome


class TriggerFigures(BaseModel):
    """What one trigger does and did in this session."""

    model_config = ConfigDict(extra="forbid")

    name: str  # camera/trigger
    on: bool = False  # shams and dry runs included
    dry_run: bool = False
    trials: int = 0  # shams included
    shams: int = 0


class OutputStatus(BaseModel):
    """How the output process is, once a second: `output.status.json`."""

    model_config = ConfigDict(extra="forbid")

    pid: int
    said_ns: int = 0  # CLOCK_MONOTONIC
    up: bool = True  # false where somebody else says that it has fallen silent
    outputs: list[OutputState] = []
    triggers: list[TriggerFigures] = []
    skipped: dict[str, int] = {}  # trials that were not begun, by reason
    stale: list[str] = []  # cameras without fresh labels
    last: str = ""  # the last receipt, in words


class SystemStatus(BaseModel):
    """All cameras of one inference process."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["system"] = "system"
    out: str
    bundle: str
    engine: str
    behaviours: list[str]
    uptime_s: float
    refused: dict[str, int] = {}  # messages that were not ours, by reason
    cameras: list[CameraStatus]
    output: OutputStatus | None = None  # None: the configuration has no triggers


StatusMessage = LabelMessage | SystemStatus
_ADAPTER: TypeAdapter[StatusMessage] = TypeAdapter(Annotated[StatusMessage, Field(discriminator="kind")])


def read_output_status(out: Path) -> OutputStatus | None:
    """What the output process in the folder `out` last said of itself; None when it has said nothing."""
    try:
        return OutputStatus.model_validate_json((out / OUTPUT_STATUS_FILE).read_text())
    except (OSError, ValidationError):
        return None


def passed_on(said: OutputStatus | None, now_ns: int) -> OutputStatus:
    """The status of an output process as of `now_ns` (CLOCK_MONOTONIC): what is old says that it is down."""
    if said is None:
        return OutputStatus(pid=0, up=False)
    return said.model_copy(update={"up": 0 <= now_ns - said.said_ns <= OUTPUT_SILENT_AFTER_NS})


def parse_status(message: bytes) -> StatusMessage:
    """Read one message; pydantic's ValidationError when it is not one."""
    return _ADAPTER.validate_json(message)
