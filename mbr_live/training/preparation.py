"""Recordings as the pipeline sees them: the crops, kinematic channels and marks that a model is trained on.

Every video goes through the stages of offline processing, so that training crops are what a later run crops. What is
made is cached under a key of everything that it depends on.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mbr_live.annotation.marks import Annotations, Marks
from mbr_live.bundle import Bundle
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
from mbr_live.datasets.variation import Draw, draw
from mbr_live.engines.choice import cores
from mbr_live.jobs import Ended, Failed, Killed, Told, done_apart, outcome
from mbr_live.stages.kinematics import CHANNELS
from mbr_live.training.cache_files import features_file
from mbr_live.training.cropping import CROPPED_BY, CUT_BY, MEASURED_BY, VARIED_BY, CachedFiles, Cropping, opened
from mbr_live.types import UNKNOWN, MbrError

log = logging.getLogger(__name__)

_MAPPED_FROM_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Recording:
    """The N frames of a recording that show the animal in a window, in order."""

    name: str
    subject: str  # what scores are given for: the recording, or the group of a clip
    split: str
    ticks: NDArray[np.int64]  # [N] of the 10 fps grid
    crops: NDArray[np.uint8] | None  # [N, H, W, 3], mapped from a file where they are many; None: not kept
    crops_name: str  # tells the video, the window and how crops are made of it
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
class Stretch:
    """T ticks on end that the temporal network passes without a reset."""

    rows: NDArray[np.int64]  # [T] row of the recording that serves each tick, held over short gaps
    known: NDArray[np.bool_]  # [T] False where a row is held


def prepare(dataset: Dataset, cache: Path, progress: Progress, network: Bundle | None = None) -> list[Recording]:
    """Crop, measure and read every recording to train on or to validate with, in the dataset's order, on all cores.

    What is in the cache is not made again. Of what is cropped, features are computed on the way where there is a
    `network`, since that is when all cores have something to do. Recordings without a labelled frame are left out,
    with a warning.
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
    files = {spec.name: _files(spec, dataset, cache, network) for spec in specs}
    jobs = [
        Cropping(spec, dataset.window_px, dataset.max_gap_frames, _draws(spec, dataset), files[spec.name], cache)
        for spec in specs
        if files[spec.name].missing()
    ]
    for done in _made(jobs, network, progress):
        progress("recordings", len(specs) - len(jobs) + done, len(specs))
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


def _made(jobs: Sequence[Cropping], network: Bundle | None, progress: Progress) -> Iterator[int]:
    """Make the missing files, of several recordings at the same time; yields how many recordings are done."""
    yield 0
    if not jobs:
        return
    seen: dict[int, tuple[int, int]] = {}  # source frames of the recordings that were begun: done, and in all

    def told(number: int, done: int, total: int | None) -> None:
        if total:
            seen[number] = (min(done, total), total)
            frames, totals = (sum(each) for each in zip(*seen.values(), strict=True))
            progress("source frames", frames, round(totals / len(seen) * len(jobs)))

    with closing(_ended(jobs, network, told)) as ended:
        for count, (number, result) in enumerate(ended, 1):
            if isinstance(result, MbrError):
                raise result
            if isinstance(result, Failed):
                raise result.explained(jobs[number].spec.name)
            if isinstance(result, Killed):
                raise MbrError(
                    f"{jobs[number].spec.name}: the process that was to crop it was killed, most often for want of "
                    "memory. Close other programs and train again; what is cropped already is kept."
                )
            if number in seen:
                told(number, seen[number][1], seen[number][1])
            yield count


def _ended(
    jobs: Sequence[Cropping], network: Bundle | None, told: Told
) -> Generator[tuple[int, Ended[int]], None, None]:
    """What became of every job; one alone needs no process."""
    at_once = min(cores(), len(jobs))
    if at_once > 1:
        yield from done_apart(partial(opened, network, at_once), jobs, at_once, told)
        return
    make = opened(network, 1)
    for number, job in enumerate(jobs):
        yield number, outcome(make, job, partial(told, number))


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


def _draws(spec: RecordingSpec, dataset: Dataset) -> tuple[Draw, ...]:
    """The changes of the copies of a recording, the same whatever else is in the dataset."""
    settings = dataset.training.variation
    name = int.from_bytes(hashlib.sha256(spec.name.encode()).digest()[:8])
    rng = np.random.default_rng((dataset.training.seed, name))
    return tuple(draw(settings, rng) for _ in range(settings.copies))


def _files(spec: RecordingSpec, dataset: Dataset, cache: Path, network: Bundle | None) -> CachedFiles:
    """The files of a recording in the cache, named by all that they depend on."""
    if isinstance(spec.source, SimulatedRecording):
        pictures = spec.source.model_dump_json(exclude={"split"})
    else:
        pictures = " ".join(_content_hash(video, cache) for video in video_files(spec))
    window = f" window {dataset.window_px}" if dataset.window_px else ""
    key = key_of(pictures + window, (*RENDERED_BY, *CROPPED_BY))
    measured = key_of(f"{pictures}{window} gap {dataset.max_gap_frames}", (*RENDERED_BY, *MEASURED_BY))
    name, crop = file_name(spec.name), dataset.model.crop
    crops = f"{name}.{key}.crops"
    if crop == "silhouette":
        crops = f"{name}.{key_of(f'{pictures}{window}', (*RENDERED_BY, *CUT_BY))}.silhouettes"
    crops_file = cache / f"{crops}.npy"
    keeps_crops = dataset.model.extractor != "none" and (
        network is None or dataset.training.takes_crops_again or crops_file.is_file()
    )
    settings = dataset.training.variation
    drawn = f"{pictures}{window} gap {dataset.max_gap_frames} {settings} {dataset.training.seed} {spec.name}"
    copied = settings.copies and spec.split == "train"
    return CachedFiles(
        cache / f"{name}.{key}.rows.npy",
        crop,
        crops,
        crops_file if keeps_crops else None,
        cache / f"{name}.{measured}.channels.npy" if dataset.model.channels else None,
        cache / f"{name}.{key_of(drawn, (*RENDERED_BY, *VARIED_BY))}.varied.npy" if copied else None,
        features_file(cache, crops, None, network) if network else None,
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


def _load(
    spec: RecordingSpec, annotations: Annotations, files: CachedFiles, model: ModelSettings, cache: Path
) -> Recording:
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
        crops_name=files.crops_name,
        channels=channels,
        truth=annotations.at(source_frames),
        judged=judged,
        varied=copies,
    )
