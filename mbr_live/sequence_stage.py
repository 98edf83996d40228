"""The second stage: temporal networks learn on long sequences of features.

Sequences start anywhere, with the zero padding of a fresh lane, so that its probabilities mean something soon after a
start. The members of an ensemble learn one after the other, each from sequences of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mbr_live.checkpoints import Checkpoints
from mbr_live.dataset import Progress, TrainingSettings
from mbr_live.learning import Optimiser, loss_of
from mbr_live.lessons import Lesson, chances_by_count, draw
from mbr_live.temporal import Ensemble, TemporalModel

_STD_FLOOR = 1e-3  # for a channel that does not vary


def standardise(temporal: Ensemble, inputs: Sequence[Tensor]) -> None:
    """Set what the kinematic channels are standardised by from the recordings to train on, [N, D + M] each."""
    channels = torch.cat([each[:, temporal.plain_columns :] for each in inputs])
    temporal.mean.copy_(channels.mean(dim=0))
    temporal.std.copy_(channels.std(dim=0, correction=0) + _STD_FLOOR)


def train_on_sequences(
    temporal: TemporalModel,
    lessons: Sequence[Lesson],
    inputs: Mapping[str, Tensor],
    settings: TrainingSettings,
    checkpoints: Checkpoints,
    follow: Callable[[int, Tensor], None],
    progress: Progress,
) -> None:
    """The temporal networks alone, one after the other, on sequences longer than their memory; `follow` is told the
    loss of every step.
    """
    members = list(temporal.members) if isinstance(temporal, Ensemble) else [temporal]
    chances = chances_by_count(lessons) if settings.draw == "by_count" else None
    steps = settings.sequence_steps
    for number, member in enumerate(members):
        rng = np.random.default_rng((settings.seed, 2, number) if number else (settings.seed, 2))
        optimiser = Optimiser([member], settings.sequence_learning_rate, steps, settings.sequence_weight_decay)
        stage = f"sequences-{number}" if number else "sequences"
        for step in checkpoints.steps(stage, steps, optimiser.parts, rng):
            drawn = draw(lessons, settings.sequences_per_step, settings.sequence_frames, rng, chances)
            batch = torch.stack([inputs[each.lesson.recording.name][torch.from_numpy(each.rows)] for each in drawn])
            if isinstance(temporal, Ensemble):
                disturbed = _disturbed(temporal.standardised(batch), temporal.raw_columns, settings)
                logits = temporal.of_member(number, disturbed)
            else:
                logits = temporal(batch)
            loss = loss_of(logits, drawn, settings, unscored=settings.unscored_frames)
            optimiser.step(loss)
            done = number * steps + step + 1
            follow(done, loss)
            progress("sequences", done, len(members) * steps)


def _disturbed(inputs: Tensor, channels: int, settings: TrainingSettings) -> Tensor:
    """Standardised inputs [B, T, D + M] whose M `channels` are those of another animal, camera or moment."""
    features, measured = torch.split(inputs, [inputs.shape[2] - channels, channels], dim=2)
    measured = measured + settings.sequence_noise * torch.randn_like(measured[:, :1])
    measured = measured + settings.frame_noise * torch.randn_like(measured)
    return torch.cat((features, functional.dropout(measured, settings.channel_dropout)), dim=2)
