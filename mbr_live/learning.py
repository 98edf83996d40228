"""What the stages of training share: one optimiser, one loss, and the same numbers every time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mbr_live.checkpoints import Stateful
from mbr_live.dataset import TrainingSettings
from mbr_live.lessons import Passage
from mbr_live.types import UNKNOWN

_GRADIENT_NORM = 1.0


@contextmanager
def deterministic(seed: int, threads: int) -> Iterator[None]:
    """The same random numbers, and sums in the same order, whatever was set before."""
    threads_before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict)
        torch.set_num_threads(threads_before)


class Optimiser:
    """AdamW with one learning-rate cycle and a bound on the gradient."""

    def __init__(self, modules: Sequence[nn.Module], learning_rate: float, steps: int, decay: float) -> None:
        for module in modules:
            module.train()
        self._parameters = [parameter for module in modules for parameter in module.parameters()]
        self._adam = torch.optim.AdamW(self._parameters, lr=learning_rate, weight_decay=decay)
        self._rate = torch.optim.lr_scheduler.OneCycleLR(self._adam, learning_rate, total_steps=steps + 1)
        learning: tuple[Stateful, ...] = (self._adam, self._rate, *modules)
        self.parts = {str(number): part for number, part in enumerate(learning)}  # all that learning changes

    def step(self, loss: Tensor) -> None:
        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, _GRADIENT_NORM)
        self._adam.step()
        self._rate.step()


def loss_of(logits: Tensor, drawn: Sequence[Passage], settings: TrainingSettings, *, unscored: int) -> Tensor:
    """Mean binary cross-entropy over the labels of the known frames, by their weights, but for the first few, which
    have seen no movement yet; 0 where nothing is labelled. Logits [B, F, K].
    """
    truth = torch.from_numpy(np.stack([each.truth for each in drawn]))
    weights = torch.from_numpy(np.stack([each.weights(settings.held_weight) for each in drawn]))[..., None]
    known = torch.from_numpy(np.stack([each.known for each in drawn]))[..., None] & (truth != UNKNOWN) & (weights > 0)
    known[:, :unscored] = False
    if not known.any():
        return 0.0 * logits.sum()
    smoothing, weight = settings.label_smoothing, weights.expand_as(truth)[known]
    target = truth[known].float() * (1 - smoothing) + smoothing / 2
    return functional.binary_cross_entropy_with_logits(logits[known], target, weight=weight / weight.mean())
