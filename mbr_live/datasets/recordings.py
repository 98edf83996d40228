"""Which recordings a dataset file names: simulated ones, videos, folders of videos, folders of clips.

All of them become `RecordingSpec`s. Paths in a dataset file are relative to it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from mbr_live.annotation.formats import Format
from mbr_live.annotation.marks import Finding
from mbr_live.datasets.splits import Split
from mbr_live.types import MbrError

VIDEO_SUFFIXES = (".mp4", ".mkv", ".avi", ".mov", ".m4v", ".webm", ".mpg", ".mpeg")

NO_RANDOM = (
    "frames or clips of one animal on both sides of a split make a model look better than it is, since neighbours "
    "are nearly the same picture. Split by group (animal): give each recording a group"
)


def _no_random_split(value: object) -> object:
    if isinstance(value, str) and re.search(r"random|frame|clip", value):
        raise ValueError(f"{value!r} is refused: {NO_RANDOM}")
    return value


GivenSplit = Annotated[Split | None, BeforeValidator(_no_random_split)]


class Section(BaseModel):
    """A table of a dataset file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SimulatedRecording(Section):
    """One recording of the simulated camera."""

    condition: str
    seed: Annotated[int, Field(ge=0)]
    minutes: Annotated[float, Field(gt=0.0, le=120.0)]
    split: Annotated[Split, BeforeValidator(_no_random_split)]

    @property
    def name(self) -> str:
        return f"{self.condition}-{self.seed}"


class VideoRecording(Section):
    """One video of the lab, or several files on end that are one recording."""

    name: str | None = None  # default: the stem of the (first) video
    video: str | tuple[str, ...]
    labels: str | tuple[str, ...] = ()
    format: Format = "auto"
    group: str | None = None  # the animal
    camera: str = "camera"
    condition: str = "all"
    split: GivenSplit = None


class VideoFolder(Section):
    """All videos that a pattern finds, each a recording; `{stem}` stands for the name of the video."""

    videos: str
    labels: str | tuple[str, ...] = ()
    name: str = "{stem}"
    format: Format = "auto"
    group: str | None = None
    group_pattern: str | None = None  # one capture group, searched for in the stem
    camera: str = "camera"
    condition: str = "all"
    split: GivenSplit = None

    _patterns = field_validator("group_pattern")(lambda pattern: _one_capture_group(pattern))


class ClipFolder(Section):
    """Short clips in a folder per class. A clip shows the behaviour of its class in all frames, and no other."""

    folder: str
    classes: dict[str, tuple[str, ...]]  # behaviour -> folders of its clips
    negatives: tuple[str, ...] = ()  # folders of clips that show none of the behaviours
    group_pattern: str  # one capture group, searched for in the stem
    unmatched: Literal["train", "skip"] = "train"  # clips whose name the pattern does not match
    camera: str = "camera"
    condition: str = "all"
    split: GivenSplit = None

    _patterns = field_validator("group_pattern")(lambda pattern: _one_capture_group(pattern))


def _one_capture_group(pattern: str | None) -> str | None:
    if pattern is None:
        return None
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    if groups != 1:
        raise ValueError(f"{pattern!r} has {groups} capture groups; put one pair of parentheses around the group")
    return pattern


@dataclass(frozen=True, slots=True)
class LabelledVideo:
    """Video files of one recording in order, and its label files."""

    videos: tuple[Path, ...]
    labels: tuple[Path, ...]
    format: Format


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip, and the behaviours that it shows in all its frames."""

    video: Path
    shown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RecordingSpec:
    """One recording of a dataset: whose it is, what it is for and where its frames and labels come from."""

    name: str
    log_name: str  # of its label log: `<log_name>.labels.csv`, as `mbr-live batch` names it
    group: str
    camera: str
    condition: str
    split: Split | None  # None: not settled yet
    source: SimulatedRecording | LabelledVideo | Clip
    grouped: bool = True  # False: nobody knows whose it is, so it is trained on and never tested


def files_of(spec: RecordingSpec) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Videos and label files of a recording; a simulated one has none of its own."""
    if isinstance(spec.source, LabelledVideo):
        return spec.source.videos, spec.source.labels
    return ((spec.source.video,) if isinstance(spec.source, Clip) else ()), ()


def simulated_spec(entry: SimulatedRecording) -> RecordingSpec:
    """A simulated recording is a world, and an animal, of its own."""
    return RecordingSpec(entry.name, entry.name, entry.name, "simulated", entry.condition, entry.split, entry)


def video_spec(entry: VideoRecording, folder: Path, default_group: str | None) -> RecordingSpec:
    """The recording of one `[[recordings]]` entry; `default_group` "" stands for a group of its own."""
    videos, labels = (tuple(folder / each for each in listed(value)) for value in (entry.video, entry.labels))
    if not videos:
        raise MbrError(f"Recording {entry.name}: it has no video. Give video = 'path', or a list of paths to join.")
    name = entry.name or videos[0].stem
    group = entry.group or default_group
    if group is None:
        raise MbrError(
            f"Recording {name} has no group. Give group = the animal, so that no animal is both trained on and tested."
        )
    # `batch` names the log of one file after the file, and that of a joined recording as it is told.
    log_name = videos[0].stem if len(videos) == 1 else name
    source = LabelledVideo(videos, labels, entry.format)
    return RecordingSpec(name, log_name, group or name, entry.camera, entry.condition, entry.split, source)


def folder_specs(entry: VideoFolder, folder: Path, default_group: str | None) -> Iterator[RecordingSpec]:
    """The recordings of one `[[folders]]` entry, sorted by path."""
    # Path.glob takes no absolute pattern.
    matches = glob(entry.videos, root_dir=folder, recursive=True)  # noqa: PTH207
    found = _videos(folder / match for match in matches)
    if not found:
        raise MbrError(f"Folder {folder / entry.videos}: found no video there. Check the pattern videos = '...'.")
    for path in found:
        group = entry.group or default_group
        if entry.group_pattern is not None:
            group = _group_in(path.stem, entry.group_pattern)
            if group is None:
                raise MbrError(f"{path}: group_pattern {entry.group_pattern!r} is not in its name. Mend the pattern.")
        yield video_spec(
            VideoRecording(
                name=_filled(entry.name, path.stem),
                video=str(path),
                labels=tuple(_filled(each, path.stem) for each in listed(entry.labels)),
                format=entry.format,
                group=group,
                camera=entry.camera,
                condition=entry.condition,
                split=entry.split,
            ),
            folder,
            default_group,
        )


def clip_specs(entry: ClipFolder, folder: Path) -> Iterator[RecordingSpec]:
    """The clips of one `[[clips]]` entry, sorted by class and name."""
    root = folder / entry.folder
    shown: dict[str, tuple[str, ...]] = dict.fromkeys(entry.negatives, ())
    for behaviour, classes in entry.classes.items():
        for name in classes:
            shown[name] = (*shown.get(name, ()), behaviour)
    for name in sorted(shown):
        clips = _videos((root / name).iterdir()) if (root / name).is_dir() else []
        if not clips:
            raise MbrError(f"Clips {root / name}: found no video there. Expected a folder of clips for each class.")
        for path in clips:
            found = _group_in(path.stem, entry.group_pattern)
            if found is None and entry.unmatched == "skip":
                continue
            group, split = (found, entry.split) if found else (f"{Path(entry.folder).name}-unmatched", "train")
            clip = Clip(path, shown[name])
            yield RecordingSpec(
                f"{name}-{path.stem}", path.stem, group, entry.camera, entry.condition, split, clip, found is not None
            )


def _group_in(stem: str, pattern: str) -> str | None:
    """What the capture group of a pattern holds in the name of a video; None where it holds nothing."""
    match = re.search(pattern, stem)
    return (match[1] or None) if match else None


def clip_findings(entry: ClipFolder, folder: Path) -> Iterator[Finding]:
    """Folders of clips that nobody has given a meaning."""
    root = folder / entry.folder
    named = {*entry.negatives, *(name for names in entry.classes.values() for name in names)}
    unused = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name not in named)
    if unused:
        yield Finding("unused_class", f"{root}: folders in no class: {', '.join(unused)}. Or list them in negatives.")


def check_names(specs: Sequence[RecordingSpec]) -> None:
    """MbrError where two recordings have one name."""
    counts = Counter(spec.name for spec in specs)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise MbrError(
            f"{', '.join(twice[:5])} more than once. A recording has one split and a name of its own: "
            "give name = '...', in [[folders]] for example name = 'left-{stem}'."
        )


def check_videos(specs: Sequence[RecordingSpec]) -> None:
    """MbrError where one video is of two groups: these may be in two splits, now or in a fold."""
    seen: dict[Path, RecordingSpec] = {}
    for spec in specs:
        for video in files_of(spec)[0]:
            other = seen.setdefault(video.resolve(), spec)
            if other.group != spec.group:
                raise MbrError(
                    f"{video} is in two groups: {other.name} in {other.group}, {spec.name} in {spec.group}. A model "
                    "tested on a video that it has seen looks better than it is. Name it once, or give both one group."
                )


def by_log_name(specs: Sequence[RecordingSpec]) -> dict[str, RecordingSpec]:
    """The recordings by the name of their label log; MbrError where two would have the same log."""
    found: dict[str, RecordingSpec] = {}
    for spec in specs:
        other = found.setdefault(spec.log_name, spec)
        if other is not spec:
            raise MbrError(
                f"{other.name} and {spec.name} would both have the label log {spec.log_name}.labels.csv. Rename one "
                "of the videos, or keep the logs of the two in different folders and look at one folder at a time."
            )
    return found


def with_splits(specs: Sequence[RecordingSpec], splits: dict[str, Split]) -> tuple[RecordingSpec, ...]:
    """The same recordings, each with its split."""
    return tuple(replace(spec, split=splits[spec.name]) for spec in specs)


def _videos(paths: Iterable[Path]) -> list[Path]:
    videos = sorted(path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES)
    for path in videos:
        if not path.exists():
            raise MbrError(f"{path}: links to a file that is not there. Mount its drive, or remove the link.")
    return videos


def listed(value: str | tuple[str, ...]) -> tuple[str, ...]:
    """One or several, as several."""
    return (value,) if isinstance(value, str) else value


def _filled(template: str, stem: str) -> str:
    return template.replace("{stem}", stem)
