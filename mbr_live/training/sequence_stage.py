"""The second stage: temporal networks learn on long sequences of features.

Sequences start anywhere, with the zero padding of a fresh lane, so that its probabilities mean something soon after a
start. Members of an ensemble, and networks of single behaviours, learn one after the other, each from sequences of its
own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mbr_live.datasets.dataset import Progress
from mbr_live.datasets.settings import TrainingSettings, Unfit
from mbr_live.training.checkpoints import Checkpoints, Stateful
from mbr_live.training.learning import Best, Optimiser, Target, target_of
from mbr_live.training.lessons import Lesson, Passage, chances_by_count, draw, with_labels
from mbr_live.training.networks import Learner, learners_of
from mbr_live.training.temporal import Ensemble, TemporalModel
from mbr_live.training.validation import Validation

_STD_FLOOR = 1e-3  # for a channel that does not vary

Follow = Callable[[int, Tensor], None]
"""Told the number of steps that are done, and the loss of the last one."""


def standardise(temporal: TemporalModel, inputs: Sequence[Tensor]) -> None:
    """Set what the kinematic channels are standardised by from the recordings to train on, [N, D + M] each."""
    for ensemble in temporal.modules():
        if isinstance(ensemble, Ensemble) and ensemble.raw_columns:
            channels = torch.cat([each[:, ensemble.plain_columns :] for each in inputs])
            ensemble.mean.copy_(channels.mean(dim=0))
            ensemble.std.copy_(channels.std(dim=0, correction=0) + _STD_FLOOR)


def train_on_sequences(
    temporal: TemporalModel,
    lessons: Sequence[Lesson],
    validation: Validation,
    inputs: Mapping[str, Tensor],
    settings: TrainingSettings,
    checkpoints: Checkpoints,
    follow: Follow,
    progress: Progress,
) -> int:
    """The temporal networks alone, one after the other, on sequences longer than their memory. The number of steps
    after which the weights are, of all of them together.

    Raises MbrError where no lesson has labels of a network's behaviours, or where early stopping has nothing to go by.
    """
    learners, steps = learners_of(temporal, lessons[0].recording.truth.shape[1]), settings.sequence_steps
    taken = 0
    for number, learner in enumerate(learners):

        def told(step: int, loss: Tensor, before: int = number * steps) -> None:
            follow(before + step, loss)
            progress("sequences", before + step, len(learners) * steps)

        taken += _learn(learner, number, lessons, validation, inputs, settings, checkpoints, told)
        if settings.early_stopping.patience_checks:  # it may have stopped before
            progress("sequences", (number + 1) * steps, len(learners) * steps)
    return taken


def _learn(
    learner: Learner,
    number: int,
    lessons: Sequence[Lesson],
    validation: Validation,
    inputs: Mapping[str, Tensor],
    settings: TrainingSettings,
    checkpoints: Checkpoints,
    follow: Follow,
) -> int:
    """One network; the step whose weights it has in the end."""
    lessons = with_labels(lessons, learner.of)
    if not lessons:
        raise Unfit(
            f"No frame of the recordings to train on is labelled for behaviour {learner.of[0] + 1} of the dataset, "
            "which has a network of its own. Label some, or leave the behaviour out."
        )
    target = target_of(settings, lessons, learner.of)
    chances = chances_by_count(lessons) if settings.draw == "by_count" else None
    rng = np.random.default_rng((settings.seed, 2, number) if number else (settings.seed, 2))
    steps, stopping = settings.sequence_steps, settings.early_stopping
    optimiser = Optimiser([learner.network], settings.sequence_learning_rate, steps, settings.sequence_weight_decay)
    best = Best(learner.network, stopping.patience_checks) if stopping.patience_checks else None
    parts: dict[str, Stateful] = {**optimiser.parts, **({"best": best} if best else {})}
    for step in checkpoints.steps(f"sequences-{number}" if number else "sequences", steps, parts, rng):
        drawn = draw(lessons, settings.sequences_per_step, settings.sequence_frames, rng, target.of, chances)
        loss = _loss(learner, drawn, inputs, target)
        optimiser.step(loss)
        follow(step + 1, loss)
        if best and ((step + 1) % stopping.every_steps == 0 or step + 1 == steps):
            done = best.check(validation.pr_auc(learner.alone(), learner.of), step + 1)
            learner.network.train()
            if done:
                break
    if best:
        best.restore()
    return best.step if best else steps


def _loss(learner: Learner, drawn: Sequence[Passage], inputs: Mapping[str, Tensor], target: Target) -> Tensor:
    batch = torch.stack([inputs[each.lesson.name][torch.from_numpy(each.rows)] for each in drawn])
    if learner.ensemble is None:
        logits = learner.network(batch)
    else:
        standardised = learner.ensemble.standardised(batch)
        disturbed = _disturbed(standardised, learner.ensemble.raw_columns, target.settings)
        logits = learner.ensemble.of_member(learner.number, disturbed)
    return target.loss(logits, drawn, unscored=target.settings.unscored_frames)


def _disturbed(inputs: Tensor, channels: int, settings: TrainingSettings) -> Tensor:
    """Standardised inputs [B, T, D + M] whose M `channels` are those of another animal, camera or moment."""
    features, measured = torch.split(inputs, [inputs.shape[2] - channels, channels], dim=2)
    measured = measured + settings.sequence_noise * torch.randn_like(measured[:, :1])
    measured = measured + settings.frame_noise * torch.randn_like(measured)
    return torch.cat((features, functional.dropout(measured, settings.channel_dropout)), dim=2)
