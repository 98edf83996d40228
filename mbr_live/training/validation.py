"""What trained networks say of recordings, computed as the pipeline would and of the frames that it would label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mbr_live.engines.protocol import windows
from mbr_live.training import fitting
from mbr_live.training.fitting import Validated
from mbr_live.training.lessons import Lesson
from mbr_live.training.temporal import TemporalModel
from mbr_live.types import MbrError


@dataclass(frozen=True, slots=True)
class Validation:
    """Recordings that are kept aside to judge networks by."""

    lessons: Sequence[Lesson]
    inputs: Mapping[str, Tensor]  # by name of the lesson, [N, D + M]
    warmup_frames: int

    def validated(self, temporal: TemporalModel) -> list[Validated]:
        """Of a network of all behaviours, stretch by stretch; it is in evaluation mode afterwards."""
        return [
            stretch
            for lesson in self.lessons
            for stretch in validate(temporal, lesson, self.inputs[lesson.name], self.warmup_frames)
        ]

    def pr_auc(self, network: TemporalModel, of: Sequence[int]) -> float:
        """Mean PR-AUC of the behaviours `of`, which the network has logits for; without those that do not occur.

        Raises MbrError where none of them occurs.
        """
        stretches = [
            stretch
            for lesson in self.lessons
            for stretch in validate(network, lesson, self.inputs[lesson.name], self.warmup_frames, of)
        ]
        found = [fitting.pr_auc(k, stretches) for k in range(len(of))] if stretches else []
        known = [value for value in found if value is not None]
        if not known:
            raise MbrError(
                "The validation recordings show no behaviour that a network could be judged by, which early_stopping "
                "and fine_tuning need. Validate on recordings that show it, or leave these two out."
            )
        return float(np.mean(known))


def validate(
    temporal: TemporalModel, lesson: Lesson, inputs: Tensor, warmup_frames: int, of: Sequence[int] | None = None
) -> list[Validated]:
    """Logits of the frames that the pipeline would label, stretch by stretch; `of` are the behaviours that the
    network has logits for (default: all).
    """
    temporal.eval()
    validated = []
    for start, stop in sorted(set(zip(lesson.starts.tolist(), lesson.stops.tolist(), strict=True))):
        rows, known = lesson.rows[start:stop], lesson.known[start:stop]
        sequence = inputs[torch.from_numpy(rows)]
        with torch.inference_mode():
            logits = [
                temporal(sequence[None, window.given])[0, window.kept]
                for window in windows(len(rows), temporal.receptive_field_frames)
            ]
            said = torch.cat(logits).numpy()
        # Frames and bouts are held to the truth as the logs of these recordings would be: `evaluate` finds the same.
        labelled = known & (np.cumsum(known) > warmup_frames)
        recording, rows = lesson.recording, rows[labelled]
        marks = recording.truth[rows] if of is None else recording.truth[rows][:, of]
        validated.append(Validated(recording.subject, said[labelled], marks, recording.judged[rows]))
    return validated
