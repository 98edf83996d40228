"""Stages and stops of a training that a dataset file can ask for."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mbr_live.datasets.recordings import Section


class EarlyStopping(Section):
    """A temporal network stops learning when the PR-AUC of the validation recordings no longer grows, and goes back to
    where it was best.
    """

    patience_checks: Annotated[int, Field(ge=0)] = 0  # without a better one, before it stops; 0: it learns to the end
    every_steps: Annotated[int, Field(ge=1)] = 25


class FineTuning(Section):
    """Extractor and temporal network together, on short clips, after each has learnt by itself."""

    steps: Annotated[int, Field(ge=0)] = 0  # 0: not at all
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-5
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    clip_frames: Annotated[int, Field(ge=4)] = 48
    clips_per_step: Annotated[int, Field(ge=1)] = 4
