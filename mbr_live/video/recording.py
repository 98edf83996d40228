"""What a capture process recorded, read back."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from av.video.reformatter import VideoReformatter

from mbr_live.types import RATE_FPS, Frame, Image, MbrError
from mbr_live.video.decoding import Picture, decoded_frames, opened
from mbr_live.video.journal import JOURNAL_SUFFIX, journal_ends, read_journal
from mbr_live.video.segments import first_tick_of, is_empty, is_part, segments_of

_log = logging.getLogger(__name__)


class Recording:
    """What a capture process recorded: its frame journal, and the lossless segments beside it.

    The frames are those that were sampled live, so they keep the ticks, source frames and capture times of the
    live session: `frames()` of a recording is what went over the wire.
    """

    def __init__(self, journal: Path) -> None:
        """`journal` is `<camera>.frames.csv`; its segments are `<camera>.<first tick>.mkv` in the same folder."""
        self.path = journal
        self.name = journal.name.removesuffix(JOURNAL_SUFFIX)
        self.segments = segments_of(journal.parent, self.name)
        first, last = journal_ends(journal)
        if first is None or last is None or all(map(is_empty, self.segments)):
            lacking = "no frames in it" if first is None else "no pictures beside it"
            raise MbrError(
                f"{journal}: found {lacking}. Expected a session with pictures. Set record = 'lossless' for this "
                "camera in the configuration of the live run."
            )
        self.origin_ns, self.last_index = first[2], last[0]

    @property
    def estimated_frames(self) -> int | None:
        """Number of ticks of the session."""
        return self.last_index + 1

    def frames(self, camera: str, *, from_frame: int = 0, damaged: set[Path] | None = None) -> Iterator[Frame]:
        """The recorded frames, with the ticks and times of the live session,
        from the file that holds `from_frame` on.

        A picture whose row the journal lost, as in a power cut, has no tick: it is left out, and that is said. MbrError
        where a segment cannot be read; with `damaged`, that is said and noted there, what can be read goes on, and
        segments that stand there already are left out.
        """
        begin = max(0, sum(first_tick_of(segment) <= from_frame for segment in self.segments) - 1)
        ends = [*map(first_tick_of, self.segments[begin + 1 :]), sys.maxsize]
        for segment, end in zip(self.segments[begin:], ends, strict=True):
            if damaged is not None and segment in damaged:
                continue
            try:
                yield from self._frames_of(segment, end, camera)
            except MbrError as error:
                if damaged is None:
                    raise
                damaged.add(segment)
                _log.error("%s What cannot be read of it is left out.", error)

    def _frames_of(self, segment: Path, end: int, camera: str) -> Iterator[Frame]:
        """The frames of a segment: its pictures, and the rows of the journal from its first tick to before `end`."""
        first = first_tick_of(segment)
        rows = enumerate(takewhile(lambda row: row[0] < end, read_journal(self.path, from_frame=first)))
        due = rowless = missing = 0
        for number, pixels in _segment_pictures(segment):
            missing += max(0, number - due)
            due = number + 1
            row = next((row for k, row in rows if k == number), None)
            if row is None:
                rowless += 1
                continue
            index, source_frame, time_ns = row
            yield Frame(camera, index, source_frame, time_ns, self.origin_ns, pixels)
        if rowless:
            _log.warning("%s: its last %d pictures are left out: the journal has no rows of them", segment, rowless)
        if missing:
            _log.warning("%s: it is damaged: %d pictures in it are lost, and their ticks are gaps", segment, missing)


def _segment_pictures(segment: Path) -> Iterator[tuple[int, Image]]:
    """The pictures of one segment, numbered by their times, so that one that is damaged shifts no others.

    The end of a segment that was cut off by a crash is simply its end, and one that was cut off before its first
    picture has none.
    """
    if is_part(segment) and is_empty(segment):
        return
    colours = VideoReformatter()
    with opened(segment) as container:
        for decoded in decoded_frames(segment, container):
            if decoded.time is not None:
                yield round(decoded.time * RATE_FPS), Picture(decoded, colours)()
