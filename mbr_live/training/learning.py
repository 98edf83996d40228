"""What the stages of training share: one optimiser, one loss, and the same numbers every time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mbr_live.datasets.settings import TrainingSettings
from mbr_live.training.checkpoints import Stateful
from mbr_live.training.lessons import Lesson, Passage, class_weights
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


@dataclass(frozen=True, slots=True)
class Target:
    """What the logits of a network are held to."""

    settings: TrainingSettings
    of: tuple[int, ...]  # [k] the behaviours of the logits, of the K of the labels
    class_weights: Tensor | None  # [K, 2]; None: all labels weigh the same

    def loss(self, logits: Tensor, drawn: Sequence[Passage], *, unscored: int) -> Tensor:
        """Mean binary cross-entropy over the labels of the known frames, by their weights, but for the first few, which
        have seen no movement yet; 0 where nothing is labelled. Logits [B, F, k].
        """
        truth = torch.from_numpy(np.stack([each.truth for each in drawn]))[..., list(self.of)]
        weights = torch.from_numpy(np.stack([each.weights(self.settings.held_weight) for each in drawn]))[..., None]
        known = torch.from_numpy(np.stack([each.known for each in drawn]))[..., None]
        known = known & (truth != UNKNOWN) & (weights > 0)
        known[:, :unscored] = False
        if not known.any():
            return 0.0 * logits.sum()
        if self.class_weights is not None:
            absent, present = self.class_weights[list(self.of)].unbind(dim=1)
            weights = weights * torch.where(truth == 1, present, absent)
        smoothing, weight = self.settings.label_smoothing, weights.expand_as(truth)[known]
        target = truth[known].float() * (1 - smoothing) + smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits[known], target, weight=weight / weight.mean())


def target_of(settings: TrainingSettings, lessons: Sequence[Lesson], of: Sequence[int] | None = None) -> Target:
    """The target for the behaviours `of` (default: all) with the class weights of the lessons."""
    weights = torch.from_numpy(class_weights(lessons)) if settings.class_weights == "balanced" else None
    behaviours = lessons[0].recording.truth.shape[1]
    return Target(settings, tuple(range(behaviours) if of is None else of), weights)


class Best:
    """The weights with which a module was best so far."""

    def __init__(self, module: nn.Module, patience_checks: int = 0) -> None:
        """It is time to stop after `patience_checks` checks that were no better; 0: never."""
        self._module, self._patience = module, patience_checks
        self._score, self._since = -1.0, 0
        self._weights: dict[str, Tensor] = {}
        self.step = 0

    def check(self, score: float, step: int) -> bool:
        """Whether it is time to stop, given the score of the weights after a step."""
        if score > self._score:
            self._score, self._since, self.step = score, 0, step
            self._weights = {name: tensor.detach().clone() for name, tensor in self._module.state_dict().items()}
        else:
            self._since += 1
        return 0 < self._patience <= self._since

    def restore(self) -> None:
        """Give the module its best weights back."""
        self._module.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        return {"score": self._score, "since": self._since, "step": self.step, "weights": self._weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._score, self._since, self.step = state_dict["score"], state_dict["since"], state_dict["step"]
        self._weights = state_dict["weights"]
