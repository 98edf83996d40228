"""What people have marked in a recording: one value per source frame and behaviour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mbr_live.types import UNKNOWN

Marks = NDArray[np.int8]
"""1 shown, 0 not shown, UNKNOWN not labelled; int8 [N, K]."""


@dataclass(frozen=True, slots=True)
class Annotations:
    """The marks of one recording, for every source frame that was annotated."""

    behaviours: tuple[str, ...]  # [K]
    marks: Marks  # [source frames, K]

    def at(self, source_frames: NDArray[np.int64]) -> Marks:
        """Marks [N, K] of the given source frames; a frame beyond the last annotated one is not labelled."""
        found = np.full((len(source_frames), len(self.behaviours)), UNKNOWN, np.int8)
        inside = (source_frames >= 0) & (source_frames < len(self.marks))
        found[inside] = self.marks[source_frames[inside]]
        return found
