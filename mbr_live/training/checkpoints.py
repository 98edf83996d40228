"""Training that goes on after a kill: all that a stage needs to continue, kept every few steps.

A training that was killed and went on ends with the weights of one that was not.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

EVERY_STEPS = 25


class Stateful(Protocol):
    """A module, an optimiser or a schedule of torch."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> object: ...


class Checkpoints:
    """The checkpoints of one training, a file for each of its stages."""

    def __init__(self, folder: Path) -> None:
        """`folder` names all that the training depends on: what lies there is taken up."""
        self.folder = folder

    def steps(
        self, stage: str, count: int, parts: Mapping[str, Stateful], generator: np.random.Generator
    ) -> Iterator[int]:
        """The steps of a stage that are still to do, once `parts` and all random numbers are as they were before."""
        file = self.folder / f"{stage}.pt"
        done = _restored(file, parts, generator) if file.is_file() else 0
        for step in range(done, count):
            yield step
            if (step + 1) % EVERY_STEPS == 0 or step + 1 == count:
                _keep(file, step + 1, parts, generator)

    def clear(self) -> None:
        """Forget them: the training is over."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _keep(file: Path, done: int, parts: Mapping[str, Stateful], generator: np.random.Generator) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".part")
    with partial.open("wb") as stream:
        torch.save(
            {
                "done": done,
                "parts": {name: part.state_dict() for name, part in parts.items()},
                "torch": torch.get_rng_state(),
                "numpy": json.dumps(generator.bit_generator.state),
            },
            stream,
        )
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


def _restored(file: Path, parts: Mapping[str, Stateful], generator: np.random.Generator) -> int:
    """Steps done, once everything is as it was after them."""
    kept = torch.load(file, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(kept["parts"][name])
    torch.set_rng_state(kept["torch"])
    generator.bit_generator.state = json.loads(kept["numpy"])
    return int(kept["done"])
