"""The last stage: extractor and temporal network learn together, on short clips of pictures.

From networks that have learnt by themselves alone: tried from the start, at the same cost it learnt an order of
magnitude more slowly, since the frames of a clip are nearly the same picture. The batch normalisation of the extractor
keeps its means and variances, since a few clips have too little to say of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mbr_live.datasets.augmentation import RecordingAugmentation, drawn_change
from mbr_live.datasets.dataset import Progress
from mbr_live.datasets.settings import TrainingSettings
from mbr_live.training.checkpoints import Checkpoints
from mbr_live.training.curves import Curves
from mbr_live.training.learning import Best, Optimiser, target_of
from mbr_live.training.lessons import Lesson, Passage, draw
from mbr_live.training.models import Extractor
from mbr_live.training.preparation import crops_of
from mbr_live.training.temporal import TemporalModel


def fine_tune(
    extractor: Extractor,
    temporal: TemporalModel,
    lessons: Sequence[Lesson],
    settings: TrainingSettings,
    before: float,
    score: Callable[[], float],
    checkpoints: Checkpoints,
    curves: Curves,
    progress: Progress,
) -> int:
    """Both networks, from the score `before` on; they end with the weights that `score` was best for.

    Returns the step of these, 0 where none were better than before.
    """
    tuning, stopping = settings.fine_tuning, settings.early_stopping
    rng = np.random.default_rng((settings.seed, 4))
    target = target_of(settings, lessons)
    optimiser = Optimiser([extractor, temporal], tuning.learning_rate, tuning.steps, tuning.weight_decay)
    best = Best(nn.ModuleList([extractor, temporal]), stopping.patience_checks)
    best.check(before, 0)
    every = stopping.every_steps if stopping.patience_checks else tuning.steps
    for step in checkpoints.steps("fine-tuning", tuning.steps, {**optimiser.parts, "best": best}, rng):
        extractor.eval()
        temporal.train()
        drawn = draw(lessons, tuning.clips_per_step, tuning.clip_frames, rng, target.of)
        inputs = torch.stack([_seen(extractor, each, settings.recording_augmentation, rng) for each in drawn])
        loss = target.loss(temporal(inputs), drawn, unscored=settings.unscored_frames)
        optimiser.step(loss)
        curves.learnt("fine-tuning", step + 1, loss, temporal)
        progress("fine-tuning", step + 1, tuning.steps)
        if ((step + 1) % every == 0 or step + 1 == tuning.steps) and best.check(score(), step + 1):
            progress("fine-tuning", tuning.steps, tuning.steps)
            break
    best.restore()
    return best.step


def _seen(
    extractor: Extractor, passage: Passage, augmentation: RecordingAugmentation, rng: np.random.Generator
) -> Tensor:
    """What the temporal network takes of a clip, [F, D + M], whose pictures are all changed alike."""
    recording = passage.lesson.recording
    crops = drawn_change(augmentation, rng).of(crops_of(recording)[passage.rows])
    parts: list[Tensor] = [extractor(torch.from_numpy(crops))]
    if recording.channels is not None:
        parts.append(torch.from_numpy(recording.channels[passage.rows]))
    return torch.cat(parts, dim=1)
