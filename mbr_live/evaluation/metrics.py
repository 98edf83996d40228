"""What an evaluation found: the tree that `metrics.json` holds. docs/evaluation.md describes it.

None stands for what is not defined; a zero would be taken for a result.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from mbr_live import __version__
from mbr_live.evaluation.bouts import BoutStatistics, Disagreements
from mbr_live.evaluation.scoring import CalibrationBin, Counts, Limits


class _Tree(BaseModel):
    model_config = ConfigDict(frozen=True)


class BinaryScores(_Tree):
    """Of one behaviour, over frames or over clips. None: not defined."""

    scored: int  # truth marked and label known
    coverage: float | None  # scored / truth marked
    counts: Counts
    prevalence: float | None
    accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    kappa: float | None
    pr_auc: float | None

    @classmethod
    def of(cls, counts: Counts, marked: int, pr_auc: float | None) -> BinaryScores:
        """Of the scored frames or clips, out of `marked` ones."""
        return cls(
            scored=counts.frames,
            coverage=counts.frames / marked if marked else None,
            counts=counts,
            prevalence=counts.prevalence,
            accuracy=counts.accuracy,
            precision=counts.precision,
            recall=counts.recall,
            f1=counts.f1,
            kappa=counts.kappa,
            pr_auc=pr_auc,
        )


class BoundaryError(_Tree):
    """Of matched bouts: label minus truth, in ms; positive is late."""

    median_ms: float
    p95_ms: float  # of the distance, whichever the direction


class BoutScores(_Tree):
    """Bouts matched one to one at one overlap."""

    true: int
    found: int
    matched: int
    precision: float | None
    recall: float | None
    f1: float | None
    onset: BoundaryError | None
    offset: BoundaryError | None


class RecordingBehaviour(_Tree):
    """One behaviour in one recording."""

    frames: BinaryScores  # of the judged stills where the truth has stills, else of all ticks
    held: BinaryScores | None  # of all ticks, each still held until the next; None: the truth has no stills
    bouts: dict[str, BoutScores]  # by overlap: "0.25", "0.5", "0.75"
    disagreements: Disagreements
    truth: BoutStatistics
    labels: BoutStatistics


class RecordingScores(_Tree):
    """One recording."""

    recording: str
    group: str
    condition: str
    camera: str
    ticks: int
    stills: int | None  # ticks that show a judged still; None: every marked tick was judged
    status: dict[str, int]  # rows of the label log by status
    behaviours: dict[str, RecordingBehaviour]


class Spread(_Tree):
    """A figure over recordings that have it."""

    recordings: int
    median: float
    q1: float
    q3: float
    worst: float
    worst_recording: str


class Agreement(_Tree):
    """A statistic of a recording, label minus truth over the recordings where both have it."""

    compared: int
    censored: int  # recordings where the truth, the labels or both have none
    limits: Limits | None
    points: list[tuple[float, float]]  # truth and labels of each recording compared


class SetBehaviour(_Tree):
    """One behaviour in a set of recordings, all frames and bouts together."""

    frames: BinaryScores  # of the judged stills of recordings that have stills, of all ticks of the others
    held: BinaryScores | None  # of all ticks; None: no recording has stills
    f1_interval: tuple[float, float] | None  # 95 %, over groups
    bouts: dict[str, BoutScores] | None  # None: the set has clips only
    disagreements: Disagreements | None
    spread: dict[str, Spread]  # over recordings, by figure
    agreement: dict[str, Agreement]  # by statistic
    calibration: list[CalibrationBin]
    calibration_error: float | None
    pr_curve: list[tuple[float, float, float]]  # recall, precision, threshold


class MultiClass(_Tree):
    """Confusion of behaviours that exclude each other; rows are the truth, columns the labels."""

    classes: list[str]
    matrix: list[list[int]]
    unknown: list[int]  # by class of the truth: no label
    accuracy: float | None
    macro_f1: float | None  # over the classes that the truth has
    kappa: float | None


class SetScores(_Tree):
    """A set of recordings."""

    recordings: int
    ticks: int
    stills: int | None  # ticks that show a judged still; None: no recording has stills
    behaviours: dict[str, SetBehaviour]
    multiclass: MultiClass | None


class ClipResult(_Tree):
    """One clip."""

    recording: str
    group: str
    truth: list[str]  # the behaviours marked
    labels: list[str] | None  # the behaviours found; None: no frame of it has a label
    probabilities: dict[str, float] | None  # mean over its known frames


class ClipScores(_Tree):
    """Clips, each labelled as a whole by its mean probabilities."""

    clips: int
    unknown: int
    behaviours: dict[str, BinaryScores]
    multiclass: MultiClass | None
    results: list[ClipResult]


class Moment(_Tree):
    """A stretch of ticks where the labels of one behaviour are wrong."""

    recording: str
    behaviour: str
    kind: Literal["missed", "false"]
    start: int  # first tick
    stop: int  # the tick after the last
    weight: float  # sum over its ticks of the distance of probability and truth


class ModelScores(_Tree):
    """One folder of label logs."""

    name: str
    causal: bool | None = None  # False: it looks ahead; None: no run manifest lies beside its logs
    notes: list[str]
    pooled: SetScores
    sets: dict[str, dict[str, SetScores]]  # by condition, group and camera, where there are several
    recordings: list[RecordingScores]  # clips are in `clips`
    clips: ClipScores | None
    worst: list[Moment]


class LookaheadCost(_Tree):
    """What a model that looks ahead has more of one behaviour than a causal one, over all recordings together."""

    causal: str
    ahead: str
    behaviour: str
    f1: float | None
    f1_interval: tuple[float, float] | None  # 95 %, over groups, each drawn for both models at once
    pr_auc: float | None
    bout_f1: float | None  # at an overlap of 0.5
    onset_ms: float | None  # by how much later the causal one finds an onset: difference of the median errors


class Evaluation(_Tree):
    """metrics.json."""

    format: Literal[1] = 1
    version: str = __version__
    dataset: str
    split: str
    caveats: list[str]  # what the dataset file says has to stand beside every score
    behaviours: list[str]
    exclusive: list[str]  # the behaviours that never occur together: classes of the multi-class confusion
    models: list[ModelScores]
    lookahead: list[LookaheadCost] = []  # every causal model beside every one that looks ahead
