"""Frames of video files as they are decoded: in the order and with the times of showing, and the right way up."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from mbr_live.types import Image, MbrError

_REORDERED_FRAMES = 16  # so far from its place is no frame in H.264, and in older formats even less


class Picture:
    """Makes the RGB picture of a decoded frame when called, turned as players show it.

    Some cameras are mounted on their side or upside down, and note that in the file.
    """

    __slots__ = ("colours", "decoded")

    def __init__(self, decoded: av.VideoFrame, colours: VideoReformatter) -> None:
        self.decoded, self.colours = decoded, colours

    def __call__(self) -> Image:
        # One thread: handing slices of a picture to others costs more than converting it.
        pixels = self.colours.reformat(self.decoded, format="rgb24", threads=1).to_ndarray()
        return np.ascontiguousarray(np.rot90(pixels, round(self.decoded.rotation / 90)))


@contextmanager
def opened(path: Path) -> Iterator[av.container.InputContainer]:
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise MbrError(
            f"{path}: this is not a video that can be read ({error.strerror}). Expected a file such as .mp4, .mkv or "
            ".avi that plays to its end. If it was copied from another machine, copy it again."
        ) from error
    with container:
        if not container.streams.video:
            found = " and ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            raise MbrError(f"{path}: the file has no video stream, only {found}. Give the file that has the pictures.")
        yield container


def decoded_frames(path: Path, container: av.container.InputContainer) -> Iterator[av.VideoFrame]:
    try:
        yield from shown_frames(container)
    except av.FFmpegError as error:
        raise MbrError(
            f"{path}: the video cannot be decoded further ({error.strerror}). The file is damaged or was "
            "cut off while it was copied or recorded. Copy it again, or repair it with ffmpeg."
        ) from error


def shown_frames(container: av.container.InputContainer) -> Iterator[av.VideoFrame]:
    """The frames, in the order in which they are shown, with the times at which they are.

    AVI knows no times but the places of frames in the file, where those that refer to later ones come behind them. So
    what decoders say are the right times, at the wrong frames.
    """
    frames = container.decode(video=0)
    if not (container.format.name == "avi" and container.streams.video[0].codec_context.has_b_frames):
        yield from frames
        return
    waiting: deque[av.VideoFrame] = deque()
    times: list[int] = []

    def first() -> av.VideoFrame:
        frame = waiting.popleft()
        frame.pts = times.pop(0) if times else None
        return frame

    for frame in frames:
        waiting.append(frame)
        if frame.pts is not None:
            insort(times, frame.pts)
        if len(waiting) > _REORDERED_FRAMES:
            yield first()
    while waiting:
        yield first()
