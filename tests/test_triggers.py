"""When a trigger fires: rules as examples, and what holds for every sequence of labels."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from receipts import restarted

from mbr_live.triggers.machine import (
    HOUR_FRAMES,
    Action,
    TriggerRule,
    TriggerState,
    Window,
    condition,
    finish,
    is_sham,
    lapse,
    step,
)
from mbr_live.types import TICK_NS, UNKNOWN

STALE = 9  # in a sequence: no row, but labels that went stale
LATE = {10: 0, 11: 1}  # rows that came too late

ONSET = TriggerRule("stim", "cage", "onset", all_of=(0,), on_s=0.1)
WHILE = TriggerRule("stim", "cage", "while", all_of=(0,), on_s=1.0)


def play(
    rule: TriggerRule, conditions: list[int], state: TriggerState | None = None, first: int = 0
) -> tuple[list[Action], list[bool], TriggerState]:
    """Actions, whether the trigger is on after each element, and the last state."""
    actions: list[Action] = []
    on: list[bool] = []
    state, index = state or TriggerState(), first
    for now in conditions:
        if now == STALE:
            new, state = lapse(rule, state, "stale")
        else:
            new, state = step(rule, state, index, index * TICK_NS, LATE.get(now, now), late=now in LATE)
            index += 1
        actions += new
        on.append(state.is_on)
    return actions, on, state


def edges(actions: list[Action]) -> list[tuple[str, int, str]]:
    return [(action.edge, action.index, action.why) for action in actions]


def test_onset_and_offset_need_two_known_rows() -> None:
    rows = [1, 0, 1, 1, 1, -1, 1, 0, -1, 1, 0, 0, 1]
    assert edges(play(ONSET, rows)[0]) == [
        ("on", 2, "onset"), ("off", 4, "done"), ("on", 12, "onset"),
    ]  # fmt: skip
    offset = replace(ONSET, when="offset", on_s=0.1)
    assert [a.index for a in play(offset, rows)[0] if a.edge == "on"] == [1, 7, 10]


def test_while_follows_the_label_up_to_its_limit_once_per_bout() -> None:
    rule = replace(WHILE, on_s=0.2)
    assert edges(play(rule, [0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 1])[0]) == [
        ("on", 1, "while"), ("off", 3, "over"), ("on", 4, "while"), ("off", 7, "limit"), ("on", 11, "while"),
    ]  # fmt: skip


def test_while_is_suspended_by_the_unknown_and_resumes_if_told_to() -> None:
    rows = [0, 1, -1, 1, 1, 0, 1, -1, -1, -1, 1, 1]
    assert edges(play(WHILE, rows)[0]) == [
        ("on", 1, "while"), ("off", 2, "unknown"), ("on", 6, "while"), ("off", 7, "unknown"),
    ]  # fmt: skip
    actions, _, _ = play(replace(WHILE, resume_frames=2), rows)
    assert edges(actions) == [
        ("on", 1, "while"), ("off", 2, "unknown"), ("on", 3, "resumed"), ("off", 5, "over"),
        ("on", 6, "while"), ("off", 7, "unknown"),
    ]  # fmt: skip
    assert [action.trial for action in actions] == [1, 1, 1, 1, 2, 2]


def test_a_trial_that_resumes_is_over_when_its_time_is_and_no_tick_later() -> None:
    rule = replace(WHILE, on_s=1.0, resume_frames=3)
    actions, _, _ = play(rule, [0, 1, -1, 1, 1, -1, -1, 1])
    assert [(a.index, a.why, a.on_s) for a in actions if a.edge == "on"] == [
        (1, "while", 1.0), (3, "resumed", 0.8), (7, "resumed", 0.4),
    ]  # fmt: skip
    assert edges(play(rule, [0] + [1] * 9 + [-1, 1, 1])[0]) == [("on", 1, "while"), ("off", 10, "unknown")]
    half = replace(rule, on_s=0.25)
    assert [a.on_s for a in play(half, [0, 1, -1, 1, 1])[0] if a.edge == "on"] == [0.25, pytest.approx(0.05)]


def test_lasting_counts_from_an_onset_that_was_seen() -> None:
    rule = replace(ONSET, when="lasting", lasting_frames=3, on_s=0.1)
    assert edges(play(rule, [0, 1, 1, 1, 1, 1, 0])[0]) == [("on", 4, "lasting"), ("off", 6, "done")]
    assert play(rule, [0, 1, 1, -1, 1, 1, 1, 1, 1])[0] == []
    assert play(rule, [1, 1, 1, 1, 1])[0] == []


def test_an_event_in_a_late_row_is_skipped_and_one_in_a_fresh_row_counts_whatever_came_late_before() -> None:
    late_0, late_1 = LATE
    assert edges(play(ONSET, [0, late_1, 0, 1])[0]) == [("skip", 1, "stale"), ("on", 3, "onset")]
    assert edges(play(ONSET, [late_0, 1])[0]) == edges(play(ONSET, [0, STALE, 1])[0]) == [("on", 1, "onset")]
    offset = replace(ONSET, when="offset")
    assert edges(play(offset, [1, late_0])[0]) == [("skip", 1, "stale")]
    lasting = replace(ONSET, when="lasting", lasting_frames=2)
    assert edges(play(lasting, [0, late_1, 1, 1])[0]) == [("on", 3, "lasting")]
    assert edges(play(lasting, [0, 1, 1, late_1, 1, 1])[0]) == [("skip", 3, "stale")]
    yoked = TriggerRule("y", "cage", "yoked", on_s=0.3, yoked=((1, 0.1),))
    assert edges(play(yoked, [0, late_1])[0]) == [("skip", 1, "stale")]
    cooling = replace(ONSET, cooldown_frames=5)
    assert edges(play(cooling, [0, 1, 0, late_1])[0])[-1] == ("skip", 3, "cooldown")


def test_a_while_trial_begins_and_resumes_with_the_first_fresh_row() -> None:
    _, late_1 = LATE
    assert edges(play(WHILE, [0, late_1, late_1, 1, 0, late_1, 0])[0]) == [
        ("skip", 1, "stale"), ("on", 3, "while"), ("off", 4, "over"), ("skip", 5, "stale"),
    ]  # fmt: skip
    assert edges(play(WHILE, [0, 1, late_1, 1, 1])[0]) == [("on", 1, "while"), ("off", 1, "stale")]
    resuming = replace(WHILE, resume_frames=2)
    assert edges(play(resuming, [0, 1, late_1, 1, 0])[0]) == [
        ("on", 1, "while"), ("off", 1, "stale"), ("on", 3, "resumed"), ("off", 4, "over"),
    ]  # fmt: skip
    assert edges(play(resuming, [0, 1, late_1, late_1, late_1, 1])[0]) == [("on", 1, "while"), ("off", 1, "stale")]


def test_cooldown_busy_and_the_hour_skip_an_event_for_good() -> None:
    flicker = [0, 1] * 4
    assert edges(play(replace(ONSET, cooldown_frames=2), flicker)[0]) == [
        ("on", 1, "onset"), ("off", 3, "done"), ("skip", 3, "cooldown"), ("on", 5, "onset"), ("off", 7, "done"),
        ("skip", 7, "cooldown"),
    ]  # fmt: skip
    assert edges(play(replace(ONSET, on_s=0.5), flicker)[0])[:2] == [("on", 1, "onset"), ("skip", 3, "busy")]
    hourly = play(replace(ONSET, on_s=0.1, max_per_hour=2), flicker)
    assert [(a.edge, a.why) for a in hourly[0] if a.edge != "off"] == [
        ("on", "onset"), ("on", "onset"), ("skip", "per_hour"), ("skip", "per_hour"),
    ]  # fmt: skip
    later, _, _ = play(replace(ONSET, on_s=0.1, max_per_hour=2), [0, 1], hourly[2], first=HOUR_FRAMES)
    assert [action.edge for action in later] == ["on"]


def test_armed_windows() -> None:
    session = replace(ONSET, on_s=0.2, window=Window(from_frame=2, to_frame=6))
    assert edges(play(session, [0, 1, 0, 1, 0, 1, 1, 0, 1])[0]) == [
        ("skip", 1, "disarmed"), ("on", 3, "onset"), ("skip", 5, "busy"), ("off", 6, "done"), ("skip", 8, "disarmed"),
    ]  # fmt: skip
    night = Window(daily=(time(21), time(6)), timezone="Europe/Berlin")
    at = {hour: int(datetime(2026, 7, 1, hour, tzinfo=UTC).timestamp() * 1e9) for hour in (3, 4, 12, 18, 19, 23)}
    assert [night.holds(0, at[hour]) for hour in (3, 4, 12, 18, 19, 23)] == [True, False, False, False, True, True]


def test_combinations_of_behaviours() -> None:
    rule = TriggerRule("t", "c", "while", all_of=(0,), any_of=(1, 2), none_of=(3,))
    assert condition(rule, "ok", (1, 0, 1, 0)) == 1
    assert condition(rule, "ok", (1, 0, 0, 0)) == 0
    assert condition(rule, "ok", (1, 1, 0, 1)) == 0
    assert condition(rule, "ok", (0, 1, 1, 0)) == 0
    assert condition(rule, "ok", (1, UNKNOWN, 1, 0)) == UNKNOWN
    for status in ("warmup", "gap", "lost", "blind"):
        assert condition(rule, status, (1, 1, 1, 0)) == UNKNOWN


def test_yoked_trials_come_at_the_ticks_of_the_other_session_or_not_at_all() -> None:
    rule = TriggerRule("y", "cage", "yoked", on_s=0.3, yoked=((2, 0.1), (5, 9.0), (10, 0.1)))
    assert edges(play(rule, [0] * 10 + [UNKNOWN])[0]) == [
        ("on", 2, "yoked"), ("off", 4, "done"), ("on", 5, "yoked"), ("off", 9, "done"), ("skip", 10, "unknown"),
    ]  # fmt: skip
    actions, state = step(rule, TriggerState(), 0, 0, 0)
    actions, state = step(rule, state, 6, 0, 0)
    assert edges(actions) == [("skip", 2, "unknown"), ("skip", 5, "unknown")]


def test_a_new_process_closes_what_was_open_and_waits_for_a_new_bout() -> None:
    rule = replace(WHILE, cooldown_frames=2)
    actions, _, _ = play(rule, [0, 1, 0, 0, 0, 1, 1])
    closing, state = restarted(rule, actions)
    assert edges(closing) == [("off", 5, "restart")]
    assert state.trials == 2
    more, _, _ = play(rule, [1, 1, 1, 0, 0, 1], state, first=10)
    assert [(action.edge, action.trial, action.index) for action in more] == [("on", 3, 15)]


rules = st.builds(
    TriggerRule,
    st.just("stim"),
    st.just("cage"),
    st.sampled_from(["onset", "offset", "while", "lasting"]),
    all_of=st.just((0,)),
    lasting_frames=st.integers(1, 4),
    on_s=st.sampled_from([0.02, 0.1, 0.25, 0.5, 1.0]),
    resume_frames=st.integers(0, 4),
    cooldown_frames=st.integers(0, 6),
    max_per_hour=st.integers(1, 4),
    sham_probability=st.floats(0, 1),
).map(lambda rule: rule if rule.when == "while" else replace(rule, resume_frames=0))
rows = st.lists(st.sampled_from([0, 1, 0, 1, 1, UNKNOWN, STALE, *LATE]), max_size=80)


@given(rules, rows)
def test_never_on_what_is_unknown_and_while_only_on_a_label_of_1(rule: TriggerRule, conditions: list[int]) -> None:
    _, on, _ = play(rule, conditions)
    for now, is_on in zip(conditions, on, strict=True):
        assert not (is_on and now in (UNKNOWN, STALE, *LATE))
        if rule.when == "while":
            assert not (is_on and now != 1)


@given(rules, rows)
def test_on_time_is_bounded_and_edges_alternate(rule: TriggerRule, conditions: list[int]) -> None:
    actions, _, _ = play(rule, conditions)
    pairs = [action for action in actions if action.edge != "skip"]
    for k, action in enumerate(pairs):
        assert action.edge == ("on", "off")[k % 2]
    starts: dict[int, int] = {}
    for on, off in zip(pairs[::2], pairs[1::2], strict=False):
        assert on.trial == off.trial
        assert 0 <= off.index - starts.setdefault(on.trial, on.index) <= math.ceil(rule.on_s * 10) + 1
        assert on.index - starts[on.trial] + on.on_s * 10 <= rule.on_s * 10 + 1e-6
        assert on.sham == off.sham == is_sham(rule, on.trial)
    numbers = [action.trial for action in pairs[::2] if action.why != "resumed"]
    assert numbers == list(range(1, len(numbers) + 1))


@given(rules, st.lists(st.tuples(st.integers(0, HOUR_FRAMES // 2), rows), max_size=12))
def test_no_hour_holds_more_trials_than_allowed(rule: TriggerRule, visits: list[tuple[int, list[int]]]) -> None:
    state, index, starts = TriggerState(), 0, []
    for pause, conditions in visits:
        index += pause
        actions, _, state = play(rule, conditions, state, first=index)
        index += len(conditions)
        starts += [a.index for a in actions if a.edge == "on" and a.why != "resumed"]
    for start in starts:
        assert sum(start <= other < start + HOUR_FRAMES for other in starts) <= rule.max_per_hour
    assert len(state.recent) <= rule.max_per_hour


@given(rules, rows)
def test_one_bout_one_trial(rule: TriggerRule, conditions: list[int]) -> None:
    """Between two known 0 there is at most one event, whatever was unknown in between (an offset ends one)."""
    actions, _, _ = play(rule, conditions)
    known = [now for now in conditions if now != STALE]
    bout = [sum(LATE.get(now, now) == 0 for now in known[: index + 1]) for index in range(len(known))]
    # A `while` trial that a late row could not begin may still begin with a fresh one of the same bout.
    passed = ("resumed", "stale") if rule.when == "while" else ("resumed",)
    events = Counter(bout[a.index] for a in actions if a.edge in ("on", "skip") and a.why not in passed)
    assert all(count == 1 for count in events.values())


@settings(max_examples=60)
@given(rules, rows, st.integers(0, 80))
def test_a_restart_at_any_moment_repeats_nothing(rule: TriggerRule, conditions: list[int], at: int) -> None:
    whole, _, _ = play(rule, conditions)
    before, _, cut = play(rule, conditions[:at])
    closing, state = restarted(rule, before)
    assert state.trials == cut.trials
    assert not state.is_on
    first = sum(now != STALE for now in conditions[:at])
    after, _, _ = play(rule, conditions[at:], state, first=first)
    assert len(closing) == cut.is_on
    trials = [a for a in (*before, *after) if a.edge == "on" and a.why != "resumed"]
    assert len({a.trial for a in trials}) == len(trials)
    # An event that came before the restart is not there again: no bout has two.
    known = [now for now in conditions if now != STALE]
    bout = [sum(LATE.get(now, now) == 0 for now in known[: index + 1]) for index in range(len(known))]
    if before:  # a process that has never done anything knows no more than one that has just been started
        events = Counter(bout[a.index] for a in trials)
        assert all(count == 1 for count in events.values())
    for number in {a.trial for a in trials} & {a.trial for a in whole}:
        assert is_sham(rule, number) == next(a.sham for a in trials if a.trial == number)


@given(rules, rows)
def test_a_late_row_changes_nothing(rule: TriggerRule, conditions: list[int]) -> None:
    _, _, state = play(rule, conditions)
    for index in range(state.last_index + 1):
        assert step(rule, state, index, 0, 1) == ([], state)


@given(rules, rows)
def test_finish_ends_what_is_on(rule: TriggerRule, conditions: list[int]) -> None:
    _, on, state = play(rule, conditions)
    actions, state = finish(rule, state, "done")
    assert [action.edge for action in actions] == ["off"] * bool(on and on[-1])
    assert not state.is_on


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 1.0])
def test_shams_are_a_fixed_list_of_the_seed(probability: float) -> None:
    rule = replace(ONSET, sham_probability=probability, sham_seed=17)
    drawn = [is_sham(rule, trial) for trial in range(1, 2001)]
    assert drawn == [is_sham(rule, trial) for trial in range(1, 2001)]
    assert abs(sum(drawn) / 2000 - probability) < 0.03
    if 0 < probability < 1:
        assert drawn != [is_sham(replace(rule, sham_seed=18), trial) for trial in range(1, 2001)]
