"""A clip of every bout, with some seconds before and after, from what was recorded."""

from __future__ import annotations

import csv
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.video.stream import VideoStream

from mbr_live.files import PART_SUFFIX
from mbr_live.sinks.bouts import BOUTS_SUFFIX
from mbr_live.sinks.run_manifest import RUN_SUFFIX, RunManifest, read_run
from mbr_live.types import RATE_FPS, Frame, MbrError
from mbr_live.video.journal import JOURNAL_SUFFIX
from mbr_live.video.recording import Recording
from mbr_live.video.segments import INDEX_SUFFIX, first_tick_of, read_index, segments_of
from mbr_live.video.sources import JoinedFiles, VideoFile, sampled

CLIPS_FOLDER = "clips"


@dataclass(frozen=True, slots=True)
class Clip:
    """Pictures from `first_frame` to `last_frame` (ticks), both included."""

    recording: str
    behaviour: str
    bout_frame: int  # where the bout begins; with the two above it names the clip
    first_frame: int
    last_frame: int

    @property
    def file_name(self) -> str:
        """Name of its file."""
        return f"{self.recording}.{self.behaviour}.{self.bout_frame}.mp4"


def clips_of(folder: Path, recording: str, behaviours: Sequence[str], pre_s: float, post_s: float) -> list[Clip]:
    """The clips of the bouts in a folder of logs; of all behaviours where none is named."""
    path = folder / f"{recording}{BOUTS_SUFFIX}"
    if not path.exists():
        return []
    with path.open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if not behaviours or row["behaviour"] in behaviours]
    before, after = round(pre_s * RATE_FPS), round(post_s * RATE_FPS)
    return [
        Clip(
            recording,
            row["behaviour"],
            int(row["start_frame"]),
            max(0, int(row["start_frame"]) - before),
            int(row["stop_frame"]) + after,
        )
        for row in rows
    ]


def cut(folder: Path, clips: Iterable[Clip], out: Path, damaged: set[Path]) -> Iterator[Path]:
    """Write the clips that are not there yet and whose pictures are, one file each; the files that were written.

    What a running session has not closed yet comes with a later call. A clip of which no picture was recorded, or is
    still there, is left out and costs nothing. So are the pictures of files that are `damaged`: one that cannot be read
    is said, and noted there. MbrError where other videos than recorded ones cannot be read.
    """
    by_recording: dict[str, list[Clip]] = {}
    for clip in clips:
        if not (out / clip.file_name).exists():
            by_recording.setdefault(clip.recording, []).append(clip)
    for recording, wanted in by_recording.items():
        run = read_run(folder / f"{recording}{RUN_SUFFIX}")
        until = recorded_until(folder, run)
        ready = [clip for clip in wanted if clip.last_frame <= until]
        if not ready:
            continue
        for first_frame, together in _passes(_spans(folder, run, damaged), ready):
            frames = _frames(folder, run, first_frame, max(clip.last_frame for clip in together), damaged)
            yield from _written(frames, together, out)


def recorded_until(folder: Path, run: RunManifest) -> float:
    """The last tick whose picture will not change any more; infinite where the session has ended."""
    if run.exit_status != "running":
        return float("inf")
    index = read_index(folder / f"{run.recording}{INDEX_SUFFIX}")
    return index[-1].last_frame if index else -1


def is_recorded(folder: Path, recording: str) -> bool:
    """Whether there may be pictures of a recording: a live camera is labelled without being recorded, too."""
    live = read_run(folder / f"{recording}{RUN_SUFFIX}").mode == "live"
    return not live or bool(segments_of(folder, recording))


def _recording(folder: Path, run: RunManifest) -> Recording | None:
    """What was recorded of the session that was labelled; None for video files."""
    if run.mode == "live":
        return Recording(folder / f"{run.recording}{JOURNAL_SUFFIX}")
    return Recording(Path(run.sources[0])) if run.sources[0].endswith(JOURNAL_SUFFIX) else None


_Span = tuple[int, float]
"""The first and the last tick of a stretch of pictures that is read from its beginning."""


def _spans(folder: Path, run: RunManifest, damaged: set[Path]) -> list[_Span]:
    recording = _recording(folder, run)
    if recording is None:
        return [(0, float("inf"))]
    index = read_index(recording.path.with_name(f"{recording.name}{INDEX_SUFFIX}"))
    known: dict[int, float] = {row.first_frame: row.last_frame for row in index}
    firsts = [first_tick_of(segment) for segment in recording.segments]
    spans = [
        (first, known.get(first, after - 1)) for first, after in zip(firsts, [*firsts[1:], float("inf")], strict=True)
    ]
    return [span for segment, span in zip(recording.segments, spans, strict=True) if segment not in damaged]


def _passes(spans: Sequence[_Span], clips: Iterable[Clip]) -> list[tuple[int, list[Clip]]]:
    """Clips that share a stretch of `spans` and so are read together, with the tick to read from.

    Clips that no stretch has pictures of are in none.
    """
    passes: list[tuple[int, list[Clip]]] = []
    read_to = -1  # the last stretch of the pass before
    firsts, lasts = [first for first, _ in spans], [last for _, last in spans]
    for clip in sorted(clips, key=lambda clip: clip.first_frame):
        touched = range(bisect_left(lasts, clip.first_frame), bisect_right(firsts, clip.last_frame))
        if not touched:
            continue
        if touched[0] > read_to:
            passes.append((max(clip.first_frame, spans[touched[0]][0]), []))
        passes[-1][1].append(clip)
        read_to = max(read_to, touched[-1])
    return passes


def _frames(folder: Path, run: RunManifest, first: int, last: int, damaged: set[Path]) -> Iterator[Frame]:
    recording = _recording(folder, run)
    if recording is not None:
        frames = recording.frames(run.recording, from_frame=first, damaged=damaged)
    else:
        frames = sampled(JoinedFiles(run.recording, [VideoFile(Path(path)) for path in run.sources]), run.recording)
    for frame in frames:
        if frame.index > last:
            return
        if frame.index >= first:
            yield frame


def _written(frames: Iterable[Frame], clips: Sequence[Clip], out: Path) -> Iterator[Path]:
    """One pass over the frames; clips may overlap."""
    out.mkdir(parents=True, exist_ok=True)
    waiting, open_ = list(clips), dict[Clip, _Writer]()
    try:
        for frame in frames:
            while waiting and waiting[0].first_frame <= frame.index:
                clip = waiting.pop(0)
                open_[clip] = _Writer(out / clip.file_name, clip.first_frame)
            for clip in [each for each in open_ if each.last_frame < frame.index]:
                yield from open_.pop(clip).finish()
            for writer in open_.values():
                writer.add(frame)
        for clip in list(open_):
            yield from open_.pop(clip).finish()
    finally:
        for writer in open_.values():
            writer.abandon()


class _Writer:
    """One clip as H.264, written under another name until it is whole."""

    def __init__(self, path: Path, first_frame: int) -> None:
        self._path, self._first_frame = path, first_frame
        self._part = path.with_name(path.name + PART_SUFFIX)
        self._container: av.container.OutputContainer | None = None
        self._stream: VideoStream | None = None

    def add(self, frame: Frame) -> None:
        """Append a picture at its time; where ticks are missing the one before stays."""
        if self._container is None or self._stream is None:
            self._container = av.open(str(self._part), "w", format="mp4")
            self._stream = self._container.add_stream("libx264", rate=Fraction(RATE_FPS))
            height, width = frame.pixels.shape[:2]
            self._stream.height, self._stream.width = height - height % 2, width - width % 2
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = {"crf": "21", "preset": "veryfast"}
            self._stream.codec_context.thread_count = 1
        picture = av.VideoFrame.from_ndarray(frame.pixels, format="rgb24")
        picture.pts = frame.index - self._first_frame
        picture.time_base = Fraction(1, RATE_FPS)
        self._container.mux(self._stream.encode(picture))

    def finish(self) -> Iterator[Path]:
        """Close the file; yields its path, or nothing where there was no picture."""
        if self._container is None or self._stream is None:
            return
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._part.replace(self._path)
        yield self._path

    def abandon(self) -> None:
        """Leave nothing half-written."""
        if self._container is not None:
            self._container.close()
        self._part.unlink(missing_ok=True)


def recordings_in(folder: Path) -> list[str]:
    """Names of the recordings of a folder of logs; MbrError where there are none."""
    if not folder.is_dir():
        raise MbrError(f"clips: {folder} is no folder. Give the folder of the logs of a run or a batch.")
    names = [path.name.removesuffix(RUN_SUFFIX) for path in sorted(folder.glob(f"*{RUN_SUFFIX}"))]
    if not names:
        raise MbrError(f"clips: {folder} holds no {RUN_SUFFIX} of a recording. Give the folder of a run or a batch.")
    return names
