"""Splits: whole groups, never frames or clips."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbr_live.datasets.splits import Split, assign, check_groups, folds
from mbr_live.types import MbrError


@dataclass(frozen=True)
class Member:
    name: str
    group: str
    condition: str


def members(*groups: str) -> list[Member]:
    """Two recordings for every "condition/group"."""
    return [Member(f"{each}-{take}", each.split("/")[1], each.split("/")[0]) for each in groups for take in ("a", "b")]


recordings = st.lists(
    st.tuples(st.sampled_from("uvwxyz"), st.sampled_from(["box", "clutter", "dark"])), min_size=1, max_size=24
).map(lambda pairs: [Member(f"r{number}", *pair) for number, pair in enumerate(pairs)])
splits = st.dictionaries(st.sampled_from("uvwxyz"), st.sampled_from(["train", "validation", "test"]), max_size=4)


@given(recordings, st.integers(0, 3), st.integers(2, 6))
def test_every_recording_is_tested_once_and_no_group_is_in_two_parts(made: list[Member], seed: int, count: int) -> None:
    group_of = {each.name: each.group for each in made}
    for wanted in (None, count):
        try:
            found = folds(made, count=wanted, seed=seed)
        except MbrError:
            assert wanted is None or len(set(group_of.values())) < wanted
            continue
        tested = [name for fold in found for name in fold.test]
        assert sorted(tested) == sorted(group_of)
        for fold in found:
            parts = [{group_of[name] for name in part} for part in (fold.train, fold.validation, fold.test)]
            assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
            assert sorted((*fold.train, *fold.validation, *fold.test)) == sorted(group_of)


@given(recordings, splits, st.integers(0, 3), st.floats(0, 0.9), st.floats(0, 0.9))
def test_groups_stay_whole_and_given_splits_stay_as_given(
    made: list[Member], of_group: dict[str, Split], seed: int, validation: float, test: float
) -> None:
    given_splits = {each.name: of_group.get(each.group) for each in made}
    found = assign(made, given_splits, validation=validation, test=test, seed=seed)
    assert found == assign(made, given_splits, validation=validation, test=test, seed=seed)
    assert set(found) == set(given_splits)
    assert len({(each.group, found[each.name]) for each in made}) == len({each.group for each in made})
    for name, split in given_splits.items():
        assert split is None or found[name] == split
    if not of_group and len({each.group for each in made}) > 1 and validation > 0:
        assert {"train", "validation"} <= set(found.values())


def test_each_condition_validates_and_tests_where_it_has_the_groups() -> None:
    made = members(*(f"box/b{n}" for n in range(5)), *(f"dark/d{n}" for n in range(3)), "clutter/c0")
    found = assign(made, dict.fromkeys((each.name for each in made), None), validation=0.2, test=0.2, seed=4)
    counts = {
        condition: sorted(found[each.name] for each in made if each.condition == condition and each.name[-1] == "a")
        for condition in ("box", "dark", "clutter")
    }
    assert counts == {
        "box": ["test", "train", "train", "train", "validation"],
        "dark": ["test", "train", "validation"],
        "clutter": ["train"],
    }


def test_another_seed_draws_other_groups() -> None:
    made = members(*(f"box/b{n}" for n in range(8)))
    free = dict.fromkeys((each.name for each in made), None)
    assert len({str(assign(made, free, validation=0.2, test=0.2, seed=seed)) for seed in range(6)}) > 1


def test_without_a_condition_of_two_groups_one_group_of_all_validates() -> None:
    made = members("box/b0", "dark/d0", "clutter/c0")
    found = assign(made, dict.fromkeys((each.name for each in made), None), validation=0.2, test=0.2, seed=1)
    assert sorted(found.values()) == ["train"] * 4 + ["validation"] * 2


def test_a_group_in_two_splits_is_refused() -> None:
    made = members("box/mouse3")
    with pytest.raises(MbrError, match=r"mouse3 is in two splits: .*-a in train, .*-b in test"):
        check_groups(made, {made[0].name: "train", made[1].name: "test"})


def test_folds_leave_one_group_of_each_condition_out() -> None:
    made = members(*(f"box/b{n}" for n in range(3)), *(f"dark/d{n}" for n in range(3)))
    found = folds(made)
    assert len(found) == 3
    for fold in found:
        assert sorted(name.split("/")[0] for name in fold.test) == ["box", "box", "dark", "dark"]
    assert len(folds(made, count=6)) == 6


@pytest.mark.parametrize(("groups", "count"), [(1, None), (3, 4), (3, 1), (0, None)])
def test_folds_that_cannot_be_made(groups: int, count: int | None) -> None:
    with pytest.raises(MbrError, match=f"of {groups} groups"):
        folds(members(*(f"box/b{n}" for n in range(groups))), count=count)
