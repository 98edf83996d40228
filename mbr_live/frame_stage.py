"""The first stage: the trunk learns to tell the behaviours from single frames, augmented each by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from mbr_live.augmentation import augment
from mbr_live.checkpoints import Checkpoints
from mbr_live.curves import Curves
from mbr_live.dataset import Progress, TrainingSettings
from mbr_live.learning import Optimiser, loss_of
from mbr_live.lessons import Lesson, draw
from mbr_live.models import Trunk
from mbr_live.preparation import crops_of

_WEIGHT_DECAY = 0.01


def train_on_frames(
    trunk: Trunk,
    lessons: Sequence[Lesson],
    settings: TrainingSettings,
    checkpoints: Checkpoints,
    curves: Curves,
    progress: Progress,
) -> None:
    """The trunk, through a linear map to the behaviours that is thrown away afterwards."""
    rng = np.random.default_rng((settings.seed, 1))
    behaviours = nn.Linear(trunk.feature_dim, lessons[0].recording.truth.shape[1])
    steps = settings.frame_steps
    optimiser = Optimiser([trunk, behaviours], settings.frame_learning_rate, steps, _WEIGHT_DECAY)
    for step in checkpoints.steps("frames", steps, optimiser.parts, rng):
        drawn = draw(lessons, settings.frames_per_step, 1, rng)
        crops = np.concatenate([crops_of(each.lesson.recording)[each.rows] for each in drawn])
        features = trunk(torch.from_numpy(augment(crops, settings.augmentation, rng)))
        loss = loss_of(behaviours(features)[:, None], drawn, settings, unscored=0)
        optimiser.step(loss)
        curves.learnt("frames", step + 1, loss, trunk)
        progress("frames", step + 1, steps)
