"""What a session recorded, in files: `<camera>.<first tick>.mkv` and the index `<camera>.segments.csv`.

A segment that is being written has the suffix `.part` and is renamed when it is whole. One whose process was killed
keeps it; its pictures count up to where it breaks off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import av
from av.video.stream import VideoStream

from mbr_live.types import RATE_FPS

SEGMENT_SUFFIX = ".mkv"
INDEX_SUFFIX = ".segments.csv"
_PART_SUFFIX = ".part"


@dataclass(frozen=True, slots=True)
class Segment:
    """One row of the index: which pictures a file holds."""

    file: str
    first_frame: int  # tick
    last_frame: int  # tick; all sampled frames between the two are in the file
    first_time_ns: int  # capture times, as in the label log
    last_time_ns: int
    bytes: int


INDEX_HEADER = ",".join(each.name for each in fields(Segment))


def segment_path(folder: Path, camera: str, first_tick: int) -> Path:
    """Where a segment stands when it is whole."""
    return folder / f"{camera}.{first_tick}{SEGMENT_SUFFIX}"


def part_of(segment: Path) -> Path:
    """Where it stands while it is written."""
    return segment.with_name(segment.name + _PART_SUFFIX)


def segments_of(folder: Path, camera: str) -> list[Path]:
    """All segments of a camera, whole or broken off, oldest first."""
    name = re.compile(re.escape(camera) + r"\.(\d+)" + re.escape(SEGMENT_SUFFIX) + f"({re.escape(_PART_SUFFIX)})?")
    found = [path for path in folder.iterdir() if name.fullmatch(path.name)]
    return sorted(found, key=first_tick_of)


def is_part(segment: Path) -> bool:
    """Whether it is still being written, or was broken off."""
    return segment.name.endswith(_PART_SUFFIX)


def first_tick_of(segment: Path) -> int:
    """The tick of its first picture."""
    return int(segment.name.removesuffix(_PART_SUFFIX).removesuffix(SEGMENT_SUFFIX).rsplit(".", 1)[1])


def pictures_in(segment: Path) -> int:
    """How many whole pictures a segment holds, without decoding them; 0 where it broke off before the first.

    One that was finished says so in its header: to read all that was recorded in weeks would take hours.
    """
    return _promised(segment) or sum(1 for _ in _packets(segment))


def _promised(segment: Path) -> int:
    """How many pictures the header of a segment promises; 0 where it does not."""
    try:
        with av.open(str(segment)) as container:
            return round((container.duration or 0) / av.time_base * RATE_FPS)
    except (av.FFmpegError, OSError):
        return 0  # where it breaks off is where it ends


def is_empty(segment: Path) -> bool:
    """Whether it broke off before its first whole picture."""
    return next(_packets(segment), None) is None


def _packets(segment: Path) -> Iterator[av.Packet[VideoStream]]:
    try:
        with av.open(str(segment)) as container:
            yield from (packet for packet in container.demux(video=0) if packet.size)
    except (av.FFmpegError, OSError):
        return  # where it breaks off is where it ends


def read_index(path: Path) -> list[Segment]:
    """The rows of an index; empty where there is none. Rows that a power cut or a person damaged are not there: what an
    index does not know is read from the segments.
    """
    if not path.exists():
        return []
    rows = map(_row, path.read_text(errors="replace").splitlines()[1:])
    return [row for row in rows if row is not None]


def _row(line: str) -> Segment | None:
    file, *numbers = line.split(",")
    if len(numbers) != len(fields(Segment)) - 1 or not all(map(str.isdecimal, numbers)):
        return None
    return Segment(file, *map(int, numbers))


def index_text(segments: list[Segment]) -> str:
    """An index as it is written."""
    return "\n".join([INDEX_HEADER, *(",".join(map(str, astuple(segment))) for segment in segments)]) + "\n"
