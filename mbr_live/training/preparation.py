"""Recordings as the pipeline sees them: the crops, kinematic channels and marks that a model is trained on.

Every video goes through the stages of offline processing, so that training crops are what a later run crops. What is
made is cached under a key of everything that it depends on.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from mbr_live.ahead import Ahead
from mbr_live.annotation.marks import Annotations, Marks
from mbr_live.bundle import CropKind
from mbr_live.datasets.dataset import (
    RENDERED_BY,
    Dataset,
    Progress,
    annotations_of,
    file_name,
    key_of,
    sampled_frames,
    video_files,
)
from mbr_live.datasets.recordings import Clip, RecordingSpec, SimulatedRecording
from mbr_live.datasets.settings import ModelSettings
from mbr_live.datasets.variation import Draw, draw, varied
from mbr_live.stages import locate
from mbr_live.stages.blindness import BlindState, is_blind
from mbr_live.stages.kinematics import CHANNELS, KinematicState, kinematics
from mbr_live.stages.silhouette import Silhouette, as_crop, silhouette
from mbr_live.types import CROP_PX, UNKNOWN, Image, MbrError, Sighting
from mbr_live.video import sources

log = logging.getLogger(__name__)

# The modules that crops and channels depend on; a change of one of them makes these anew.
CROPPED_BY = (
    *(f"stages/{name}.py" for name in ("background", "blindness", "locate", "sampler")),
    *(f"video/{name}.py" for name in ("segments", "sources")),
)
CUT_BY = (*CROPPED_BY, "stages/silhouette.py")
MEASURED_BY = (*CUT_BY, "stages/walls.py", "stages/kinematics.py")
VARIED_BY = (*MEASURED_BY, "datasets/variation.py")

_AHEAD_FRAMES = 8  # decoded while others are looked at, as in `batch`
_MAPPED_FROM_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Recording:
    """The N frames of a recording that show the animal in a window, in order."""

    name: str
    subject: str  # what scores are given for: the recording, or the group of a clip
    split: str
    ticks: NDArray[np.int64]  # [N] of the 10 fps grid
    crops: NDArray[np.uint8] | None  # [N, H, W, 3], mapped from a file where they are many; None: not needed
    crops_file: Path | None  # where they lie; its name tells the video, the window and how they were made
    channels: NDArray[np.float32] | None  # [N, M] kinematics; None: not needed
    truth: Marks  # [N, K]
    judged: NDArray[np.bool_]  # [N] the mark is somebody's judgement of this frame, not held from an earlier one
    varied: NDArray[np.float32] | None = None  # [V, N, M] channels of changed copies to train on beside it

    def with_copies(self) -> list[Recording]:
        """The recording, and a recording of each changed copy."""
        copies = () if self.varied is None else self.varied
        return [
            self,
            *(
                replace(self, name=f"{self.name}, copy {number}", channels=channels, varied=None)
                for number, channels in enumerate(copies, 1)
            ),
        ]


@dataclass(frozen=True, slots=True)
class _Files:
    """What is cached of a recording; crops and channels where they are needed."""

    rows: Path  # ticks and source frames, int64 [N, 2]
    crop: CropKind
    crops: Path | None
    channels: Path | None  # float32 [N, len(CHANNELS)]
    varied: Path | None  # float32 [V, N, len(CHANNELS)]

    def missing(self) -> tuple[Path, ...]:
        wanted = (self.rows, self.crops, self.channels, self.varied)
        return tuple(path for path in wanted if path and not path.is_file())

    def to_cut(self) -> bool:
        """Whether something is missing that the animal has to be cut out for."""
        missing = self.missing()
        measured = self.channels in missing or self.varied in missing
        return measured or (self.crop == "silhouette" and self.crops in missing)


@dataclass(frozen=True, slots=True)
class Stretch:
    """T ticks on end that the temporal network passes without a reset."""

    rows: NDArray[np.int64]  # [T] row of the recording that serves each tick, held over short gaps
    known: NDArray[np.bool_]  # [T] False where a row is held


def prepare(dataset: Dataset, cache: Path, progress: Progress) -> list[Recording]:
    """Crop, measure and read every recording to train on or to validate with, in the dataset's order, on two processes.

    Recordings without a labelled frame are left out, with a warning. What is in the cache is not made again.
    """
    cache.mkdir(parents=True, exist_ok=True)
    specs = [spec for spec in dataset.all_recordings() if spec.split != "test"]
    # Problems of labels are found before hours of cropping, but for simulated truth, which is rendered on the way.
    real = [spec for spec in specs if not isinstance(spec.source, SimulatedRecording)]
    known: dict[str, Annotations] = {}
    for spec in real:
        known[spec.name] = annotations_of(spec, dataset, cache)
        progress("labels", len(known), len(real))
    specs = [spec for spec in specs if spec.name not in known or np.any(known[spec.name].marks != UNKNOWN)]
    files = {spec.name: _files(spec, dataset, cache) for spec in specs}
    missing = [spec for spec in specs if files[spec.name].missing()]
    progress("recordings", len(specs) - len(missing), len(specs))
    if missing:
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as workers:
            gap_frames = dataset.max_gap_frames
            tasks = [
                workers.submit(
                    _prepare_one, spec, dataset.window_px, gap_frames, cache, files[spec.name], _draws(spec, dataset)
                )
                for spec in missing
            ]
            try:
                for left, task in zip(reversed(range(len(tasks))), as_completed(tasks), strict=True):
                    task.result()
                    progress("recordings", len(specs) - left, len(specs))
            except BaseException:
                workers.shutdown(cancel_futures=True)
                raise
    recordings = [
        _load(
            spec, known.get(spec.name) or annotations_of(spec, dataset, cache), files[spec.name], dataset.model, cache
        )
        for spec in specs
    ]
    for recording in recordings:
        if not np.any(recording.truth != UNKNOWN):
            log.warning("%s: no labelled frame shows the animal; it is left out", recording.name)
    return [recording for recording in recordings if np.any(recording.truth != UNKNOWN)]


def crops_of(recording: Recording) -> NDArray[np.uint8]:
    """The crops of a recording that was prepared with some, [N, H, W, 3]."""
    if recording.crops is None:
        raise ValueError(f"{recording.name} was prepared without crops")
    return recording.crops


def stretches(ticks: NDArray[np.int64], max_gap_frames: int) -> list[Stretch]:
    """Cut a recording where more than `max_gap_frames` ticks have no crop; hold the last row over shorter gaps."""
    if not len(ticks):
        return []
    breaks = np.flatnonzero(np.diff(ticks) - 1 > max_gap_frames) + 1
    found = []
    for rows in np.split(np.arange(len(ticks)), breaks):
        of_stretch = ticks[rows]
        grid = np.arange(of_stretch[0], of_stretch[-1] + 1)
        served = np.searchsorted(of_stretch, grid, side="right") - 1
        found.append(Stretch(rows[served], of_stretch[served] == grid))
    return found


def _draws(spec: RecordingSpec, dataset: Dataset) -> list[Draw]:
    """The changes of the copies of a recording, the same whatever else is in the dataset."""
    settings = dataset.training.variation
    name = int.from_bytes(hashlib.sha256(spec.name.encode()).digest()[:8])
    rng = np.random.default_rng((dataset.training.seed, name))
    return [draw(settings, rng) for _ in range(settings.copies)]


def _prepare_one(
    spec: RecordingSpec, window_px: int | None, max_gap_frames: int, cache: Path, files: _Files, draws: Sequence[Draw]
) -> None:
    """Make what is missing of a recording."""
    cv2.setNumThreads(1)
    source = sources.JoinedFiles(spec.name, [sources.open_video(video) for video in video_files(spec, cache)])
    rows = _write_frames(source, window_px, max_gap_frames, files, draws)
    if not len(rows) and not isinstance(spec.source, Clip):
        raise MbrError(
            f"{spec.name}: the animal was not found for long enough to crop it. Give a longer recording, or "
            "window_px = the side of the crop window."
        )
    save_array(files.rows, rows)


def _files(spec: RecordingSpec, dataset: Dataset, cache: Path) -> _Files:
    """The files of a recording in the cache, named by all that they depend on."""
    if isinstance(spec.source, SimulatedRecording):
        pictures = spec.source.model_dump_json(exclude={"split"})
    else:
        pictures = " ".join(_content_hash(video, cache) for video in video_files(spec))
    window = f" window {dataset.window_px}" if dataset.window_px else ""
    key = key_of(pictures + window, (*RENDERED_BY, *CROPPED_BY))
    measured = key_of(f"{pictures}{window} gap {dataset.max_gap_frames}", (*RENDERED_BY, *MEASURED_BY))
    name, crop = file_name(spec.name), dataset.model.crop
    crops = cache / f"{name}.{key}.crops.npy"
    if crop == "silhouette":
        cut = key_of(f"{pictures}{window}", (*RENDERED_BY, *CUT_BY))
        crops = cache / f"{name}.{cut}.silhouettes.npy"
    settings = dataset.training.variation
    drawn = f"{pictures}{window} gap {dataset.max_gap_frames} {settings} {dataset.training.seed} {spec.name}"
    copied = settings.copies and spec.split == "train"
    return _Files(
        cache / f"{name}.{key}.rows.npy",
        crop,
        crops if dataset.model.extractor != "none" else None,
        cache / f"{name}.{measured}.channels.npy" if dataset.model.channels else None,
        cache / f"{name}.{key_of(drawn, (*RENDERED_BY, *VARIED_BY))}.varied.npy" if copied else None,
    )


def _content_hash(path: Path, cache: Path) -> str:
    """SHA-256 of a file; kept in the cache as long as the file's size and time stay, since videos are large."""
    stat = path.stat()
    known_by = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    kept = cache / f"{file_name(path.stem)}.{known_by}.sha256"
    if not kept.is_file():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        partial = kept.with_suffix(f".{os.getpid()}.part")
        partial.write_text(digest, encoding="utf-8")
        partial.replace(kept)
    return kept.read_text(encoding="utf-8")


class _Measured:
    """Kinematic channels of a recording as it is, and of its changed copies, frame by frame."""

    def __init__(self, draws: Sequence[Draw]) -> None:
        self._draws = draws
        self._values: list[list[NDArray[np.float32]]] = [[] for _ in (None, *draws)]
        self._states = [KinematicState()] * (1 + len(draws))

    def reset(self) -> None:
        """As the pipeline resets a lane."""
        self._states = [state.after_reset() for state in self._states]

    def add(self, seen: Silhouette) -> None:
        for lane, shown in enumerate((seen, *(varied(seen, each) for each in self._draws))):
            channels, self._states[lane] = kinematics(shown, self._states[lane])
            self._values[lane].append(channels)

    def channels(self) -> NDArray[np.float32]:
        """float32 [1 + V, N, len(CHANNELS)]: as it is, then the copies."""
        return np.array(self._values, np.float32).reshape(len(self._values), -1, len(CHANNELS))


def _write_frames(
    source: sources.Source, window_px: int | None, max_gap_frames: int, files: _Files, draws: Sequence[Draw]
) -> NDArray[np.int64]:
    """Write the missing crops and channels of all 10 fps frames with an animal; their rows, int64 [N, 2]."""
    state, seen = locate.initial_state(), BlindState()
    rows: list[tuple[int, int]] = []
    missing, to_cut = files.missing(), files.to_cut()
    measured = _Measured(draws if files.varied in missing else ())
    measuring = bool({files.channels, files.varied} & set(missing))
    with ExitStack() as stack:
        write = stack.enter_context(_crop_file(files.crops)) if files.crops and files.crops in missing else None
        for frame in stack.enter_context(closing(Ahead(sources.sampled(source, source.name), _AHEAD_FRAMES))):
            blind, seen = is_blind(frame.pixels, seen)
            if blind:
                continue
            sighting, state = locate.locate(frame.pixels, state)
            side = window_px or locate.window_px(state)
            if not sighting.found or side is None:
                continue
            cut = silhouette(frame.pixels, sighting, state, side) if to_cut else None
            if write:
                write(_crop(frame.pixels, sighting, side, cut if files.crop == "silhouette" else None))
            if cut and measuring:
                if rows and frame.index - rows[-1][0] - 1 > max_gap_frames:
                    measured.reset()
                measured.add(cut)
            rows.append((frame.index, frame.source_frame))
    channels = measured.channels()
    if files.channels and files.channels in missing:
        save_array(files.channels, channels[0])
    if files.varied and files.varied in missing:
        save_array(files.varied, channels[1:])
    return np.array(rows, np.int64).reshape(-1, 2)


def _crop(pixels: Image, sighting: Sighting, window_px: int, cut: Silhouette | None) -> Image:
    return as_crop(cut) if cut else locate.crop(pixels, sighting.x_px, sighting.y_px, window_px)


@contextmanager
def _crop_file(path: Path) -> Iterator[Callable[[Image], None]]:
    """Write crops one by one to a .npy file of uint8 [N, 160, 160, 3] that is there only when all went well."""
    partial = path.with_suffix(".part")
    count = 0

    def write_header(file: BinaryIO) -> None:
        # numpy leaves room for the length to grow, so that the header can be written again over itself.
        shape = (count, CROP_PX, CROP_PX, 3)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})

    def write(crop: Image) -> None:
        nonlocal count
        file.write(crop.tobytes())
        count += 1

    try:
        with partial.open("wb") as file:
            write_header(file)
            yield write
            file.seek(0)
            write_header(file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _load(spec: RecordingSpec, annotations: Annotations, files: _Files, model: ModelSettings, cache: Path) -> Recording:
    ticks, source_frames = np.load(files.rows, allow_pickle=False).T
    crops, channels, copies = None, None, None
    if files.crops:
        # A mapped file stays open: thousands of clips would be more than a process may have.
        crops = np.load(files.crops, mmap_mode="r" if files.crops.stat().st_size > _MAPPED_FROM_BYTES else None)
    if files.channels:
        chosen = [CHANNELS.index(name) for name in model.channels]
        channels = np.load(files.channels, allow_pickle=False)[:, chosen]
        copies = np.load(files.varied, allow_pickle=False)[:, :, chosen] if files.varied else None
    judged = np.ones(len(ticks), np.bool_)
    if annotations.judged is not None:
        sampled = sampled_frames(spec, cache)  # a still is shown by one of these, whether the animal was found or not
        judged = np.isin(source_frames, sampled[annotations.judged_at(sampled)])
    return Recording(
        name=spec.name,
        subject=spec.group if isinstance(spec.source, Clip) else spec.name,
        split=spec.split or "train",
        ticks=ticks,
        crops=crops,
        crops_file=files.crops,
        channels=channels,
        truth=annotations.at(source_frames),
        judged=judged,
        varied=copies,
    )


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write a .npy file that is there only when all of it is."""
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    partial.replace(path)
