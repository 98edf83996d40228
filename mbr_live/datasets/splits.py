"""Who trains, who chooses, who is tested: always by whole groups (animals), so that nothing leaks.

A recording carries a group and a condition. Frames or clips of one animal in two splits would let a model be praised
for knowing the animal, so nothing here can put them there. All functions are pure; a seed settles every draw.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from mbr_live.types import MbrError

Split = Literal["train", "validation", "test"]


class Grouped(Protocol):
    """A recording, as far as splitting is concerned."""

    @property
    def name(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def condition(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Fold:
    """One round of cross-validation: names of recordings. Thresholds are chosen on `validation`, never on `test`."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def check_groups(recordings: Sequence[Grouped], splits: Mapping[str, Split | None]) -> dict[str, Split]:
    """The split of every group that has one, from those of its recordings; MbrError where they differ."""
    of_group: dict[str, tuple[Split, str]] = {}
    for recording in recordings:
        split = splits[recording.name]
        if split is None:
            continue
        known, by = of_group.setdefault(recording.group, (split, recording.name))
        if known != split:
            raise MbrError(
                f"Group {recording.group} is in two splits: {by} in {known}, {recording.name} in {split}. A model "
                "tested on an animal that it has seen looks better than it is. Give the whole group one split."
            )
    return {group: split for group, (split, _) in of_group.items()}


def assign(
    recordings: Sequence[Grouped],
    given: Mapping[str, Split | None],
    *,
    validation: float,
    test: float,
    seed: int,
) -> dict[str, Split]:
    """The split of every recording by name: as given, the rest by whole groups, stratified by condition.

    `validation` and `test` are the shares of the groups of each condition that go there. A condition of two groups
    validates on one of them, a condition of three also tests on one; a condition of one group trains on it. Where no
    condition has two groups, one group of all is taken for validation.
    """
    settled = check_groups(recordings, given)
    rng = np.random.default_rng(seed)
    free: list[str] = []
    for groups in _strata(recordings).values():
        shuffled = [groups[place] for place in rng.permutation(len(groups))]
        open_groups = [group for group in shuffled if group not in settled]
        shares: tuple[tuple[Split, float, int], ...] = (("validation", validation, 2), ("test", test, 3))
        for split, share, needed_groups in shares:
            wanted = max(1, round(share * len(groups))) if share > 0 and len(groups) >= needed_groups else 0
            missing = wanted - sum(settled.get(group) == split for group in groups)
            # One group of a condition that has yet no training group stays to be trained on.
            spare = len(open_groups) - (not any(settled.get(group) == "train" for group in groups))
            for _ in range(max(0, min(missing, spare))):
                settled[open_groups.pop()] = split
        free += open_groups
    if validation > 0 and "validation" not in settled.values() and len(free) > 1:
        settled[free.pop(int(rng.integers(len(free))))] = "validation"
    return {recording.name: settled.get(recording.group, "train") for recording in recordings}


def folds(
    recordings: Sequence[Grouped],
    *,
    count: int | None = None,
    seed: int = 1,
    shown: Mapping[str, Collection[str]] | None = None,
    validate: bool = True,
) -> tuple[Fold, ...]:
    """Leave-groups-out folds: every recording is tested exactly once, no group is in two parts of a fold.

    Without `count`, one group of each condition is left out at a time (as many folds as the largest condition has
    groups); with as many as there are groups, one group at a time. The groups tested in the next fold validate; given
    the behaviours `shown` in each recording, so do further ones while they show what validation lacks. Where there is
    nothing to `validate`, everything that is not tested is trained on.
    """
    strata = _strata(recordings)
    groups = sum(map(len, strata.values()))
    number = max(map(len, strata.values()), default=0) if count is None else count
    if not 2 <= number <= groups:
        raise MbrError(
            f"Cross-validation: {number} folds of {groups} groups. Expected at least 2 folds, and a group for each. "
            "Give the recordings of more animals, or another number of folds."
        )
    rng = np.random.default_rng(seed)
    # Dealt out like cards, on from where the last condition ended, so that folds differ by one group at most.
    dealt = [stratum[place] for stratum in strata.values() for place in rng.permutation(len(stratum))]
    fold_of = {group: place % number for place, group in enumerate(dealt)}
    tested = [tuple(each.name for each in recordings if fold_of[each.group] == fold) for fold in range(number)]
    made = []
    for fold in range(number):
        others = [tested[(fold + step) % number] for step in range(1, number)]
        validation = _validating(others, shown or {}) if validate and number > 2 else ()
        held_out = {*tested[fold], *validation}
        made.append(
            Fold(tuple(each.name for each in recordings if each.name not in held_out), validation, tested[fold])
        )
    return tuple(made)


def _validating(parts: Sequence[tuple[str, ...]], shown: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """Of the parts that are not tested, those to choose thresholds on: the first, and each that shows a behaviour
    that these lack, as long as training keeps every behaviour of it.
    """

    def behaviours(chosen: Sequence[tuple[str, ...]]) -> set[str]:
        return {behaviour for part in chosen for name in part for behaviour in shown.get(name, ())}

    validating, training = [parts[0]], list(parts[1:])
    for part in parts[1:]:
        rest = [each for each in training if each is not part]
        if behaviours([part]) - behaviours(validating) and behaviours([part]) <= behaviours(rest):
            validating, training = [*validating, part], rest
    return tuple(name for part in validating for name in part)


def _strata(recordings: Sequence[Grouped]) -> dict[tuple[str, ...], list[str]]:
    """Groups by the conditions that they were recorded in, all in sorted order."""
    conditions: dict[str, set[str]] = {}
    for recording in recordings:
        conditions.setdefault(recording.group, set()).add(recording.condition)
    strata: dict[tuple[str, ...], list[str]] = {}
    for group in sorted(conditions):
        strata.setdefault(tuple(sorted(conditions[group])), []).append(group)
    return dict(sorted(strata.items()))
