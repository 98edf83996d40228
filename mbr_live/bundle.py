"""Model bundles: a folder with a manifest, one or two ONNX graphs and a card. No pickle and no code.

    manifest.json    what the model is; sizes and hashes of the other files
    features.onnx    crops uint8 [B, H, W, 3] RGB -> features float32 [B, D]; not there where D is 0. The crops are
                     of the kind that the manifest names: pixels, or the silhouette of the animal
    features.int8.onnx  the same in 8-bit integers, where the bundle was calibrated for it
    temporal.onnx    causal: features [B, D + M], state [B, S] -> logits [B, K], state_out [B, S]
                     looks ahead: features [1, T, D + M] -> logits [1, T, K], of a whole stretch at once
    card.md          for people: what it was trained on, how well it does, what it must not be used for
    reference.json   what it saw and said when it was made (`mbr_live.drift`); not there in bundles from before

The temporal network takes the D features of the crop and then M kinematic channels, by name (`kinematics`); both are as
they come, since what they are standardised by is inside the graph.

A bundle is checked whole before anything of it is used: every file, its size and its hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mbr_live.places import check_writable
from mbr_live.types import CROP_PX, RATE_FPS, MbrError

FORMAT: Literal[1] = 1
MANIFEST = "manifest.json"
FEATURES = "features.onnx"
FEATURES_INT8 = "features.int8.onnx"
TEMPORAL = "temporal.onnx"
CARD = "card.md"
REFERENCE = "reference.json"
CONTENTS = (FEATURES, TEMPORAL, CARD)  # of a bundle with a feature network
OPTIONAL = (REFERENCE,)

_LOG_COLUMNS = ("frame", "source_frame", "time_ns", "status", "x_px", "y_px")

CropKind = Literal["rgb", "silhouette"]
"""What the feature network sees of the window around the animal: its pixels, or the animal in white on black."""


def bundle_name(name: str) -> str:
    """A name that a bundle may have; ValueError for any other."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name):
        raise ValueError(
            f"{name!r} can not name a bundle. Expected at most 80 letters of a to z, digits, '.', '_' and '-', and a "
            "letter or digit at the beginning"
        )
    return name


def _behaviour_name(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name):
        raise ValueError(
            f"{name!r} can not name a behaviour. Expected at most 40 small letters of a to z, digits and '_', and a "
            "letter at the beginning"
        )
    return name


def clashing_columns(behaviours: Sequence[str]) -> list[str]:
    """Columns that a label log of these behaviours would have twice."""
    columns = [*_LOG_COLUMNS, *behaviours, *(f"p_{name}" for name in behaviours)]
    return sorted({column for column in columns if columns.count(column) > 1})


BundleName = Annotated[str, AfterValidator(bundle_name)]
BehaviourName = Annotated[str, AfterValidator(_behaviour_name)]
Threshold = Annotated[float, Field(gt=0.0, lt=1.0)]
Seconds = Annotated[float, Field(ge=0.0, le=3600.0)]
Count = Annotated[int, Field(ge=1)]
NoOrCount = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Behaviour(_Record):
    """One output of the model and how a bout of it is decided. Times in seconds."""

    name: BehaviourName
    enter: Threshold
    exit: Threshold
    min_bout_s: Seconds
    bridge_s: Seconds

    @model_validator(mode="after")
    def _exit_not_above_enter(self) -> Self:
        if self.exit > self.enter:
            raise ValueError(f"the exit threshold {self.exit} is above the enter threshold {self.enter}")
        return self


class FileRecord(_Record):
    """Size and SHA-256 of one file of a bundle."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class Score(_Record):
    """How well one behaviour was found in one recording that the model was not trained on."""

    recording: str
    behaviour: str
    frames: Count
    prevalence: Share
    pr_auc: Share | None  # average precision; null where the behaviour does not occur
    f1: Share | None  # at the enter threshold


class Fit(_Record):
    """How the labels of one behaviour are decided, and what of that was fitted to the validation recordings."""

    behaviour: str
    thresholds: Literal["given", "fit", "shrunk", "members", "usual"]  # shrunk: fitted, and drawn towards 0.5
    min_bout: Literal["given", "fit", "members", "usual"]  # members: their mean; usual: there was nothing to fit to
    bridge: Literal["given", "fit", "members", "usual"]
    calibration: Literal["none", "platt", "temperature", "weights"]  # weights: those of an ensemble, learnt
    scale: Annotated[float, Field(gt=0.0)] = 1.0  # of the logits; in the graph already, as is the offset
    offset: float = 0.0
    frames: NoOrCount  # validated, that somebody labelled
    bouts: NoOrCount  # in them
    pr_auc: Share | None  # over all validation recordings together, as are the figures below
    f1: Share | None
    calibration_error: Share | None  # expected (Naeini et al. 2015)
    calibration_error_before: Share | None  # without the calibration


class Data(_Record):
    """The recordings of one group under one condition, as far as they show the animal."""

    group: str
    condition: str
    camera: str
    split: str
    recordings: Count
    frames: Count
    labelled: NoOrCount  # frames that somebody labelled
    shown: dict[str, int]  # of these, by behaviour


class TrainingCard(_Record):
    """What the model was trained on, in words and numbers."""

    summary: str
    date: str
    seed: int
    recordings: tuple[str, ...]
    frames: Count
    steps: dict[str, int]
    versions: dict[str, str]
    scores: tuple[Score, ...]
    data: tuple[Data, ...] = ()  # none in bundles from before it was kept
    fits: tuple[Fit, ...] = ()  # one for each behaviour; none in bundles from before they were kept


class Int8Card(_Record):
    """How the int8 feature network was made, and what it costs, all of it against the float32 one on the same frames.

    PR-AUC is the average precision over all frames with truth of all recordings together.
    """

    date: str
    versions: dict[str, str]
    recordings: tuple[str, ...]  # file names
    calibration_frames: Count
    calibration_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # of the list of these frames
    compared_frames: Count
    labels_differ: Share  # of these frames, in at least one behaviour
    pr_auc: dict[str, tuple[Share, Share]]  # per behaviour with truth: float32, int8; empty: there was no truth
    feature_error: Annotated[float, Field(ge=0.0)]  # relative, on the probe of `mbr_live.engines.parity`


class Manifest(_Record):
    """What a bundle says of itself. Frames are of the 10 fps grid."""

    format: Literal[1]
    name: BundleName
    behaviours: Annotated[tuple[Behaviour, ...], Field(min_length=1, max_length=64)]
    crop_px: Count
    rate_fps: Count
    feature_dim: NoOrCount  # D; 0: no feature network
    kinematics: tuple[str, ...] = ()  # [M] channels, of `mbr_live.stages.kinematics`
    kinematics_version: NoOrCount = 0  # of what these names mean; 0 where there are none
    crop: CropKind = "rgb"  # what the feature network sees
    extractor: str = ""  # what the feature network is, for people
    window_px: Annotated[int, Field(ge=16)] | None = None  # crop window of the training recordings, where it was given
    causal: bool = True  # False: it looks ahead, for recorded files alone
    state_size: NoOrCount  # of the one-step form; 0 for a model that looks ahead, which has none
    receptive_field_frames: NoOrCount  # that an output can depend on; 0: no bound
    warmup_frames: NoOrCount
    max_gap_s: Seconds
    int8: Int8Card | None = None  # None: float32 alone
    files: dict[str, FileRecord]
    training: TrainingCard

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        if twice := clashing_columns(self.behaviour_names):
            raise ValueError(f"behaviour names clash with each other or with a column of the label log: {twice}")
        return self

    @model_validator(mode="after")
    def _state_is_of_a_causal_model(self) -> Self:
        if self.causal != (self.state_size > 0):
            expected = "at least 1 in a causal bundle" if self.causal else "0 in one that looks ahead (causal: false)"
            raise ValueError(f"state_size is {self.state_size}, expected {expected}")
        return self

    @model_validator(mode="after")
    def _sees_something(self) -> Self:
        if not self.input_dim:
            raise ValueError("feature_dim is 0 and there are no kinematics: the model would see nothing")
        if bool(self.kinematics) != bool(self.kinematics_version) or len(set(self.kinematics)) < len(self.kinematics):
            raise ValueError("kinematics and kinematics_version do not fit, or a channel is there twice")
        return self

    @model_validator(mode="after")
    def _int8_is_of_a_feature_network(self) -> Self:
        if self.int8 and not self.feature_dim:
            raise ValueError("int8 is of the feature network, and there is none (feature_dim is 0)")
        return self

    @property
    def input_dim(self) -> int:
        """D + M, numbers that the temporal network takes per frame."""
        return self.feature_dim + len(self.kinematics)

    @property
    def contents(self) -> tuple[str, ...]:
        """The files of the bundle beside its manifest."""
        if not self.feature_dim:
            return TEMPORAL, CARD
        return (*CONTENTS, FEATURES_INT8) if self.int8 else CONTENTS

    @property
    def behaviour_names(self) -> tuple[str, ...]:
        return tuple(behaviour.name for behaviour in self.behaviours)

    @property
    def max_gap_frames(self) -> int:
        """A gap of at most this many frames is bridged by holding the last features."""
        return self.frames(self.max_gap_s)

    @property
    def min_bout_frames(self) -> tuple[int, ...]:
        return tuple(self.frames(behaviour.min_bout_s) for behaviour in self.behaviours)

    @property
    def bridge_frames(self) -> tuple[int, ...]:
        return tuple(self.frames(behaviour.bridge_s) for behaviour in self.behaviours)

    def frames(self, seconds: float) -> int:
        """Nearest number of frames to a time."""
        return round(seconds * self.rate_fps)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files have been verified. `sha256` is of manifest.json and so pins every file."""

    path: Path
    manifest: Manifest
    sha256: str

    def read(self, name: str) -> bytes:
        """The bytes of one file, verified again: what is used is what was hashed.

        Raises MbrError where the file has changed since the bundle was loaded.
        """
        return _read_verified(self.path, name, self.manifest.files[name])


def load_bundle(path: Path) -> Bundle:
    """Check the bundle in folder `path` whole; raises MbrError with what is wrong and what to do."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise MbrError(f"Bundle {path} {what}. Expected a folder with {MANIFEST}: check the path.")
    text = _read_manifest(path)
    manifest = _parse_manifest(path, text)
    _check_supported(path, manifest)
    _check_listing(path, manifest)
    for name, record in manifest.files.items():
        _read_verified(path, name, record)
    return Bundle(path, manifest, hashlib.sha256(text).hexdigest())


def check_live(bundle: Bundle) -> None:
    """Raises MbrError for a bundle that looks ahead: a live label can not wait for later frames."""
    if not bundle.manifest.causal:
        raise MbrError(
            f"Bundle {bundle.path} ({bundle.manifest.name}) looks ahead: its labels depend on frames that a live "
            "camera has yet to deliver. Live needs a causal bundle: give one, or label recorded files with this one: "
            "mbr-live batch."
        )


def write_bundle(path: Path, manifest: Manifest, contents: Mapping[str, bytes]) -> Bundle:
    """Write a bundle to folder `path` and load it back.

    `contents` holds the files that `manifest.contents` names, and any of OPTIONAL; `manifest.files` is replaced by
    their records.
    The folder is written beside and renamed, so that nobody sees half a bundle. A bundle that is there is
    replaced; anything else there is left alone and raises MbrError.
    """
    optional = [name for name in OPTIONAL if name in contents]
    if sorted(contents) != sorted([*manifest.contents, *optional]):
        raise MbrError(f"Bundle {path}: contents are {sorted(contents)}, expected {sorted(manifest.contents)}.")
    path = path.resolve()
    check_replaceable(path)
    records = {name: _record(contents[name]) for name in (*manifest.contents, *optional)}
    text = manifest.model_copy(update={"files": records}).model_dump_json(indent=2) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as beside:
        fresh = Path(beside, "new")
        fresh.mkdir()
        for name, content in {**contents, MANIFEST: text.encode()}.items():
            _write_synced(fresh / name, content)
        load_bundle(fresh)
        if path.exists():
            path.rename(Path(beside, "old"))
        fresh.rename(path)
    return load_bundle(path)


def _read_manifest(path: Path) -> bytes:
    file = path / MANIFEST
    if not file.is_file():
        raise MbrError(f"{path} is not a bundle: it has no {MANIFEST}. Give the folder that contains one.")
    return file.read_bytes()


def _parse_manifest(path: Path, text: bytes) -> Manifest:
    subject = f"{path / MANIFEST}"
    try:
        document: Any = json.loads(text)
    except ValueError as error:
        raise MbrError(f"{subject} is not JSON ({error}). It is damaged: copy the bundle again.") from error
    if not isinstance(document, dict) or "format" not in document:
        raise MbrError(f"{subject} is no bundle manifest (no 'format'). It is of another program.")
    found = document["format"]
    if type(found) is not int or found != FORMAT:
        raise MbrError(
            f"{subject} has format {found!r}; this program reads format {FORMAT}. "
            "Use the program version that the bundle was made for, or train it anew."
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise MbrError(f"{subject} is not valid: {_first_lines(error)}. Copy the bundle again.") from error


def _first_lines(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False)
    said = [f"{'.'.join(map(str, item['loc'])) or 'manifest'}: {item['msg']}" for item in found[:3]]
    return "; ".join(said) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _check_supported(path: Path, manifest: Manifest) -> None:
    for what, found, expected in (
        ("frames per second", manifest.rate_fps, RATE_FPS),
        ("crop side in pixels", manifest.crop_px, CROP_PX),
    ):
        if found != expected:
            raise MbrError(f"Bundle {path}: {what} {found}, this program needs {expected}. Train it anew.")


def _check_listing(path: Path, manifest: Manifest) -> None:
    """The manifest names exactly the files of a bundle, and the folder holds exactly those."""
    for name in manifest.files:
        if Path(name).name != name or "\\" in name or name == "..":
            raise MbrError(f"Bundle {path}: the manifest names {name!r}, outside the folder. Do not use it.")
    expected = set(manifest.contents) | (set(manifest.files) & set(OPTIONAL))
    if set(manifest.files) != expected:
        raise MbrError(f"Bundle {path}: the manifest lists {sorted(manifest.files)}, expected {sorted(expected)}.")
    present = {entry.name for entry in path.iterdir()}
    missing = sorted(expected - present)
    if missing:
        raise MbrError(f"Bundle {path} lacks {', '.join(missing)}. Copy the bundle again.")
    extra = sorted(present - expected - {MANIFEST})
    if extra:
        raise MbrError(f"Bundle {path} holds {', '.join(extra)}, not part of it. Move it out of the folder.")


def _read_verified(path: Path, name: str, record: FileRecord) -> bytes:
    file = path / name
    if file.is_symlink() or not file.is_file():
        raise MbrError(f"Bundle {path}: {name} is not a plain file. Copy the bundle again, with its files.")
    size = file.stat().st_size
    if size != record.bytes:
        raise MbrError(
            f"Bundle {path}: {name} has {size} bytes, the manifest says {record.bytes}. "
            "It is truncated or of another bundle: copy the bundle again."
        )
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != record.sha256:
        raise MbrError(
            f"Bundle {path}: {name} has SHA-256 {digest[:12]}…, the manifest says {record.sha256[:12]}…. "
            "It was changed after training: copy the bundle again from where you trust it."
        )
    return content


def check_replaceable(path: Path) -> None:
    """Raises MbrError where `path` holds something that a new bundle must not replace, or nothing can be written."""
    if not path.exists():
        check_writable(path)
        return
    if not path.is_dir():
        raise MbrError(f"Cannot write a bundle to {path}: it is a file. Choose another.")
    check_writable(path.resolve().parent)  # a bundle is written beside, and takes its place
    names = {entry.name for entry in path.iterdir()}
    if names and (MANIFEST not in names or names - {MANIFEST, *CONTENTS, FEATURES_INT8, *OPTIONAL}):
        raise MbrError(f"Cannot write a bundle to {path}: the folder holds other things. Choose another.")


def _record(content: bytes) -> FileRecord:
    return FileRecord(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def _write_synced(file: Path, content: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


__all__ = [
    "CARD",
    "FEATURES",
    "FEATURES_INT8",
    "FORMAT",
    "REFERENCE",
    "TEMPORAL",
    "Behaviour",
    "BehaviourName",
    "Bundle",
    "BundleName",
    "CropKind",
    "Data",
    "FileRecord",
    "Fit",
    "Int8Card",
    "Manifest",
    "Score",
    "TrainingCard",
    "bundle_name",
    "check_live",
    "check_replaceable",
    "clashing_columns",
    "load_bundle",
    "write_bundle",
]
