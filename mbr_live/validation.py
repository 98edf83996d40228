"""What trained networks say of a recording, computed as the pipeline would and of the frames that it would label."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mbr_live.engine import windows
from mbr_live.fitting import Validated
from mbr_live.lessons import Lesson
from mbr_live.temporal import TemporalModel
from mbr_live.types import UNKNOWN


def validate(temporal: TemporalModel, lesson: Lesson, inputs: Tensor, warmup_frames: int) -> list[Validated]:
    """Probabilities of the frames that the pipeline would label, stretch by stretch."""
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
            probabilities = torch.sigmoid(torch.cat(logits)).numpy()
        # Rounded, and held to what was judged, as the logs of these recordings would be: `evaluate` finds the same.
        probabilities = probabilities.astype(np.float64).round(6)
        labelled = known & (np.cumsum(known) > warmup_frames)
        truth = np.where(lesson.recording.judged[rows, None], lesson.recording.truth[rows], UNKNOWN).astype(np.int8)
        validated.append(Validated(lesson.recording.subject, probabilities[labelled], truth[labelled]))
    return validated
