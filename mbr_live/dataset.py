"""What a model is trained on: the dataset file, and its recordings as the pipeline sees them.

A simulated recording is rendered to an H.264 file; every video then goes through the stages of offline processing, so
that training crops are what a later run crops. Both steps are cached under a key of everything that they depend on.
Labels are looked up by source frame. A frame that nobody labelled stays UNKNOWN: it is masked, never a negative.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, Self

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator

from mbr_live import locate, sampler, simulate, sources, splits
from mbr_live.annotation_formats import read_annotations
from mbr_live.annotations import Annotations, Finding, Marks, ProblemKind, Severity
from mbr_live.blindness import BlindState, is_blind
from mbr_live.kinematics import ALL, CHANNELS, SHAPE, KinematicState, kinematics
from mbr_live.recordings import (
    NO_RANDOM,
    Clip,
    ClipFolder,
    LabelledVideo,
    RecordingSpec,
    Section,
    SimulatedRecording,
    VideoFolder,
    VideoRecording,
    check_names,
    clip_findings,
    clip_specs,
    folder_specs,
    simulated_spec,
    video_spec,
    with_splits,
)
from mbr_live.silhouette import silhouette
from mbr_live.splits import Fold, Split
from mbr_live.temporal_config import TcnConfig, TemporalConfig
from mbr_live.types import CROP_PX, RATE_FPS, UNKNOWN, Image, MbrError

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Told the stage of the work, the units done and the units in all."""

# The modules that a rendered video and its crops depend on; a change of one of them makes these anew.
RENDERED_BY = ("simulate*.py",)
CROPPED_BY = ("background.py", "blindness.py", "locate.py", "sampler.py", "sources.py")
MEASURED_BY = (*CROPPED_BY, "silhouette.py", "kinematics.py")

_NOISE_MARGIN_PX = 64
_MAPPED_FROM_BYTES = 8 << 20


class BehaviourSpec(Section):
    """A behaviour to learn: what it is called in label files, and how long its bouts and pauses in them are."""

    name: str
    columns: tuple[str, ...] = ()  # columns or codes that count as it; default: its own name, and names for the same
    min_bout_s: float = 0.3
    bridge_s: float = 0.2


class Augmentation(Section):
    """Largest changes of a crop. Mirroring along both axes and their swap are always drawn."""

    turn_deg: float = 15.0
    zoom: float = 0.25
    shift_px: float = 8.0
    brightness: float = 30.0
    contrast: float = 0.3
    noise: float = 8.0


class ModelSettings(Section):
    """What the networks are, and what they see."""

    extractor: Literal["slim", "none"] = "slim"  # the trunk that sees the crops; none: kinematics alone
    kinematics: (
        Literal["none", "all", "shape"] | Annotated[tuple[Literal["all", "shape"], ...], Field(min_length=1)]
    ) = "none"
    temporal: TemporalConfig = TcnConfig()
    ensemble: Annotated[int, Field(ge=1, le=32)] = 1  # temporal networks whose logits are averaged

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.extractor == "none" and self.kinematics == "none":
            raise ValueError("extractor and kinematics are both 'none': the model would see nothing")
        if len(self.channel_sets) > self.ensemble:
            raise ValueError(f"kinematics lists {len(self.channel_sets)} sets; give ensemble at least as many members")
        return self

    @property
    def channel_sets(self) -> tuple[tuple[str, ...], ...]:
        """The kinematic channels of the members, who take these sets in turn; none: they take no kinematics."""
        if self.kinematics == "none":
            return ()
        sets = {"all": ALL, "shape": SHAPE}
        return tuple(
            sets[name] for name in ([self.kinematics] if isinstance(self.kinematics, str) else self.kinematics)
        )

    @property
    def channels(self) -> tuple[str, ...]:
        """All kinematic channels that some member takes."""
        used = set(chain.from_iterable(self.channel_sets))
        return tuple(name for name in CHANNELS if name in used)


class TrainingSettings(Section):
    """Single frames train the trunk; sequences then train the temporal network on the features of all frames.

    What has to do with sparse labels, and with few recordings, is off by default.
    """

    seed: int = 1
    frames_per_step: Annotated[int, Field(ge=2)] = 64
    frame_steps: Annotated[int, Field(ge=1)] = 1000
    frame_learning_rate: Annotated[float, Field(gt=0.0)] = 3e-3
    sequence_frames: Annotated[int, Field(ge=4)] = 256
    sequences_per_step: Annotated[int, Field(ge=1)] = 16
    sequence_steps: Annotated[int, Field(ge=1)] = 300
    sequence_learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    sequence_weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    unscored_frames: Annotated[int, Field(ge=0)] = 3  # at the start of a sequence: too early to have seen a movement
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # 1 is learnt as 1 - half of this, 0 as half of it
    held_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0  # of a frame that repeats the label of a judged still
    sequence_noise: Annotated[float, Field(ge=0.0)] = 0.0  # standard deviation per sequence of each kinematic channel,
    frame_noise: Annotated[float, Field(ge=0.0)] = 0.0  # ... and per frame; in standard deviations of the channel
    channel_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # share of kinematic values set to their mean
    draw: Literal["even", "by_count"] = "even"  # of recordings; by_count: by the root of their frames of a behaviour
    threshold: Literal["fit", "shrunk"] | Annotated[float, Field(gt=0.0, lt=1.0)] = "fit"  # shrunk: fitted, towards 0.5
    augmentation: Augmentation = Augmentation()


class SplitSettings(Section):
    """How the groups that have no split of their own are split: shares of the groups of each condition."""

    validation: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    test: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    seed: Annotated[int, Field(ge=0)] = 1
    groups: dict[str, splits.Split] = Field(default={})  # the split of whole groups, by name


class ProblemLevels(Section):
    """How grave a problem of the labels is."""

    invalid_format: Severity = "error"
    missing_video: Severity = "error"
    missing_column: Severity = "error"
    no_annotation: Severity = "warning"
    unknown_behaviour: Severity = "warning"
    overlap: Severity = "warning"
    unpaired: Severity = "error"
    point_events: Severity = "warning"
    nan_values: Severity = "warning"
    too_many_frames: Severity = "error"
    too_few_frames: Severity = "warning"
    empty_behaviour: Severity = "error"  # in no recording to train on
    empty_split: Severity = "warning"  # in no recording of another split
    one_class: Severity = "warning"  # in every labelled frame of a split
    log_names: Severity = "warning"
    unused_class: Severity = "warning"

    def of(self, kind: ProblemKind) -> Severity:
        severity: Severity = getattr(self, kind)
        return severity


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with the labels of a recording, or of the dataset (recording "")."""

    severity: Severity
    recording: str
    kind: ProblemKind
    text: str


class Dataset(Section):
    """A dataset file."""

    name: str
    summary: str  # for the model card: what this model is, and what it is not for
    warmup_frames: Annotated[int, Field(ge=0)] = 20
    max_gap_s: Annotated[float, Field(ge=0.0)] = 0.5
    behaviours: Annotated[tuple[BehaviourSpec, ...], Field(min_length=1)]
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    window_px: Annotated[int, Field(ge=16)] | None = None  # one crop window for all; default: each finds its own
    split_by: str = "group"
    groups_share_animal: bool = False  # the groups are parts of recordings of one animal, and who reads is told so
    splits: SplitSettings = SplitSettings()
    problems: ProblemLevels = ProblemLevels()
    simulated: tuple[SimulatedRecording, ...] = ()
    recordings: tuple[VideoRecording, ...] = ()
    folders: tuple[VideoFolder, ...] = ()
    clips: tuple[ClipFolder, ...] = ()
    _specs: tuple[RecordingSpec, ...] = PrivateAttr(())
    _folder: Path = PrivateAttr(Path())

    @field_validator("split_by")
    @classmethod
    def _by_group(cls, split_by: str) -> str:
        if split_by != "group":
            raise ValueError(f"split_by = {split_by!r} is refused: {NO_RANDOM}")
        return split_by

    def all_recordings(self) -> tuple[RecordingSpec, ...]:
        """Every recording that the file names, in its order, with its split."""
        return self._specs

    def with_fold(self, fold: Fold) -> Dataset:
        """The same recordings with the splits of a fold; those that it does not name are trained on."""
        parts: tuple[tuple[Split, tuple[str, ...]], ...] = (
            ("train", tuple(spec.name for spec in self._specs)),
            ("validation", fold.validation),
            ("test", fold.test),
        )
        split_of = {name: split for split, names in parts for name in names}
        folded = self.model_copy()
        folded._specs = with_splits(self._specs, split_of)
        return folded

    def findings(self) -> tuple[Finding, ...]:
        """What a person should know about the file itself."""
        return tuple(chain.from_iterable(clip_findings(entry, self._folder) for entry in self.clips))

    @property
    def max_gap_frames(self) -> int:
        """Ticks without features that a lane bridges."""
        return round(self.max_gap_s * RATE_FPS)

    @property
    def caveats(self) -> tuple[str, ...]:
        """What has to stand beside every score."""
        if not self.groups_share_animal:
            return ()
        return ("Groups share an animal: neighbouring chunks are the same animal, so scores say little of others.",)


@dataclass(frozen=True, slots=True)
class Recording:
    """The N frames of a recording that show the animal in a window, in order."""

    name: str
    subject: str  # what scores are given for: the recording, or the group of a clip
    split: str
    ticks: NDArray[np.int64]  # [N] of the 10 fps grid
    crops: NDArray[np.uint8] | None  # [N, H, W, 3], mapped from a file where they are many; None: not needed
    channels: NDArray[np.float32] | None  # [N, M] kinematics; None: not needed
    truth: Marks  # [N, K]
    judged: NDArray[np.bool_]  # [N] the mark is somebody's judgement of this frame, not held from an earlier one


@dataclass(frozen=True, slots=True)
class _Files:
    """What is cached of a recording; crops and channels where they are needed."""

    rows: Path  # ticks and source frames, int64 [N, 2]
    crops: Path | None
    channels: Path | None  # float32 [N, len(CHANNELS)]

    def missing(self) -> tuple[Path, ...]:
        wanted = (self.rows, self.crops, self.channels)
        return tuple(path for path in wanted if path and not path.is_file())


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
    try:
        specs = _specs_of(dataset, path.parent)
    except MbrError as error:
        raise MbrError(f"Dataset {path}: {error}") from error
    found = {spec.split for spec in specs}
    # A dataset of test recordings only is one to evaluate on.
    for split in () if found == {"test"} else ("train", "validation"):
        if split not in found:
            raise MbrError(
                f"Dataset {path} has no {split} recordings. Give some recordings split = '{split}', or add recordings "
                "of other animals (groups)."
            )
    dataset._specs, dataset._folder = specs, path.parent
    return dataset


def _specs_of(dataset: Dataset, folder: Path) -> tuple[RecordingSpec, ...]:
    _check_behaviours(dataset)
    alone = len(dataset.recordings) == 1 and not dataset.folders
    own_group = "" if alone or dataset.groups_share_animal else None
    specs = [
        *map(simulated_spec, dataset.simulated),
        *(video_spec(entry, folder, own_group) for entry in dataset.recordings),
        *chain.from_iterable(folder_specs(entry, folder, own_group) for entry in dataset.folders),
        *chain.from_iterable(clip_specs(entry, folder) for entry in dataset.clips),
    ]
    if not specs:
        raise MbrError("it names no recording. Add [[recordings]], [[folders]], [[clips]] or simulated = [...].")
    if dataset.clips and dataset.window_px is None:
        raise MbrError(
            "clips are too short to settle a crop window. Give window_px = the side of the window in pixels."
        )
    check_names(specs)
    strangers = sorted(set(dataset.splits.groups) - {spec.group for spec in specs})
    if strangers:
        raise MbrError(f"splits.groups names {', '.join(strangers)}, which is no group of a recording. Mend the name.")
    shares = dataset.splits
    for spec in specs:
        if spec.split and shares.groups.get(spec.group, spec.split) != spec.split:
            raise MbrError(
                f"{spec.name} has split = '{spec.split}', its group {spec.group} has '{shares.groups[spec.group]}' in "
                "splits.groups. Keep one of the two."
            )
    given = {spec.name: spec.split or shares.groups.get(spec.group) for spec in specs}
    return with_splits(
        specs, splits.assign(specs, given, validation=shares.validation, test=shares.test, seed=shares.seed)
    )


def _check_behaviours(dataset: Dataset) -> None:
    names = [behaviour.name for behaviour in dataset.behaviours]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MbrError(f"the behaviour {', '.join(twice)} is there twice. Merge their columns into one.")
    strangers = sorted({name for entry in dataset.clips for name in entry.classes} - set(names))
    if strangers:
        raise MbrError(f"clips show {', '.join(strangers)}, which is no behaviour of the dataset ({', '.join(names)}).")


def annotations_of(spec: RecordingSpec, dataset: Dataset, cache: Path | None = None) -> Annotations:
    """The marks of every source frame of a recording; the columns are the dataset's behaviours in order.

    A simulated recording is rendered into `cache` if it is not there. Warnings are logged; raises MbrError for
    problems that the dataset file counts as errors.
    """
    annotations, problems = annotated(spec, dataset, cache)
    errors = [problem.text for problem in problems if problem.severity == "error"]
    if errors:
        raise MbrError(f"Recording {spec.name}: {' '.join(errors[:3])} See all problems: mbr-live dataset check.")
    for problem in problems:
        log.warning("%s: %s", spec.name, problem.text)
    return annotations


def annotated(
    spec: RecordingSpec, dataset: Dataset, cache: Path | None = None
) -> tuple[Annotations, tuple[Problem, ...]]:
    """As `annotations_of`, with the problems of the recording instead of an exception."""
    names = tuple(behaviour.name for behaviour in dataset.behaviours)
    if isinstance(spec.source, Clip):
        annotations, findings = _clip_annotations(spec.source, names)
    else:
        columns = {each.name: each.columns or (each.name,) for each in dataset.behaviours}
        annotations, findings = _video_annotations(spec, columns, cache or cache_folder())
    levels = dataset.problems
    problems = (Problem(levels.of(each.kind), spec.name, each.kind, each.text) for each in findings)
    return annotations, tuple(problem for problem in problems if problem.severity != "ignore")


def _clip_annotations(clip: Clip, behaviours: tuple[str, ...]) -> tuple[Annotations, tuple[Finding, ...]]:
    try:
        frames = len(sources.open_video(clip.video).times_ns())
    except MbrError as error:
        return _unlabelled(behaviours), (Finding("missing_video", str(error)),)
    of_class = np.array([name in clip.shown for name in behaviours], np.int8)
    return Annotations(behaviours, np.tile(of_class, (frames, 1))), ()


def _video_annotations(
    spec: RecordingSpec, columns: Mapping[str, Sequence[str]], cache: Path
) -> tuple[Annotations, tuple[Finding, ...]]:
    try:
        files = video_files(spec, cache)
        times_ns = _times_ns(spec, files)
    except MbrError as error:
        return _unlabelled(tuple(columns)), (Finding("missing_video", str(error)),)
    source = spec.source
    labels: tuple[Path, ...] = source.labels if isinstance(source, LabelledVideo) else ()
    if isinstance(source, SimulatedRecording):
        labels = (_rendered(source, cache)[1],)
    format_ = source.format if isinstance(source, LabelledVideo) else "auto"
    annotations, findings = read_annotations(labels, format_, columns, times_ns, [file.stem for file in files])
    if not np.any(annotations.marks != UNKNOWN):
        text = "no frame is labelled" if labels else "it has no label file"
        findings = (*findings, Finding("no_annotation", f"{text}; it is not used for training or scores."))
    return annotations, findings


def _unlabelled(behaviours: tuple[str, ...]) -> Annotations:
    return Annotations(behaviours, np.zeros((0, len(behaviours)), np.int8))


def sampled_frames(spec: RecordingSpec, cache: Path | None = None) -> NDArray[np.int64]:
    """The source frames of a recording that serve the 10 fps grid, int64 [T], without decoding it."""
    state: sampler.SamplerState | None = None
    chosen = []
    for number, time_ns in enumerate(_times_ns(spec, video_files(spec, cache)).tolist()):
        tick, state = sampler.sample(time_ns, state)
        if tick is not None:
            chosen.append(number)
    return np.array(chosen, np.int64)


def _times_ns(spec: RecordingSpec, files: Sequence[Path]) -> NDArray[np.int64]:
    """Presentation times of all source frames, int64 [N]."""
    return sources.JoinedFiles(spec.name, [sources.open_video(file) for file in files]).times_ns()


def video_files(spec: RecordingSpec, cache: Path | None = None) -> tuple[Path, ...]:
    """The video files of a recording, in order; a simulated one is rendered into `cache` if it is not there."""
    source = spec.source
    if isinstance(source, LabelledVideo):
        return source.videos
    if isinstance(source, Clip):
        return (source.video,)
    folder = cache or cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    video, truth = _rendered(source, folder)
    if not (video.is_file() and truth.is_file()):
        simulate.record(source.condition, source.seed, 60.0 * source.minutes, video, truth)
    return (video,)


def cache_folder() -> Path:
    """Where rendered recordings and crops are kept: $XDG_CACHE_HOME/mbr-live/training."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mbr-live" / "training"


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
            tasks = [
                workers.submit(_prepare_one, spec, dataset.window_px, dataset.max_gap_frames, cache, files[spec.name])
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


def _prepare_one(spec: RecordingSpec, window_px: int | None, max_gap_frames: int, cache: Path, files: _Files) -> None:
    """Make what is missing of a recording."""
    cv2.setNumThreads(1)
    source = sources.JoinedFiles(spec.name, [sources.open_video(video) for video in video_files(spec, cache)])
    rows = _write_frames(source, window_px, max_gap_frames, files)
    if not len(rows) and not isinstance(spec.source, Clip):
        raise MbrError(
            f"{spec.name}: the animal was not found for long enough to crop it. Give a longer recording, or "
            "window_px = the side of the crop window."
        )
    _save(files.rows, rows)


def _files(spec: RecordingSpec, dataset: Dataset, cache: Path) -> _Files:
    """The files of a recording in the cache, named by all that they depend on."""
    if isinstance(spec.source, SimulatedRecording):
        pictures = spec.source.model_dump_json(exclude={"split"})
    else:
        pictures = " ".join(_content_hash(video, cache) for video in video_files(spec))
    window = f" window {dataset.window_px}" if dataset.window_px else ""
    key = key_of(pictures + window, (*RENDERED_BY, *CROPPED_BY))
    measured = key_of(f"{pictures}{window} gap {dataset.max_gap_frames}", (*RENDERED_BY, *MEASURED_BY))
    name = file_name(spec.name)
    return _Files(
        cache / f"{name}.{key}.rows.npy",
        cache / f"{name}.{key}.crops.npy" if dataset.model.extractor != "none" else None,
        cache / f"{name}.{measured}.channels.npy" if dataset.model.channels else None,
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


def _write_frames(
    source: sources.Source, window_px: int | None, max_gap_frames: int, files: _Files
) -> NDArray[np.int64]:
    """Write the missing crops and channels of all 10 fps frames with an animal; their rows, int64 [N, 2]."""
    state, seen, moved = locate.initial_state(), BlindState(), KinematicState()
    rows: list[tuple[int, int]] = []
    channels: list[NDArray[np.float32]] = []
    missing = files.missing()
    with ExitStack() as stack:
        write = stack.enter_context(_crop_file(files.crops)) if files.crops and files.crops in missing else None
        for frame in sources.sampled(source, source.name):
            blind, seen = is_blind(frame.pixels, seen)
            if blind:
                continue
            sighting, state = locate.locate(frame.pixels, state)
            side = window_px or locate.window_px(state)
            if not sighting.found or side is None:
                continue
            if write:
                write(locate.crop(frame.pixels, sighting.x_px, sighting.y_px, side))
            if files.channels in missing:
                if rows and frame.index - rows[-1][0] - 1 > max_gap_frames:
                    moved = KinematicState()  # as the pipeline resets a lane
                measured, moved = kinematics(silhouette(frame.pixels, sighting, state, side), moved)
                channels.append(measured)
            rows.append((frame.index, frame.source_frame))
    if files.channels in missing and files.channels:
        _save(files.channels, np.array(channels, np.float32).reshape(-1, len(CHANNELS)))
    return np.array(rows, np.int64).reshape(-1, 2)


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
    crops, channels = None, None
    if files.crops:
        # A mapped file stays open: thousands of clips would be more than a process may have.
        crops = np.load(files.crops, mmap_mode="r" if files.crops.stat().st_size > _MAPPED_FROM_BYTES else None)
    if files.channels:
        chosen = [CHANNELS.index(name) for name in model.channels]
        channels = np.load(files.channels, allow_pickle=False)[:, chosen]
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
        channels=channels,
        truth=annotations.at(source_frames),
        judged=judged,
    )


def _rendered(recording: SimulatedRecording, cache: Path) -> tuple[Path, Path]:
    """Video and truth of a simulated recording in the cache."""
    key = key_of(recording.model_dump_json(exclude={"split"}), RENDERED_BY)
    return cache / f"{recording.name}.{key}.mp4", cache / f"{recording.name}.{key}.csv"


def key_of(identity: str, modules: Sequence[str]) -> str:
    """Hash of what a file is made from, of the code that makes it and of the libraries below."""
    digest = hashlib.sha256(identity.encode())
    digest.update(f"{av.__version__} {cv2.__version__} {np.__version__}".encode())
    for file in sorted(file for module in modules for file in Path(__file__).parent.glob(module)):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def file_name(name: str) -> str:
    """The name of a recording, as files can be called."""
    return re.sub(r"[^\w.-]", "_", name)


def _save(path: Path, array: NDArray[np.generic]) -> None:
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    partial.replace(path)
