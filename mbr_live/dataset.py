"""What a model is trained on: the dataset file, and its recordings as the pipeline sees them.

A recording is rendered to an H.264 file and read back through the stages of offline processing, so that training
crops are what a later run crops. Both steps are cached under a key of everything that they depend on.
"""

from __future__ import annotations

import csv
import hashlib
import os
import tomllib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Literal

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mbr_live import locate, simulate, sources
from mbr_live.types import Image, MbrError

Progress = Callable[[str, int, int], None]
"""Told the stage of the work, the units done and the units in all."""

# The modules that a rendered video and its crops depend on; a change of one of them makes these anew.
RENDERED_BY = ("simulate*.py",)
CROPPED_BY = ("background.py", "locate.py", "sampler.py", "sources.py")

_NOISE_MARGIN_PX = 64


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SimulatedRecording(_Section):
    """One recording of the simulated camera."""

    condition: str
    seed: Annotated[int, Field(ge=0)]
    minutes: Annotated[float, Field(gt=0.0, le=120.0)]
    split: Literal["train", "validation"]

    @property
    def name(self) -> str:
        return f"{self.condition}-{self.seed}"


class BehaviourSpec(_Section):
    """A behaviour to learn: a 0/1 column of the truth, and how long its bouts and pauses in them are."""

    name: str
    min_bout_s: float = 0.3
    bridge_s: float = 0.2


class Augmentation(_Section):
    """Largest changes of a crop. Mirroring along both axes and their swap are always drawn."""

    turn_deg: float = 15.0
    zoom: float = 0.25
    shift_px: float = 8.0
    brightness: float = 30.0
    contrast: float = 0.3
    noise: float = 8.0


class TrainingSettings(_Section):
    """Single frames train the trunk; sequences then train the temporal network on the features of all frames."""

    seed: int = 1
    frames_per_step: Annotated[int, Field(ge=2)] = 64
    frame_steps: Annotated[int, Field(ge=1)] = 1000
    frame_learning_rate: Annotated[float, Field(gt=0.0)] = 3e-3
    sequence_frames: Annotated[int, Field(ge=4)] = 256
    sequences_per_step: Annotated[int, Field(ge=1)] = 16
    sequence_steps: Annotated[int, Field(ge=1)] = 300
    sequence_learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    augmentation: Augmentation = Augmentation()


class Dataset(_Section):
    """A dataset file."""

    name: str
    summary: str  # for the model card: what this model is, and what it is not for
    warmup_frames: Annotated[int, Field(ge=0)] = 20
    max_gap_s: Annotated[float, Field(ge=0.0)] = 0.5
    behaviours: Annotated[tuple[BehaviourSpec, ...], Field(min_length=1)]
    training: TrainingSettings = TrainingSettings()
    simulated: Annotated[tuple[SimulatedRecording, ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class Recording:
    """The N frames of a recording that have a crop, in order."""

    name: str
    split: str
    ticks: NDArray[np.int64]  # [N] of the 10 fps grid
    crops: NDArray[np.uint8]  # [N, H, W, 3], mapped from a file
    truth: NDArray[np.bool_]  # [N, K]


@dataclass(frozen=True, slots=True)
class Stretch:
    """T ticks on end that the temporal network passes without a reset."""

    rows: NDArray[np.int64]  # [T] row of the recording that serves each tick, held over short gaps
    known: NDArray[np.bool_]  # [T] False where a row is held


def read_dataset(path: Path) -> Dataset:
    """Read and check a dataset file; raises MbrError with what is wrong."""
    try:
        dataset = Dataset.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise MbrError(f"Dataset {path} can not be read ({error.strerror}). Check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MbrError(f"Dataset {path} is not TOML: {error}. Mend that line.") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise MbrError(f"Dataset {path}: {where}: {first['msg']}. Mend that entry.") from error
    names = [recording.name for recording in dataset.simulated]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MbrError(f"Dataset {path} has {', '.join(twice)} more than once. A recording has one split.")
    for split in ("train", "validation"):
        if not any(recording.split == split for recording in dataset.simulated):
            raise MbrError(f"Dataset {path} has no {split} recordings. Give some recordings split = '{split}'.")
    return dataset


def cache_folder() -> Path:
    """Where rendered recordings and crops are kept: $XDG_CACHE_HOME/mbr-live/training."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mbr-live" / "training"


def prepare(dataset: Dataset, cache: Path, progress: Progress) -> list[Recording]:
    """Render, crop and read every recording, in the dataset's order, on two processes."""
    cache.mkdir(parents=True, exist_ok=True)
    recordings = dataset.simulated
    missing = [recording for recording in recordings if not all(map(Path.is_file, _files(recording, cache)))]
    progress("recordings", len(recordings) - len(missing), len(recordings))
    if missing:
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as workers:
            tasks = [workers.submit(_prepare_one, recording, cache) for recording in missing]
            for left, task in zip(reversed(range(len(tasks))), as_completed(tasks), strict=True):
                task.result()
                progress("recordings", len(recordings) - left, len(recordings))
    names = [behaviour.name for behaviour in dataset.behaviours]
    return [_load(recording, cache, names) for recording in recordings]


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


def augment(crops: NDArray[np.uint8], settings: Augmentation, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Crops uint8 [B, H, W, 3] -> the same, each with a random change of place, light and noise of its own."""
    side = crops.shape[1]
    # One field of noise, laid at a new place for each crop, is as good as fresh noise and far cheaper.
    field = rng.standard_normal((side + _NOISE_MARGIN_PX, side + _NOISE_MARGIN_PX, 3), np.float32)
    changed = np.empty_like(crops)
    for crop, picture in enumerate(crops):
        matrix = _random_motion(side, settings, rng)
        moved = cv2.warpAffine(picture, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE)
        top, left = rng.integers(0, _NOISE_MARGIN_PX, 2)
        noise = field[top : top + side, left : left + side] * np.float32(rng.uniform(0.0, settings.noise))
        changed[crop] = np.clip(cv2.LUT(moved, _random_tone(settings, rng)) + noise, 0.0, 255.0)
    return changed


def _random_motion(side: int, settings: Augmentation, rng: np.random.Generator) -> NDArray[np.float64]:
    """Affine 2 x 3 matrix: mirrored, turned and zoomed about the middle, then shifted."""
    angle = np.deg2rad(rng.uniform(-settings.turn_deg, settings.turn_deg))
    zoom = np.exp(rng.uniform(-settings.zoom, settings.zoom))
    linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = linear @ np.diag(rng.choice((-1.0, 1.0), 2))
    if rng.random() < 0.5:
        linear = linear[:, ::-1]
    middle = np.full(2, (side - 1) / 2)
    shift = rng.uniform(-settings.shift_px, settings.shift_px, 2)
    return np.column_stack((linear, middle + shift - linear @ middle))


def _random_tone(settings: Augmentation, rng: np.random.Generator) -> NDArray[np.float32]:
    """Look-up table float32 [256] of contrast about mid-grey, and brightness."""
    contrast = np.exp(rng.uniform(-settings.contrast, settings.contrast))
    brightness = rng.uniform(-settings.brightness, settings.brightness)
    levels = np.arange(256, dtype=np.float32)
    return np.asarray((levels - 128.0) * contrast + 128.0 + brightness, np.float32)


def _prepare_one(recording: SimulatedRecording, cache: Path) -> None:
    cv2.setNumThreads(1)
    video, truth, crops, rows = _files(recording, cache)
    if not (video.is_file() and truth.is_file()):
        simulate.record(recording.condition, recording.seed, 60.0 * recording.minutes, video, truth)
    if not (crops.is_file() and rows.is_file()):
        _write_crops(video, recording.name, crops, rows)


def _write_crops(video: Path, name: str, crops: Path, rows: Path) -> None:
    state = locate.initial_state()
    pictures: list[Image] = []
    found: list[tuple[int, int]] = []
    for frame in sources.sampled(sources.open_video(video), name):
        sighting, state = locate.locate(frame.pixels, state)
        window_px = locate.window_px(state)
        if sighting.found and window_px is not None:
            pictures.append(locate.crop(frame.pixels, sighting.x_px, sighting.y_px, window_px))
            found.append((frame.index, frame.source_frame))
    if not found:
        raise MbrError(f"{name}: the animal was not found for long enough to crop it. Make the recording longer.")
    _save(crops, np.stack(pictures))
    _save(rows, np.array(found, np.int64))


def _load(recording: SimulatedRecording, cache: Path, behaviours: Sequence[str]) -> Recording:
    _, truth_file, crops, rows = _files(recording, cache)
    ticks, source_frames = np.load(rows, allow_pickle=False).T
    truth = _read_truth(truth_file, behaviours)[source_frames]
    return Recording(recording.name, recording.split, ticks, np.load(crops, mmap_mode="r"), truth)


def _read_truth(path: Path, behaviours: Sequence[str]) -> NDArray[np.bool_]:
    """Truth of every source frame, [frames, K]."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    unknown = sorted(set(behaviours) - set(rows[0]))
    if unknown:
        raise MbrError(f"{path} has no column {', '.join(unknown)}; it has {', '.join(rows[0])}. Name one of these.")
    return np.array([[row[name] == "1" for name in behaviours] for row in rows])


def _files(recording: SimulatedRecording, cache: Path) -> tuple[Path, Path, Path, Path]:
    """Video, truth, crops and rows of a recording in the cache."""
    rendered, cropped = _key(recording, RENDERED_BY), _key(recording, (*RENDERED_BY, *CROPPED_BY))
    endings = (f"{rendered}.mp4", f"{rendered}.csv", f"{cropped}.crops.npy", f"{cropped}.rows.npy")
    video, truth, crops, rows = (cache / f"{recording.name}.{ending}" for ending in endings)
    return video, truth, crops, rows


def _key(recording: SimulatedRecording, modules: Sequence[str]) -> str:
    """Hash of the recording's description, of the code that makes it and of the libraries below."""
    digest = hashlib.sha256(recording.model_dump_json(exclude={"split"}).encode())
    digest.update(f"{av.__version__} {cv2.__version__} {np.__version__}".encode())
    for file in sorted(file for module in modules for file in Path(__file__).parent.glob(module)):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _save(path: Path, array: NDArray[np.generic]) -> None:
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    partial.replace(path)
