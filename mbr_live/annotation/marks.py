"""What people have marked in a recording: one value per source frame and behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mbr_live.types import UNKNOWN

Marks = NDArray[np.int8]
"""1 shown, 0 not shown, UNKNOWN not labelled; int8 [N, K]."""

Severity = Literal["error", "warning", "ignore"]
ProblemKind = Literal[
    "invalid_format",
    "missing_video",
    "missing_column",
    "no_annotation",
    "unknown_behaviour",
    "overlap",
    "unpaired",
    "point_events",
    "nan_values",
    "too_many_frames",
    "too_few_frames",
    "empty_behaviour",
    "empty_split",
    "one_class",
    "log_names",
    "unused_class",
]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about label files that a person should know; how grave it is, the dataset file decides."""

    kind: ProblemKind
    text: str


@dataclass(frozen=True, slots=True)
class Annotations:
    """The marks of one recording, for every source frame that was annotated.

    Some label files hold judgements of single pictures (stills), each held until the next. The frames in between
    repeat a judgement that nobody made of them: good enough to learn from, not to be scored on.
    """

    behaviours: tuple[str, ...]  # [K]
    marks: Marks  # [source frames, K]
    judged: NDArray[np.bool_] | None = None  # [source frames] somebody looked at it; None: at every annotated one

    def at(self, source_frames: NDArray[np.int64]) -> Marks:
        """Marks [N, K] of the given source frames; a frame beyond the last annotated one is not labelled."""
        found = np.full((len(source_frames), len(self.behaviours)), UNKNOWN, np.int8)
        inside = (source_frames >= 0) & (source_frames < len(self.marks))
        found[inside] = self.marks[source_frames[inside]]
        return found

    def judged_at(self, source_frames: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of all sampled source frames, rising int64 [N], somebody judged.

        A still is shown by the first sampled frame at or after it, and before the next still.
        """
        if self.judged is None:
            return np.ones(len(source_frames), np.bool_)
        still = np.searchsorted(np.flatnonzero(self.judged), source_frames, side="right") - 1
        served = np.flatnonzero((source_frames >= 0) & (still >= 0))
        _, first = np.unique(still[served], return_index=True)
        shown = np.zeros(len(source_frames), np.bool_)
        shown[served[first]] = True
        return shown


def where_judged(marks: Marks, judged: NDArray[np.bool_]) -> Marks:
    """Marks [N, K] of the frames that somebody judged [N]; UNKNOWN in the others."""
    return np.where(judged[:, None], marks, UNKNOWN).astype(np.int8)


def runs(marks: NDArray[np.int8], value: int = 1) -> NDArray[np.int64]:
    """First frame and frame after the last of every run of `value` in `marks` [N]; int64 [runs, 2]."""
    edges = np.diff((marks == value).astype(np.int8), prepend=0, append=0)
    return np.column_stack((np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)))
