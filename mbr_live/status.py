"""What inference publishes for people who look: one message per label, one a second about the system."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

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


StatusMessage = LabelMessage | SystemStatus
_ADAPTER: TypeAdapter[StatusMessage] = TypeAdapter(Annotated[StatusMessage, Field(discriminator="kind")])


def parse_status(message: bytes) -> StatusMessage:
    """Read one message; pydantic's ValidationError when it is not one."""
    return _ADAPTER.validate_json(message)
