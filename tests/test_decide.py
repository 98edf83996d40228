"""Hysteresis, bridges and minimum bouts; bouts as a pure function of the labels."""

from __future__ import annotations

from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from mbr_live.stages.decide import Bout, BoutState, Rule, RuleState, decide, end_bout, follow_bout

probabilities = st.lists(st.floats(0, 1), max_size=120)
rules = st.builds(
    lambda enter, ratio, minimum, bridge: Rule(enter, enter * ratio, minimum, bridge),
    st.floats(0.1, 0.95),
    st.floats(0.2, 1.0),
    st.integers(0, 8),
    st.integers(0, 8),
)


def labels(p: list[float], rule: Rule) -> list[int]:
    state, out = RuleState(), []
    for value in p:
        label, state = decide(value, rule, state)
        out.append(label)
    return out


def bouts(rows: list[int], max_gap: int = 3, p: float = 0.5) -> list[Bout]:
    state, out = BoutState(), []
    for index, label in enumerate(rows):
        bout, state = follow_bout("groom", index, label, p, max_gap, state)
        out += [bout] if bout else []
    last = end_bout("groom", state)
    return [*out, last] if last else out


def spans(found: list[Bout]) -> list[tuple[int, int, bool]]:
    return [(bout.start_frame, bout.stop_frame, bout.complete) for bout in found]


def test_hysteresis() -> None:
    assert labels([0.5, 0.7, 0.5, 0.4, 0.29, 0.5, 0.7], Rule(0.6, 0.3, 1, 0)) == [0, 1, 1, 1, 0, 0, 1]


def test_a_bout_is_labelled_once_it_has_lasted_the_minimum() -> None:
    assert labels([1, 1, 1, 1, 0, 1, 1, 0], Rule(0.5, 0.5, 3, 0)) == [0, 0, 1, 1, 0, 0, 0, 0]


def test_a_short_pause_is_bridged_and_a_long_one_is_not() -> None:
    assert labels([1, 1, 0, 0, 1, 0, 0, 0, 0], Rule(0.5, 0.5, 1, 2)) == [1, 1, 1, 1, 1, 1, 1, 0, 0]


@given(probabilities, rules, st.data())
def test_a_label_never_depends_on_what_comes(p: list[float], rule: Rule, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(p)))
    assert labels(p, rule)[:cut] == labels(p[:cut], rule)


@given(probabilities, rules)
def test_no_label_without_evidence(p: list[float], rule: Rule) -> None:
    """Every run of labels begins on evidence, and ends at most a bridge after the last of it."""
    out = labels(p, rule)
    at = 0
    for label, run in groupby(out):
        length = len(list(run))
        if label:
            assert p[at] >= rule.exit
            last_on = max(n for n in range(at, at + length) if p[n] >= rule.exit)
            assert at + length - 1 - last_on <= rule.bridge_frames
        at += length


@given(probabilities, rules)
def test_wide_open_rules_are_a_threshold(p: list[float], rule: Rule) -> None:
    assert labels(p, Rule(rule.enter, rule.enter, 0, 0)) == [int(value >= rule.enter) for value in p]


def test_bouts_of_known_labels() -> None:
    assert spans(bouts([0, 1, 1, 0, 1, 0])) == [(1, 2, True), (4, 4, True)]


def test_a_bout_that_was_on_at_the_start_or_at_the_end_is_not_complete() -> None:
    assert spans(bouts([1, 1, 0])) == [(0, 1, False)]
    assert spans(bouts([-1, 1, 0])) == [(1, 1, False)]
    assert spans(bouts([0, 1, 1])) == [(1, 2, False)]


def test_short_unknown_stretches_belong_to_a_bout_and_long_ones_end_it() -> None:
    assert spans(bouts([0, 1, -1, -1, 1, 0])) == [(1, 4, True)]
    assert spans(bouts([0, 1, 1, -1, -1, -1, -1, 1, 0])) == [(1, 2, False), (7, 7, False)]


def test_a_bout_whose_end_is_not_seen_ends_where_it_was_last_confirmed() -> None:
    assert spans(bouts([0, 1, 1, -1, 0])) == [(1, 2, False)]
    assert spans(bouts([0, 1, 1, -1])) == [(1, 2, False)]


@given(st.lists(st.sampled_from([0, 1, -1]), max_size=150), st.integers(0, 6))
def test_bouts_cover_exactly_the_positive_labels(rows: list[int], max_gap: int) -> None:
    found = bouts(rows, max_gap)
    covered = {n for bout in found for n in range(bout.start_frame, bout.stop_frame + 1)}
    assert {n for n, label in enumerate(rows) if label == 1} <= covered
    assert not {n for n, label in enumerate(rows) if label == 0} & covered
    for bout in found:
        assert rows[bout.start_frame] == rows[bout.stop_frame] == 1


def test_mean_probability_is_over_the_known_frames() -> None:
    state = BoutState()
    for index, (label, p) in enumerate([(0, 0.0), (1, 0.6), (-1, float("nan")), (1, 0.8)]):
        _, state = follow_bout("groom", index, label, p, 3, state)
    bout = end_bout("groom", state)
    assert bout is not None
    assert abs(bout.mean_p - 0.7) < 1e-12
