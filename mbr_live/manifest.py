"""What a bundle says of itself: `manifest.json`, and which files stand beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mbr_live.names import BehaviourName, BundleName

FORMAT: Literal[1] = 1
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

Threshold = Annotated[float, Field(gt=0.0, lt=1.0)]
Seconds = Annotated[float, Field(ge=0.0, le=3600.0)]
Count = Annotated[int, Field(ge=1)]
NoOrCount = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


def clashing_columns(behaviours: Sequence[str]) -> list[str]:
    """Columns that a label log of these behaviours would have twice."""
    columns = [*_LOG_COLUMNS, *behaviours, *(f"p_{name}" for name in behaviours)]
    return sorted({column for column in columns if columns.count(column) > 1})


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
