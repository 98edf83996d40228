"""Where frames come from: video files, recordings of this program, cameras and the simulator.

A source is iterated once and yields every frame it has, in order; making the picture of a frame is left to whoever
wants it, so that the two of three frames that 10 fps sampling skips cost no conversion.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from shlex import quote
from statistics import median
from typing import Protocol

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from mbr_live.stages.sampler import SamplerState, sample
from mbr_live.types import Frame, Image, MbrError, SourceFrame
from mbr_live.video.decoding import Picture, decoded_frames, opened, shown_frames

_NS = 1_000_000_000
# Their durations count from time 0, wherever the first frame lies; those of other formats count from that frame.
_DURATION_FROM_ZERO = ("matroska,webm", "avi", "asf", "nut")
_LONGEST_GAP_NS = 7 * 24 * 3600 * _NS  # every tick of a gap has its row: a clock that was set by years fills a disk
_SEEK_BEYOND_NS = 5 * _NS  # decoding on is quicker than a jump over less

_log = logging.getLogger(__name__)


class Source(Protocol):
    """Anything that delivers frames. Iterating opens it; the end of the iteration, however it comes, closes it."""

    name: str

    def __iter__(self) -> Iterator[SourceFrame]: ...


class VideoFile:
    """A video file. Times are presentation times since its first frame, exact to the nanosecond."""

    def __init__(self, path: Path) -> None:
        """Open `path` far enough to know that it is a video; MbrError when it is not."""
        self.path = path
        self.name = path.stem
        if not path.is_file():
            raise MbrError(f"{path}: there is no such file. Check the name, or the folder you are in.")
        with opened(path) as container:
            stream = container.streams.video[0]
            self.width_px, self.height_px = stream.width, stream.height
            self.declared_frames = stream.frames or None
            self._declared_end_s = _declared_end_s(container)
            self.declared_s = None if self._declared_end_s is None else self._declared_end_s - _starts_s(container)

    @property
    def estimated_frames(self) -> int | None:
        """Number of frames that the header promises, where it does."""
        return self.declared_frames

    def times_ns(self) -> NDArray[np.int64]:
        """Presentation times of all frames since the first, int64 [N], as iterating gives them.

        They are read without decoding, but for files that store no presentation times, or that begin with frames which
        no decoder gives, since what these refer to was cut away.
        """
        with opened(self.path) as container:
            stream = container.streams.video[0]
            packets = [packet for packet in container.demux(stream) if packet.size]
            time_base = stream.time_base or Fraction(1, _NS)
        shown = [packet.pts for packet in packets if not packet.is_discard]
        times = sorted(pts for pts in shown if pts is not None)
        stored = [packet.dts for packet in packets if packet.dts is not None]
        timed = bool(times) and len(times) == len(shown) and stored == sorted(stored)
        # A file that begins whole begins with a key frame, and no frame before its first decoded one is lost.
        if not (timed and packets[0].is_keyframe and self._first_decoded_pts() == times[0]):
            return np.array([frame.time_ns for frame in self], np.int64)
        return np.array([round((pts - times[0]) * time_base * _NS) for pts in times], np.int64)

    def _first_decoded_pts(self) -> int | None:
        with opened(self.path) as container:
            return next((frame.pts for frame in decoded_frames(self.path, container)), None)

    def __iter__(self) -> Iterator[SourceFrame]:
        count, first_pts, time_ns, last_s = 0, None, 0, 0.0
        with opened(self.path) as container:
            stream = container.streams.video[0]
            # One thread: slices and frame threads cost more CPU in all, and several files or cameras share the cores.
            stream.codec_context.thread_count = 1
            time_base = stream.time_base or Fraction(1, _NS)
            colours = VideoReformatter()  # one for all frames: making one costs as much as a conversion
            for decoded in decoded_frames(self.path, container):
                if decoded.pts is None:
                    raise self._mistimed(f"frame {count} has no presentation time")
                first_pts = decoded.pts if first_pts is None else first_pts
                before_ns, time_ns = time_ns, round((decoded.pts - first_pts) * time_base * _NS)
                if not 0 <= time_ns - before_ns <= _LONGEST_GAP_NS:
                    raise self._mistimed(
                        f"frame {count} is said to be of {time_ns / _NS:.3f} s, but the frame before it of "
                        f"{before_ns / _NS:.3f} s: the clock of the recording was set, or pieces of several "
                        "recordings were put into one file"
                    )
                last_s = float(decoded.pts * time_base)
                self._check_size(decoded, count)
                yield SourceFrame(count, time_ns, Picture(decoded, colours))
                count += 1
        self._check_complete(count, time_ns / _NS, last_s)

    def _mistimed(self, found: str) -> MbrError:
        return MbrError(
            f"{self.path}: {found}. Labels need exact times. If the camera was steady, write them anew, with its frame "
            f"rate for 25: ffmpeg -r 25 -i {quote(str(self.path))} -qp 0 fixed.mkv"
        )

    def _check_size(self, decoded: av.VideoFrame, count: int) -> None:
        if (decoded.width, decoded.height) != (self.width_px, self.height_px):
            raise MbrError(
                f"{self.path}: frame {count} is {decoded.width} x {decoded.height} px, the frames before it are "
                f"{self.width_px} x {self.height_px}. A recording must keep one size. Split the file where it changes."
            )

    def _check_complete(self, count: int, length_s: float, last_s: float) -> None:
        """MbrError for a file that ends too early; `last_s` is the time of its last frame, as the file counts it."""
        if count == 0:
            raise MbrError(f"{self.path}: the video has no frames. Expected at least one. Record or copy it again.")
        if self.declared_frames is None and self._declared_end_s is None:
            _log.warning(
                "%s: the file does not say how long it is, so it may be cut off: %d frames were read, to %.1f s",
                self.path, count, last_s,
            )  # fmt: skip
        declared_end_s = last_s if self._declared_end_s is None else self._declared_end_s
        short_by_frames = (self.declared_frames or count) - count
        short_by_s = declared_end_s - last_s
        # Headers may be off by a frame or two, and count the length of the last frame or of a longer sound track.
        if self.declared_frames is None:
            enough_s = declared_end_s - max(2.0, 0.01 * length_s)
            cut_off = last_s < enough_s and self._last_packet_s() < enough_s
        else:
            cut_off = short_by_frames > max(2, 0.002 * count) and short_by_s > 0.5
        if cut_off:
            promised = f"{self.declared_frames} frames, to" if self.declared_frames else "frames to"
            raise MbrError(
                f"{self.path}: the file promises {promised} {declared_end_s:.1f} s, but only {count} frames, to "
                f"{last_s:.1f} s, could be read. It is cut off. Copy or record it again."
            )

    def _last_packet_s(self) -> float:
        """The latest time of anything in the file, sound too."""
        with opened(self.path) as container:
            times = (packet.pts * packet.time_base for packet in container.demux() if packet.pts is not None)
            return float(max(times, default=0))


class JoinedFiles:
    """Several files as one continuous recording, in the order given; source frames are counted through."""

    def __init__(self, name: str, files: Sequence[VideoFile]) -> None:
        self.name = name
        self.files = files
        sizes = {(file.width_px, file.height_px): file.path for file in files}
        if len(sizes) > 1:
            found = ", ".join(f"{path} is {w} x {h} px" for (w, h), path in sizes.items())
            raise MbrError(f"{name}: files to be joined must have one frame size, but {found}. Join them apart.")

    @property
    def estimated_frames(self) -> int | None:
        """Sum over the files, where every one of them knows."""
        counts = [file.estimated_frames for file in self.files]
        return None if None in counts else sum(count for count in counts if count is not None)

    def times_ns(self) -> NDArray[np.int64]:
        """Presentation times of all frames, int64 [N], as iterating gives them."""
        parts, start_ns = [], 0
        for file in self.files:
            times = file.times_ns()
            parts.append(start_ns + times)
            start_ns += int(times[-1]) + _last_period_ns(times[-16:].tolist())
        return np.concatenate(parts)

    def __iter__(self) -> Iterator[SourceFrame]:
        number, start_ns = 0, 0
        for file in self.files:
            times: list[int] = []
            end_ns = 0
            for frame in file:
                # A file lasts until one period after its last frame; the next one starts there.
                times = [*times[-15:], frame.time_ns]
                end_ns = frame.time_ns
                yield SourceFrame(number, start_ns + frame.time_ns, frame.picture)
                number += 1
            start_ns += end_ns + _last_period_ns(times)


def pictures_at(path: Path, times_ns: Collection[int]) -> dict[int, Image]:
    """The pictures of a video file at these times since its first frame; a time that no frame has is left out.

    Goes by key frames, so that a few pictures of a long recording do not cost all of its frames.
    """
    found: dict[int, Image] = {}
    wanted = sorted(times_ns)
    jumps = [k for k, time_ns in enumerate(wanted) if k == 0 or time_ns - wanted[k - 1] > _SEEK_BEYOND_NS]
    with opened(path) as container:
        stream = container.streams.video[0]
        time_base, colours = stream.time_base or Fraction(1, _NS), VideoReformatter()
        first_pts = next((frame.pts for frame in shown_frames(container) if frame.pts is not None), 0)
        for begin, end in pairwise([*jumps, len(wanted)]):
            container.seek(first_pts + round(Fraction(wanted[begin], _NS) / time_base), stream=stream)
            for decoded in shown_frames(container):
                time_ns = round(((decoded.pts or 0) - first_pts) * time_base * _NS)
                if time_ns in times_ns:
                    found[time_ns] = Picture(decoded, colours)()
                if time_ns >= wanted[end - 1]:
                    break
    return found


def sampled(source: Source, camera: str) -> Iterator[Frame]:
    """The frames of `source` that serve the 10 fps grid, from its first frame on."""
    state: SamplerState | None = None
    for frame in source:
        index, state = sample(frame.time_ns, state)
        if index is not None:
            yield Frame(camera, index, frame.number, frame.time_ns, state.origin_ns, frame.picture())


def _starts_s(container: av.container.InputContainer) -> float:
    """When the first frame begins, as the file counts its times."""
    stream = container.streams.video[0]
    return float((stream.start_time or 0) * (stream.time_base or 0))


def _declared_end_s(container: av.container.InputContainer) -> float | None:
    """When the last frame is over, as the file counts its times; None where its header does not say."""
    stream = container.streams.video[0]
    if stream.duration is not None and stream.time_base is not None:
        duration_s = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        duration_s = container.duration / av.time_base
    else:
        return None
    return duration_s if container.format.name in _DURATION_FROM_ZERO else _starts_s(container) + duration_s


def _last_period_ns(times_ns: list[int]) -> int:
    intervals = np.diff(np.asarray(times_ns, dtype=np.int64))
    return int(median(intervals.tolist())) if len(intervals) else 0
