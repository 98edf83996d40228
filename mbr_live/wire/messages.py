"""What capture and inference say to each other. Nothing that arrives is believed before it was checked: a peer that
sends garbage costs one rejected message, never the process and never its memory.
"""

from __future__ import annotations

import uuid
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from mbr_live.types import Frame, MbrError

MAX_HEADER_BYTES = 4096
MAX_DETAIL = 300  # characters
# 12 megapixels: while inference stands still, 1.7 GB of these wait at both ends. libzmq disconnects who announces more.
MAX_PIXELS = 4096 * 3072
MIN_SIDE_PX, MAX_SIDE_PX = 16, 8192
_Natural = Annotated[int, Field(ge=0, lt=2**63)]
_Side = Annotated[int, Field(ge=MIN_SIDE_PX, le=MAX_SIDE_PX)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    v: Literal[1] = 1
    camera: Annotated[str, Field(min_length=1, max_length=64)]
    session: Annotated[str, Field(min_length=8, max_length=64)]  # one run of one capture process


class FrameHeader(_Message):
    """What precedes the pixels of one frame."""

    kind: Literal["frame"] = "frame"
    seq: _Natural  # counts the frames that this capture process meant to send
    index: _Natural
    source_frame: _Natural
    time_ns: _Natural
    origin_ns: _Natural
    captured_ns: _Natural  # CLOCK_MONOTONIC when the frame was in memory
    clock: Annotated[str, Field(max_length=64)]  # whose clock that is: `own_clock()`; others' must not be compared
    height: _Side
    width: _Side


@cache
def own_clock() -> str:
    """Names the monotonic clock of this machine: another after every start of the machine."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else f"{uuid.getnode():x}"


def check_size(camera: str, width_px: int, height_px: int) -> None:
    """MbrError for pictures that no frame message can hold."""
    sides_fit = all(MIN_SIDE_PX <= side <= MAX_SIDE_PX for side in (width_px, height_px))
    if not sides_fit or width_px * height_px > MAX_PIXELS:
        raise MbrError(
            f"camera {camera}: pictures of {width_px} x {height_px} px. Live pictures have {MIN_SIDE_PX} to "
            f"{MAX_SIDE_PX} px a side and at most {MAX_PIXELS / 1e6:.1f} million pixels (4096 x 3072). Set another "
            "size, a region or binning in the camera; recorded files of any size can be labelled with mbr-live batch."
        )


class CaptureCounts(BaseModel):
    """What a capture process has done with its frames so far."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    source_frames: _Natural = 0
    sampled: _Natural = 0
    sent: _Natural = 0
    dropped_queue_full: _Natural = 0  # inference did not keep up, or was not there
    dropped_on_purpose: _Natural = 0  # `replay --drop`
    dropped_disk_full: _Natural = 0  # for want of room, its row in the journal could not be written for long
    recorded: _Natural = 0
    unrecorded: _Natural = 0  # pictures that could not be kept, for lack of room


class CameraReport(BaseModel):
    """How a camera is, as its capture process sees it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    clock: Annotated[str, Field(max_length=20)] = ""  # whose clock capture times are of; empty before the first frame
    lost: Annotated[str, Field(max_length=20)] = ""  # cause of the present outage; empty while frames come
    lost_for_s: Annotated[float, Field(ge=0)] = 0.0
    detail: Annotated[str, Field(max_length=MAX_DETAIL)] = ""
    outages: Annotated[dict[str, _Natural], Field(max_length=20)] = {}  # so far, by cause
    source_fps: Annotated[float, Field(ge=0)] = 0.0  # frames that the camera itself delivers
    alarms: Annotated[dict[str, str], Field(max_length=20)] = {}  # what is wrong with the pictures, and how


class Heartbeat(_Message):
    """Sent once a second, so that silence means that the process is gone."""

    kind: Literal["heartbeat"] = "heartbeat"
    counts: CaptureCounts
    report: CameraReport = CameraReport()


class End(_Message):
    """The last message of a capture process that ends as it should."""

    kind: Literal["end"] = "end"
    last_index: Annotated[int, Field(ge=-1, lt=2**63)]  # the last tick that was sampled; -1: none
    origin_ns: _Natural  # capture time of tick 0
    counts: CaptureCounts
    report: CameraReport = CameraReport()


Header = FrameHeader | Heartbeat | End


_HEADER: TypeAdapter[Header] = TypeAdapter(Annotated[Header, Field(discriminator="kind")])


class BadMessage(Exception):
    """A message that is not ours: counted and logged by the receiver, and otherwise ignored."""


def parse(parts: list[memoryview]) -> tuple[Header, memoryview | None]:
    """Check one message; BadMessage says what is wrong with it."""
    if not parts or len(parts) > 2:
        raise BadMessage(f"{len(parts)} parts instead of 1 or 2")
    if len(parts[0]) > MAX_HEADER_BYTES:
        raise BadMessage(f"a header of {len(parts[0])} bytes, at most {MAX_HEADER_BYTES} expected")
    try:
        header = _HEADER.validate_json(bytes(parts[0]))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise BadMessage(f"header: {'.'.join(map(str, first['loc']))}: {first['msg']}"[:300]) from error
    if not isinstance(header, FrameHeader):
        if len(parts) != 1:
            raise BadMessage(f"{header.kind} message with pixels")
        return header, None
    expected = header.height * header.width * 3
    if len(parts) != 2 or len(parts[1]) != expected:
        found = len(parts[1]) if len(parts) == 2 else 0
        raise BadMessage(f"{found} pixel bytes, {header.width} x {header.height} x 3 = {expected} expected")
    return header, parts[1]


def frame_of(header: FrameHeader, pixels: memoryview) -> Frame:
    """The frame of a checked message; its pixels are a read-only view of the received bytes."""
    image = np.frombuffer(pixels, dtype=np.uint8).reshape(header.height, header.width, 3)
    return Frame(header.camera, header.index, header.source_frame, header.time_ns, header.origin_ns, image)
