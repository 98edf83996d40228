"""The first stage: the extractor learns to tell the behaviours from single frames, augmented each by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from mbr_live.datasets.augmentation import augment
from mbr_live.datasets.dataset import Progress
from mbr_live.datasets.settings import TrainingSettings
from mbr_live.training.checkpoints import Checkpoints
from mbr_live.training.curves import Curves
from mbr_live.training.learning import Optimiser, target_of
from mbr_live.training.lessons import Lesson, draw
from mbr_live.training.models import Extractor
from mbr_live.training.preparation import crops_of


def train_on_frames(
    extractor: Extractor,
    lessons: Sequence[Lesson],
    settings: TrainingSettings,
    checkpoints: Checkpoints,
    curves: Curves,
    progress: Progress,
) -> None:
    """The extractor, through a linear map to the behaviours that is thrown away afterwards."""
    rng = np.random.default_rng((settings.seed, 1))
    target = target_of(settings, lessons)
    behaviours = nn.Linear(extractor.feature_dim, len(target.of))
    steps = settings.frame_steps
    optimiser = Optimiser([extractor, behaviours], settings.frame_learning_rate, steps, settings.frame_weight_decay)
    for step in checkpoints.steps("frames", steps, optimiser.parts, rng):
        drawn = draw(lessons, settings.frames_per_step, 1, rng, target.of)
        crops = np.concatenate([crops_of(each.lesson.recording)[each.rows] for each in drawn])
        features = extractor(torch.from_numpy(augment(crops, settings.augmentation, rng)))
        loss = target.loss(behaviours(features)[:, None], drawn, unscored=0)
        optimiser.step(loss)
        curves.learnt("frames", step + 1, loss, extractor)
        progress("frames", step + 1, steps)
