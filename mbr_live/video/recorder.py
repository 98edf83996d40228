"""The pictures that a capture process keeps: 10 a second, in segments, as long as there is room.

Recording is the first thing that gives way. A disk that fills up, or fails, stops it, and is noted; the frames go on to
inference, and recording goes on when there is room.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal, cast

import av
from av.video.stream import VideoStream

from mbr_live.config import Recording
from mbr_live.files import write_atomically
from mbr_live.types import RATE_FPS, Frame, Image
from mbr_live.video.journal import JOURNAL_SUFFIX, read_journal
from mbr_live.video.segments import (
    INDEX_SUFFIX,
    Segment,
    first_tick_of,
    index_text,
    is_part,
    part_of,
    pictures_in,
    read_index,
    segment_path,
    segments_of,
)

ROOM_EVERY_S = 1.0
RESUME_FACTOR = 1.2  # times the least room: from here on recording goes on
MAKE_ROOM_EVERY_S = 60.0
RETRY_S = 10.0  # after the disk refused a picture
_GB = 10**9

_log = logging.getLogger(__name__)

Form = Literal["h264", "lossless"]
_OPTIONS: Mapping[Form, tuple[str, str, dict[str, str]]] = {
    # Codec, pixel format, options. Lossless keeps every bit of the RGB picture.
    "lossless": ("libx264rgb", "rgb24", {"qp": "0", "preset": "ultrafast", "tune": "zerolatency", "g": "50"}),
    "h264": ("libx264", "yuv420p", {"crf": "21", "preset": "veryfast", "tune": "zerolatency", "g": "50"}),
}


@dataclass(frozen=True, slots=True)
class _Open:
    """The segment that is being written."""

    container: av.container.OutputContainer
    stream: VideoStream
    row: Segment  # so far


class Recorder:
    """Keeps the pictures of one camera. With form "off" it keeps none and touches nothing."""

    def __init__(
        self,
        out: Path,
        camera: str,
        form: Form | Literal["off"],
        settings: Recording,
        *,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes up what an earlier process left in `out`: segments that were broken off are closed."""
        self._out, self._camera, self._settings, self._clock_s = out, camera, settings, clock_s
        self._form = form
        self._open: _Open | None = None
        self._look_at_s = 0.0  # when to look for room again
        self._make_room_at_s = 0.0  # when to look for files that may go, where there is none
        self._has_room = True
        self.recorded = self.unrecorded = 0
        self._index: list[Segment] = []
        if form != "off":
            self._index = _taken_up(out, camera)
            self._note_index()

    def keep(self, frame: Frame) -> None:
        """Append one picture, where there is room for it."""
        if self._form == "off":
            return
        try:
            if not self._room(frame.time_ns):
                self.unrecorded += 1
                return
            self._append(frame, self._form)
        except (av.FFmpegError, OSError) as error:
            self._refused(error)
            self.unrecorded += 1
        else:
            self.recorded += 1

    def close(self) -> None:
        """Finish the segment."""
        try:
            self._finish()
        except (av.FFmpegError, OSError) as error:
            self._refused(error)

    def _room(self, time_ns: int) -> bool:
        now_s = self._clock_s()
        if now_s < self._look_at_s:
            return self._has_room
        self._look_at_s = now_s + ROOM_EVERY_S
        least = self._settings.min_free_gb * _GB * (1.0 if self._has_room else RESUME_FACTOR)
        free = shutil.disk_usage(self._out).free
        if free < least and now_s >= self._make_room_at_s:  # while nothing is recorded, no new file makes old ones go
            self._make_room_at_s = now_s + MAKE_ROOM_EVERY_S
            self._delete_old(time_ns)
            free = shutil.disk_usage(self._out).free
        if (free >= least) != self._has_room:
            self._has_room = not self._has_room
            if self._has_room:
                _log.warning("%s: recording goes on: %.1f GB are free", self._camera, free / _GB)
            else:
                _log.error("%s: recording stops: only %.1f GB are free; labels go on", self._camera, free / _GB)
                self.close()
        return self._has_room

    def _refused(self, error: Exception) -> None:
        """The disk did not take a picture: what is there is kept, and it is tried again in a while."""
        _log.error("%s: a picture cannot be recorded (%s); labels go on", self._camera, error)
        self._has_room, self._look_at_s = False, self._clock_s() + RETRY_S
        if self._open is not None:
            left, self._open = self._open, None
            _abandon(left.container)
        self._index = _taken_up(self._out, self._camera)
        self._note_index()

    def _append(self, frame: Frame, form: Form) -> None:
        segment_ns = self._settings.segment_minutes * 60e9
        if self._open is not None and frame.time_ns - self._open.row.first_time_ns >= segment_ns:
            self._finish()
        if self._open is None:
            self._open = self._begun(frame, form)
        stream = self._open.stream
        picture = av.VideoFrame.from_ndarray(frame.pixels[: stream.height, : stream.width], format="rgb24")
        self._open.container.mux(stream.encode(picture))
        self._open = replace(
            self._open, row=replace(self._open.row, last_frame=frame.index, last_time_ns=frame.time_ns)
        )

    def _begun(self, frame: Frame, form: Form) -> _Open:
        self._delete_old(frame.time_ns)
        path = segment_path(self._out, self._camera, frame.index)
        # A cluster per picture, flushed: a process that is killed loses the picture it was at, not the segment.
        options = {"cluster_time_limit": "1", "flush_packets": "1"}
        container = av.open(str(part_of(path)), "w", format="matroska", options=options)
        stream = _stream(container, frame.pixels, form)
        return _Open(container, stream, Segment(path.name, frame.index, frame.index, frame.time_ns, frame.time_ns, 0))

    def _finish(self) -> None:
        if self._open is None:
            return
        done = self._open
        done.container.mux(done.stream.encode(None))
        done.container.close()
        self._open = None
        path = self._out / done.row.file
        part_of(path).replace(path)
        self._index.append(replace(done.row, bytes=path.stat().st_size))
        self._note_index()

    def _delete_old(self, now_ns: int) -> None:
        """Delete the oldest segments, beyond the age or the size that is kept; the newest may be larger, for the clips
        that are cut from it.

        Ages are by the time of the session, which does not follow a date that is set: a clock that is put right, or
        wrong, must not make a week of pictures old at once.
        """
        keep_ns = float("inf") if self._settings.keep_days is None else self._settings.keep_days * 86400e9
        kept: list[Segment] = []
        total = 0
        for segment in reversed(self._index):
            total += segment.bytes
            path = self._out / segment.file
            is_old = now_ns - segment.last_time_ns > keep_ns
            is_too_much = bool(kept) and total > (self._settings.keep_gb or float("inf")) * _GB
            if path.exists() and not is_old and not is_too_much:
                kept.append(segment)
            else:
                path.unlink(missing_ok=True)
                _log.info("%s: %s was deleted, as the configuration says", self._camera, segment.file)
        if len(kept) != len(self._index):
            self._index = kept[::-1]
            self._note_index()

    def _note_index(self) -> None:
        try:
            write_atomically(self._out / f"{self._camera}{INDEX_SUFFIX}", index_text(self._index), durable=False)
        except OSError as error:  # made anew from the segments when the process starts again
            _log.error("%s: the index of the recording cannot be written (%s)", self._camera, error.strerror)


def _stream(container: av.container.OutputContainer, pixels: Image, form: Form) -> VideoStream:
    codec, pixel_format, options = _OPTIONS[form]
    stream = cast(VideoStream, container.add_stream(codec, rate=Fraction(RATE_FPS)))
    height, width = pixels.shape[:2]
    if form == "h264":  # two rows and two columns share a colour: of odd sides the last is left out
        height, width = height - height % 2, width - width % 2
    stream.height, stream.width, stream.pix_fmt = height, width, pixel_format
    stream.options = dict(options)
    stream.codec_context.thread_count = 1
    return stream


def _abandon(container: av.container.OutputContainer) -> None:
    """Let go of a file on a disk that takes nothing more."""
    try:
        container.close()
    except (av.FFmpegError, OSError) as error:
        _log.info("the segment could not be finished either (%s); its pictures count up to here", error)


def _taken_up(out: Path, camera: str) -> list[Segment]:
    """The index of what is there; segments that were broken off get their final name, empty ones go."""
    known = {row.file: row for row in read_index(out / f"{camera}{INDEX_SUFFIX}")}
    rows, paths = [], segments_of(out, camera)
    for path, following in zip(paths, [*paths[1:], None], strict=False):  # none for no path
        whole = segment_path(out, camera, first_tick_of(path))
        row = None if is_part(path) else known.get(path.name)
        end = first_tick_of(following) if following else sys.maxsize
        row = row or _row_of(path, whole.name, out / f"{camera}{JOURNAL_SUFFIX}", end)
        if row is None:
            path.unlink()
            continue
        path.replace(whole)
        rows.append(row)
    return rows


def _row_of(path: Path, name: str, journal: Path, end: int) -> Segment | None:
    """The row of a segment that no index knows, from its pictures and the frame journal; None where it is empty.

    From tick `end` on, pictures are in the next segment, also where the journal lost rows of this one.
    """
    pictures, first = pictures_in(path), first_tick_of(path)
    times: list[tuple[int, int]] = []
    for index, _, time_ns in read_journal(journal, from_frame=first) if pictures else ():
        if len(times) == pictures or index >= end:
            break
        times.append((index, time_ns))
    if not times:
        return None
    return Segment(name, times[0][0], times[-1][0], times[0][1], times[-1][1], path.stat().st_size)
