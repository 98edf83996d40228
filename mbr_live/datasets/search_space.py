"""What `mbr-live tune` is to try: the `[tune]` section of a dataset file, and candidates with values of it.

A key of the search is a setting of the file, such as "training.sequence_steps" or "model.temporal.channels"; it has
either a list of choices or a range.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from mbr_live.datasets.recordings import Section

TUNABLE = ("model", "training")
"""The sections of a dataset file whose settings can be searched."""

Number = int | float
Values = Mapping[str, Any]
"""A value for every key of the search."""


class Range(Section):
    """Numbers from `low` to `high`, both included; whole ones where both ends are."""

    low: Number
    high: Number
    log: bool = False  # tried evenly on a logarithmic scale
    step: Annotated[Number, Field(gt=0)] | None = None  # only low, low + step, ...

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low} is not below high = {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low above 0, and no step")
        return self

    @property
    def whole(self) -> bool:
        """Whether its numbers are whole."""
        return all(isinstance(each, int) for each in (self.low, self.high, self.step or 1))

    def steps(self) -> tuple[Number, ...] | None:
        """All its numbers; None where they can not be counted."""
        step = self.step or (1 if self.whole and not self.log else None)
        if step is None:
            return None
        count = int((self.high - self.low) / step + 1e-9) + 1
        return tuple(round(self.low + number * step, 12) for number in range(count))


Space = Annotated[
    Annotated[Range, Tag("range")] | Annotated[tuple[Any, ...], Field(min_length=1), Tag("choices")],
    Discriminator(lambda value: "range" if isinstance(value, dict | Range) else "choices"),
]


class TuneSettings(Section):
    """How candidates are found, and among what."""

    search: Annotated[dict[str, Space], Field(min_length=1)]
    sampler: Literal["tpe", "grid"] = "tpe"
    trials: Annotated[int, Field(ge=1)] | None = None  # default: 30, or the whole grid
    seed: Annotated[int, Field(ge=0)] = 1
    objectives: tuple[Literal["pr_auc"]] | tuple[Literal["pr_auc"], Literal["ms_per_frame"]] = ("pr_auc",)
    pruning: bool = True  # give up candidates that are behind the median of those before, at the same step

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for key, space in self.search.items():
            if key.split(".")[0] not in TUNABLE or key.count(".") == 0:
                raise ValueError(f"search: '{key}' is no key of [model] or [training], such as 'training.seed'")
            if self.sampler == "grid" and isinstance(space, Range) and space.steps() is None:
                raise ValueError(f"search: '{key}' has no end of values for a grid: give it a step, or a list")
        if len(self.objectives) > 1 and self.pruning:
            raise ValueError("two objectives can not prune: say pruning = false, or objectives = ['pr_auc']")
        return self

    @property
    def count(self) -> int:
        """Candidates to try."""
        if self.sampler == "tpe":
            return self.trials or 30
        return min(sum(1 for _ in self.grid()), self.trials or 10**9)

    def grid(self) -> Iterator[dict[str, Any]]:
        """All candidates of a grid."""
        for values in product(*(self.listed(key) for key in self.search)):
            yield dict(zip(self.search, values, strict=True))

    def listed(self, key: str) -> Sequence[Any]:
        """The choices of a key, all numbers of its range, or the two ends of one that can not be counted."""
        space = self.search[key]
        if isinstance(space, Range):
            return space.steps() or (space.low, space.high)
        return space


def with_values(sections: Mapping[str, Any], values: Values) -> dict[str, Any]:
    """The TUNABLE sections, as plain data, with `values`; KeyError with the key that leads nowhere."""
    changed = copy.deepcopy(dict(sections))
    for key in sorted(values, key=lambda name: name.count(".")):  # a whole table before a setting within it
        *path, last = key.split(".")
        place: Any = changed
        for part in path:
            if not isinstance(place, dict) or part not in place:
                raise KeyError(key)
            place = place[part]
        if not isinstance(place, dict):
            raise KeyError(key)
        place[last] = copy.deepcopy(values[key])
    return changed
