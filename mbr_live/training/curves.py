"""Learning curves as TensorBoard event files: what training does while it does it. Writing them changes no weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mbr_live.types import MbrError

HISTOGRAMS_EVERY_STEPS = 50

Told = Callable[[int, Mapping[str, float | None]], None]
"""Told the step and the validation PR-AUC by behaviour; None where it is not defined."""


class Curves:
    """The curves of one training; without a folder, none are drawn."""

    def __init__(self, folder: Path | None = None, told: Told | None = None) -> None:
        """`told` is told the same validation PR-AUC that is drawn."""
        self._writer = None if folder is None else _writer(folder)
        self._told = told

    @property
    def drawn(self) -> bool:
        """Whether anybody wants to know validation scores on the way."""
        return self._writer is not None or self._told is not None

    def learnt(self, stage: str, step: int, loss: Tensor, module: nn.Module) -> None:
        """A step of a stage: its loss, and now and then the weights and biases after it."""
        if self._writer is None:
            return
        self._writer.add_scalar(f"loss/{stage}", float(loss.detach()), step)
        if step % HISTOGRAMS_EVERY_STEPS == 0:
            for name, parameter in module.named_parameters():
                place = f"{stage}/{name}"
                self._writer.add_histogram(place, parameter.detach().numpy(), step)

    def scored(self, step: int, pr_auc: Mapping[str, float | None]) -> None:
        """Validation PR-AUC by behaviour after a step on sequences; None where it is not defined."""
        if self._told:
            self._told(step, pr_auc)
        if self._writer is None:
            return
        for behaviour, value in pr_auc.items():
            if value is not None:
                self._writer.add_scalar(f"validation PR-AUC/{behaviour}", value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _writer(folder: Path) -> Any:
    """TensorBoard's writer, which comes without types and only where tensorboard is installed."""
    try:
        return import_module("torch.utils.tensorboard").SummaryWriter(str(folder))
    except ModuleNotFoundError as error:
        raise MbrError(
            f"--logs {folder}: {error.name} is not installed. Run: pip install 'mbr-live[train]', or leave --logs out."
        ) from error
