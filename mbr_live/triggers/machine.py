"""When a trigger fires: a pure state machine over the rows of a label log. No clock, no randomness, no output.

A *trial* is one time that a trigger comes on; it is on between its edges `on` and `off`. The rules, for every kind:

- A trigger is on only upon what is known, and comes on only upon what is fresh. A row without a label (warm-up, gap,
  lost, blind), a row that was missed and labels that went stale end the trial at once; a `while` trial may resume
  within `resume_frames`.
- One bout, one trial. Only a row that is known to be 0 ends a bout; so what was unknown in between never makes one bout
  fire twice.
- An onset is a known 0 and in the very next row a known 1; an offset the reverse. What happened unseen is not an event.
- An event that comes while the trigger may not fire is skipped for good, with the reason; it is not made up for later.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time
from typing import Literal
from zoneinfo import ZoneInfo

from mbr_live.types import RATE_FPS, UNKNOWN, Status

HOUR_FRAMES = 3600 * RATE_FPS

When = Literal["onset", "offset", "while", "lasting", "yoked"]
Edge = Literal["on", "off", "skip"]


@dataclass(frozen=True, slots=True)
class Window:
    """When a trigger is armed. Ticks of the session, and the time of day in a zone."""

    from_frame: int = 0
    to_frame: int | None = None  # exclusive
    daily: tuple[time, time] | None = None  # the end is exclusive; it may lie after midnight
    timezone: str = "UTC"

    def holds(self, index: int, time_ns: int) -> bool:
        """Whether the trigger is armed at tick `index`, captured at `time_ns` since the epoch."""
        if index < self.from_frame or (self.to_frame is not None and index >= self.to_frame):
            return False
        if self.daily is None:
            return True
        start, end = self.daily
        now = datetime.fromtimestamp(time_ns / 1e9, UTC).astimezone(ZoneInfo(self.timezone)).time()
        return start <= now < end if start < end else now >= start or now < end


@dataclass(frozen=True, slots=True)
class TriggerRule:
    """One trigger, in frames, with behaviours as columns of the label log."""

    name: str
    camera: str
    when: When
    all_of: tuple[int, ...] = ()
    any_of: tuple[int, ...] = ()
    none_of: tuple[int, ...] = ()
    lasting_frames: int = 0
    on_s: float = 0.0  # length of a pulse; the most that a `while` or `yoked` trial may last
    resume_frames: int = 0
    cooldown_frames: int = 0
    max_per_hour: int = 600
    window: Window = Window()
    sham_probability: float = 0.0
    sham_seed: int = 0
    yoked: tuple[tuple[int, float], ...] = ()  # tick and length in s of the trials to repeat, in order
    dry_run: bool = False
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Action:
    """What a trigger does at a tick. `on` and `off` are the edges of a trial; `skip` is an event without one."""

    trigger: str
    camera: str
    edge: Edge
    trial: int  # from 1; of a skip 0, or the number that is used up by it
    index: int  # tick
    sham: bool = False
    why: str = ""
    on_s: float = 0.0  # of `on`: it must be off again after this time, come what may


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial that has begun and not ended."""

    number: int
    start: int  # tick
    on_s: float  # from then on
    sham: bool
    suspended: int = UNKNOWN  # last tick before it was suspended; UNKNOWN: it is on

    @property
    def stop(self) -> int:
        """Tick at which it is over, should the clock not have ended it before.

        One tick more than it takes: rows come with jitter, and a pulse is to have its length by the clock.
        """
        return self.start + math.ceil(self.on_s * RATE_FPS - 1e-6) + 1

    def left_s(self, index: int) -> float:
        """How long it may still be on at tick `index`."""
        return round(self.on_s - (index - self.start) / RATE_FPS, 6)


@dataclass(frozen=True, slots=True)
class TriggerState:
    """All that a trigger remembers; its size does not grow with the session."""

    last_index: int = UNKNOWN
    before: int = UNKNOWN  # condition at that tick
    since: int = UNKNOWN  # tick of the onset of the bout that is on; UNKNOWN where it was not seen
    spent: bool = False  # the bout that is on has had its event; until a known 0
    trials: int = 0  # shams included
    trial: Trial | None = None
    free_from: int = 0  # tick at which the cooldown is over
    recent: tuple[int, ...] = ()  # ticks of the latest trials, at most max_per_hour of them

    @property
    def is_on(self) -> bool:
        """Whether a trial is on at this moment."""
        return self.trial is not None and self.trial.suspended == UNKNOWN


def condition(rule: TriggerRule, status: str, labels: Sequence[int]) -> int:
    """What the behaviours [K] of a row say of the condition of `rule`: 1, 0 or UNKNOWN (yoked: never 1)."""
    if status != Status.OK:
        return UNKNOWN
    needed = [labels[k] for k in (*rule.all_of, *rule.any_of, *rule.none_of)]
    if UNKNOWN in needed:
        return UNKNOWN
    if not needed:
        return 0
    all_, none = all(labels[k] for k in rule.all_of), not any(labels[k] for k in rule.none_of)
    return int(all_ and none and (not rule.any_of or any(labels[k] for k in rule.any_of)))


def step(
    rule: TriggerRule, state: TriggerState, index: int, time_ns: int, now: int, *, late: bool = False
) -> tuple[list[Action], TriggerState]:
    """Take the row of tick `index` with the condition `now`; what the trigger does, and the next state.

    A row that is not later than the last one changes nothing; ticks in between that never came are unknown. What a
    `late` row says is known, but nobody may act upon it any more.
    """
    if index <= state.last_index:
        return [], state
    actions: list[Action] = []
    if index > state.last_index + 1 and state.last_index != UNKNOWN:
        actions, state = lapse(rule, state, "unknown")
        state = replace(state, before=UNKNOWN, since=UNKNOWN)
    if late:
        stale, state = lapse(rule, state, "stale")
        actions += stale
    armed = rule.window.holds(index, time_ns)
    ended, state = _end_if_over(rule, state, index, now, armed, late)
    actions += ended
    events, skipped = _events(rule, state, index, now, late)
    actions += [_action(rule, "skip", index=start, why="unknown") for start in skipped]
    if events:
        begun, state = _begin(rule, state, index, events[-1], armed, late)
        actions += begun
    since = state.since if now == 1 and state.before == 1 else UNKNOWN
    if now == 1 and state.before == 0 and state.last_index == index - 1:
        since = index
    return actions, replace(state, last_index=index, before=now, since=since, spent=state.spent and now != 0)


def lapse(rule: TriggerRule, state: TriggerState, why: str) -> tuple[list[Action], TriggerState]:
    """End what is on, since rows were missed (`unknown`) or labels went stale (`stale`)."""
    return _suspend(rule, state, state.last_index, why) if state.is_on else ([], state)


def finish(rule: TriggerRule, state: TriggerState, why: str) -> tuple[list[Action], TriggerState]:
    """End the trial that is on, if there is one: its time is over by the clock, or the program ends."""
    if state.trial is None:
        return [], state
    actions = [_off(rule, state.trial, state.last_index, why)] if state.is_on else []
    return actions, replace(state, trial=None, free_from=max(state.last_index, 0) + 1 + rule.cooldown_frames)


def is_sham(rule: TriggerRule, trial: int) -> bool:
    """Whether trial number `trial` is a sham: a fixed list for a seed, whatever the animal does."""
    digest = hashlib.blake2b(f"{rule.sham_seed}/{rule.camera}/{rule.name}/{trial}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < rule.sham_probability


def recall(rule: TriggerRule, state: TriggerState, action: Action) -> TriggerState:
    """The state after one more action that the log tells of, when a process begins; from a fresh state on.

    What happened since the last action is not known, so the bout of the last event counts as still on and spent.
    """
    state = replace(state, last_index=max(action.index, 0), trials=max(state.trials, action.trial), spent=True)
    if action.edge == "off":
        return _ended(rule, state, action.index)
    if action.edge == "skip":
        return state
    trial = Trial(action.trial, action.index, action.on_s, action.sham)
    recent = state.recent if action.why == "resumed" else _with(rule, state.recent, action.index)
    return replace(state, trial=trial, recent=recent)


def remind(state: TriggerState, index: int, now: int) -> TriggerState:
    """The state at tick `index` for a process that goes on from it, and knows nothing of it but the condition `now`."""
    if index < state.last_index:
        return state
    since = state.since if index == state.last_index else UNKNOWN
    return replace(state, last_index=index, before=now, since=since, spent=state.spent and now != 0)


def _events(rule: TriggerRule, state: TriggerState, index: int, now: int, late: bool) -> tuple[list[float], list[int]]:
    """Lengths in s of the trials that should begin at this tick, and ticks of those whose time passed unknown."""
    if rule.when == "yoked":
        first, end = (bisect_right(rule.yoked, (tick, float("inf"))) for tick in (state.last_index, index))
        due = rule.yoked[first:end]
        now_due = [min(on_s, rule.on_s) for start, on_s in due if start == index and now != UNKNOWN]
        return now_due, [start for start, _ in due if start < index or now == UNKNOWN]
    happens = {
        "onset": state.before == 0 and now == 1,
        "offset": state.before == 1 and now == 0,
        # Of rows that come late the first one tells; the bout may have its trial at a fresh one.
        "while": now == 1 and not state.spent and not (late and state.before == 1),
        "lasting": now == 1
        and not state.spent
        and state.since != UNKNOWN
        and index - state.since >= rule.lasting_frames,
    }[rule.when]
    return ([rule.on_s] if happens else []), []


def _begin(
    rule: TriggerRule, state: TriggerState, index: int, on_s: float, armed: bool, late: bool
) -> tuple[list[Action], TriggerState]:
    if state.trial is not None and state.trial.suspended != UNKNOWN:
        trial = replace(state.trial, suspended=UNKNOWN)
        left_s = trial.left_s(index)
        on = _action(rule, "on", index=index, trial=trial.number, sham=trial.sham, why="resumed", on_s=left_s)
        return [on], replace(state, trial=trial, spent=True)
    why = _why_not(rule, state, index, armed, late)
    if why:
        spent = not (why == "stale" and rule.when == "while")
        return [_action(rule, "skip", index=index, why=why)], replace(state, spent=spent)
    number = state.trials + 1
    trial = Trial(number, index, on_s, is_sham(rule, number))
    on = _action(rule, "on", index=index, trial=number, sham=trial.sham, why=rule.when, on_s=on_s)
    recent = _with(rule, state.recent, index)
    return [on], replace(state, trial=trial, trials=number, spent=True, recent=recent)


def _why_not(rule: TriggerRule, state: TriggerState, index: int, armed: bool, late: bool) -> str:
    if not armed:
        return "disarmed"
    if state.trial is not None:
        return "busy"
    if index < state.free_from:
        return "cooldown"
    full = len(state.recent) >= rule.max_per_hour and state.recent[-rule.max_per_hour] > index - HOUR_FRAMES
    if full:
        return "per_hour"
    return "stale" if late else ""


def _end_if_over(
    rule: TriggerRule, state: TriggerState, index: int, now: int, armed: bool, late: bool
) -> tuple[list[Action], TriggerState]:
    trial = state.trial
    if trial is None:
        return [], state
    why = ""
    if rule.when == "while" and now == 0:
        why = "over"
    elif index >= trial.stop:
        why = "limit" if rule.when == "while" else "done"
    elif not armed:
        why = "disarmed"
    if trial.suspended != UNKNOWN:
        if why or index - trial.suspended > rule.resume_frames or trial.left_s(index) <= 0:
            return [], _ended(rule, state, trial.suspended + 1)
        # The bout goes on: what suspended the trial did not end it.
        return [], replace(state, spent=state.spent and (late or now != 1))
    if now == UNKNOWN:
        return _suspend(rule, state, index, "unknown")
    if why:
        return [_off(rule, trial, index, why)], _ended(rule, state, index)
    return [], state


def _suspend(rule: TriggerRule, state: TriggerState, index: int, why: str) -> tuple[list[Action], TriggerState]:
    trial = state.trial
    if trial is None:
        return [], state
    off = [_off(rule, trial, index, why)]
    if rule.resume_frames:
        return off, replace(state, trial=replace(trial, suspended=index))
    return off, _ended(rule, state, index)


def _ended(rule: TriggerRule, state: TriggerState, index: int) -> TriggerState:
    return replace(state, trial=None, free_from=index + rule.cooldown_frames)


def _off(rule: TriggerRule, trial: Trial, index: int, why: str) -> Action:
    return _action(rule, "off", index=index, trial=trial.number, sham=trial.sham, why=why)


def _action(
    rule: TriggerRule, edge: Edge, *, index: int, trial: int = 0, sham: bool = False, why: str = "", on_s: float = 0.0
) -> Action:
    return Action(rule.name, rule.camera, edge, trial, index, sham, why, on_s)


def _with(rule: TriggerRule, recent: tuple[int, ...], index: int) -> tuple[int, ...]:
    return (*recent, index)[-rule.max_per_hour :]
