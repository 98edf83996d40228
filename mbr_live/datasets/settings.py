"""What a dataset file says of the model, its training, the splits and problems of labels."""

from __future__ import annotations

from itertools import chain
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from mbr_live.annotation.marks import ProblemKind, Severity
from mbr_live.datasets import splits
from mbr_live.datasets.augmentation import Augmentation, RecordingAugmentation
from mbr_live.datasets.extractor_config import PictureSettings
from mbr_live.datasets.recordings import Section, listed
from mbr_live.datasets.temporal_config import TcnConfig, TemporalConfig
from mbr_live.datasets.training_config import EarlyStopping, FineTuning
from mbr_live.datasets.variation import Variation
from mbr_live.names import BehaviourName
from mbr_live.stages.kinematics import CHANNELS, SETS
from mbr_live.types import MbrError

BoutSeconds = Annotated[float, Field(ge=0.0, le=3600.0)] | Literal["fit"]
CalibrationKind = Literal["none", "platt", "temperature"]
ThresholdRule = Literal["fit", "shrunk"] | Annotated[float, Field(gt=0.0, lt=1.0)]


class Unfit(MbrError):
    """Settings that do not go together, or that cannot be trained with here; with others, the recordings may do."""


class BehaviourSpec(Section):
    """A behaviour to learn: what it is called in label files, and how long its bouts and pauses in them are."""

    name: BehaviourName
    columns: tuple[str, ...] = ()  # columns or codes that count as it; default: its own name, and names for the same
    min_bout_s: BoutSeconds = 0.3  # "fit": by the validation recordings
    bridge_s: BoutSeconds = 0.2


class ModelSettings(PictureSettings):
    """What the networks are, and what they see."""

    kinematics: str | Annotated[tuple[str, ...], Field(min_length=1)] = "none"  # sets, joined by "+"
    temporal: TemporalConfig = TcnConfig()
    ensemble: Annotated[int, Field(ge=1, le=32)] = 1  # temporal networks whose logits are averaged
    behaviours: Literal["joint", "separate"] = "joint"  # separate: temporal networks of its own for every behaviour

    @field_validator("kinematics")
    @classmethod
    def _known_sets(cls, kinematics: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for sets in () if kinematics == "none" else listed(kinematics):
            channels = [channel for name in sets.split("+") for channel in SETS.get(name, ())]
            if set(sets.split("+")) - set(SETS) or len(set(channels)) < len(channels):
                raise ValueError(
                    f"found {sets!r}, expected 'none', one of {', '.join(SETS)}, several that share no channel joined "
                    "as in 'all+arena', or a list of these for an ensemble"
                )
        return kinematics

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
        sets = listed(self.kinematics)
        return tuple(tuple(chain.from_iterable(SETS[name] for name in each.split("+"))) for each in sets)

    @property
    def channels(self) -> tuple[str, ...]:
        """All kinematic channels that some member takes."""
        used = set(chain.from_iterable(self.channel_sets))
        return tuple(name for name in CHANNELS if name in used)


class TrainingSettings(Section):
    """Single frames train the extractor, unless it is frozen; sequences then train the temporal network on the features
    of all frames; and both may learn together in the end.

    What has to do with sparse labels, and with few recordings, is off by default.
    """

    seed: int = 1
    frames_per_step: Annotated[int, Field(ge=2)] = 64
    frame_steps: Annotated[int, Field(ge=1)] = 1000
    frame_learning_rate: Annotated[float, Field(gt=0.0)] = 3e-3
    frame_weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    sequence_frames: Annotated[int, Field(ge=4)] = 256
    sequences_per_step: Annotated[int, Field(ge=1)] = 16
    sequence_steps: Annotated[int, Field(ge=1)] = 300
    sequence_learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    sequence_weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    unscored_frames: Annotated[int, Field(ge=0)] = 3  # at the start of a sequence: too early to have seen a movement
    class_weights: Literal["none", "balanced"] = "none"  # balanced: a label weighs frames / (2 x frames of its class)
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # 1 is learnt as 1 - half of this, 0 as half of it
    held_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0  # of a frame that repeats the label of a judged still
    sequence_noise: Annotated[float, Field(ge=0.0)] = 0.0  # standard deviation per sequence of each kinematic channel,
    frame_noise: Annotated[float, Field(ge=0.0)] = 0.0  # ... and per frame; in standard deviations of the channel
    channel_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # share of kinematic values set to their mean
    draw: Literal["even", "by_count"] = "even"  # of recordings; by_count: by the root of their frames of a behaviour
    threshold: ThresholdRule = "fit"  # shrunk: fitted, towards 0.5
    calibration: CalibrationKind = "none"  # of the probabilities, fitted to the validation recordings
    augmentation: Augmentation = Augmentation()  # of single frames
    recording_augmentation: RecordingAugmentation = RecordingAugmentation()
    variation: Variation = Variation()  # of silhouettes
    early_stopping: EarlyStopping = EarlyStopping()
    fine_tuning: FineTuning = FineTuning()

    @model_validator(mode="after")
    def _scores_something(self) -> Self:
        tuning = self.fine_tuning
        shortest = min(self.sequence_frames, tuning.clip_frames) if tuning.steps else self.sequence_frames
        if self.unscored_frames >= shortest:
            raise ValueError(
                f"unscored_frames = {self.unscored_frames} leaves nothing to learn from of {shortest} frames "
                "(sequence_frames, or clip_frames of fine_tuning): give fewer"
            )
        return self

    @property
    def takes_crops_again(self) -> bool:
        """Whether crops are wanted once their features are known: changed copies, and what fine-tuning learns from."""
        return bool(self.recording_augmentation.copies or self.fine_tuning.steps)


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
