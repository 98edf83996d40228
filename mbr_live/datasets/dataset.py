"""What a model is trained on: the dataset file, and the videos and marks of its recordings.

A simulated recording is rendered to an H.264 file, which is cached under a key of everything that it depends on.
Labels are looked up by source frame. A frame that nobody labelled stays UNKNOWN: it is masked, never a negative.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Self

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator

from mbr_live.annotation.formats import read_annotations
from mbr_live.annotation.marks import Annotations, Finding, ProblemKind, Severity
from mbr_live.datasets import splits
from mbr_live.datasets.extractor_config import FROM_SCRATCH, IMAGENET, OWN
from mbr_live.datasets.recordings import (
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
    check_videos,
    clip_findings,
    clip_specs,
    folder_specs,
    simulated_spec,
    video_spec,
    with_splits,
)
from mbr_live.datasets.search_space import TuneSettings
from mbr_live.datasets.settings import BehaviourSpec, ModelSettings, ProblemLevels, SplitSettings, TrainingSettings
from mbr_live.datasets.splits import Fold, Split
from mbr_live.manifest import clashing_columns
from mbr_live.mistakes import mistakes
from mbr_live.names import BundleName
from mbr_live.simulation import camera as simulate
from mbr_live.stages import sampler
from mbr_live.types import RATE_FPS, UNKNOWN, MbrError
from mbr_live.video import sources

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Told the stage of the work, the units done and the units in all."""

# The modules that a rendered video depends on; a change of one of them makes it anew.
RENDERED_BY = ("simulation/*.py",)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with the labels of a recording, or of the dataset (recording "")."""

    severity: Severity
    recording: str
    kind: ProblemKind
    text: str


class Dataset(Section):
    """A dataset file. Its name, and those of its behaviours, are what a bundle that is trained on it says."""

    name: BundleName
    summary: str  # for the model card: what this model is, and what it is not for
    warmup_frames: Annotated[int, Field(ge=0)] = 20
    max_gap_s: Annotated[float, Field(ge=0.0)] = 0.5
    behaviours: Annotated[tuple[BehaviourSpec, ...], Field(min_length=1)]
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    tune: TuneSettings | None = None
    root: str = "."  # folder that the paths are relative to, itself relative to that of the file
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

    @model_validator(mode="after")
    def _changes_what_it_sees(self) -> Self:
        training, pictures = self.training, self.model.extractor != "none"
        if not pictures and (training.recording_augmentation.copies or training.fine_tuning.steps):
            raise ValueError("recording_augmentation and fine_tuning are of pictures, and extractor is 'none'")
        if pictures and training.variation.copies:
            raise ValueError("training.variation changes silhouettes, not crops: give it with extractor = 'none' alone")
        return self

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

    def with_sections(self, sections: Mapping[str, Any]) -> Dataset:
        """The same recordings with other sections, as plain data; pydantic's ValidationError where they do not fit."""
        changed = Dataset.model_validate(self.model_dump() | dict(sections))
        changed._specs, changed._folder = self._specs, self._folder
        return changed

    def with_weights(self, weights_file: Path) -> Dataset:
        """The same with an extractor that starts from a file; MbrError where it does not start from any."""
        if self.model.extractor in OWN:
            raise MbrError(
                f"Dataset {self.name}: its extractor is '{self.model.extractor}', which starts from no weights, and "
                f"{weights_file} was given. Leave --weights out, or name a published extractor under [model]."
            )
        model = self.model.model_copy(update={"weights": str(weights_file.resolve())})
        return self.model_copy(update={"model": model})

    @property
    def weights_file(self) -> Path | None:
        """The file of weights that the extractor starts from; None where it starts from none, or from the hub."""
        weights = self.model.initial_weights
        return None if weights in (FROM_SCRATCH, IMAGENET) else self._folder / weights

    def findings(self) -> tuple[Finding, ...]:
        """What a person should know about the file itself."""
        return tuple(chain.from_iterable(clip_findings(entry, self._folder) for entry in self.clips))

    @property
    def is_fitted(self) -> bool:
        """Whether anything is left to the validation recordings: how labels are decided, or which weights are kept."""
        training = self.training
        given = isinstance(training.threshold, float) and training.calibration == "none"
        chosen = training.early_stopping.patience_checks or training.fine_tuning.steps
        return bool(chosen) or not given or any("fit" in (each.min_bout_s, each.bridge_s) for each in self.behaviours)

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


def read_dataset(path: Path) -> Dataset:
    """Read and check a dataset file; raises MbrError with what is wrong."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        dataset = Dataset.model_validate(document)
    except OSError as error:
        raise MbrError(f"Dataset {path} can not be read ({error.strerror}). Check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MbrError(f"Dataset {path} is not TOML: {error}. Mend that line.") from error
    except ValidationError as error:
        raise MbrError(f"Dataset {path}: {'; '.join(mistakes(document, error))}. Mend that entry.") from error
    try:
        specs = _specs_of(dataset, path.parent / dataset.root)
    except MbrError as error:
        raise MbrError(f"Dataset {path}: {error}") from error
    found = {spec.split for spec in specs}
    # A dataset of test recordings only is one to evaluate on.
    needed = ("train", "validation") if dataset.is_fitted else ("train",)
    for split in () if found == {"test"} else needed:
        if split not in found:
            raise MbrError(
                f"Dataset {path} has no {split} recordings. Give some recordings split = '{split}', or add recordings "
                "of other animals (groups)."
            )
    dataset._specs, dataset._folder = specs, path.parent / dataset.root
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
    check_videos(specs)
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
    if clashing := clashing_columns(names):
        raise MbrError(
            f"the behaviours {', '.join(names)} would give label logs two columns {', '.join(clashing)}. Call them "
            "otherwise, and name what they are called in labels with columns = [...]."
        )
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
        frames = len(sources.VideoFile(clip.video).times_ns())
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
    return sources.JoinedFiles(spec.name, [sources.VideoFile(file) for file in files]).times_ns()


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


def _rendered(recording: SimulatedRecording, cache: Path) -> tuple[Path, Path]:
    """Video and truth of a simulated recording in the cache."""
    key = key_of(recording.model_dump_json(exclude={"split"}), RENDERED_BY)
    return cache / f"{recording.name}.{key}.mp4", cache / f"{recording.name}.{key}.csv"


def key_of(identity: str, modules: Sequence[str]) -> str:
    """Hash of what a file is made from, of the code that makes it and of the libraries below."""
    digest = hashlib.sha256(identity.encode())
    digest.update(f"{av.__version__} {cv2.__version__} {np.__version__}".encode())
    for module in sorted(modules):
        files = sorted(Path(__file__).parents[1].glob(module))
        if not files:
            raise ValueError(f"{module}: no such module")
        for file in files:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def file_name(name: str) -> str:
    """The name of a recording, as files can be called."""
    return re.sub(r"[^\w.-]", "_", name)
