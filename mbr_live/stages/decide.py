"""From probabilities to labels, and from labels to bouts. Pure functions of what has been, never of what comes.

Order of the rules, as usual in the field: hysteresis, then bridging of short pauses, then the minimum bout. A label
is final when it is written, so a bout is labelled from the moment it has lasted the minimum, and a pause is labelled
as part of the bout until it has lasted longer than the bridge. Both delays are the price of causality, and stand in
the bundle in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mbr_live.types import UNKNOWN


@dataclass(frozen=True, slots=True)
class Rule:
    """How one behaviour is decided, in frames."""

    enter: float  # a bout begins at this probability
    exit: float  # and ends below this one
    min_bout_frames: int
    bridge_frames: int  # a pause up to this long does not end a bout


@dataclass(frozen=True, slots=True)
class RuleState:
    """What deciding remembers of one behaviour."""

    on: bool = False  # after hysteresis
    on_frames: int = 0  # frames since the onset of what may become a bout, pauses that were bridged included
    off_frames: int = 0  # length of the pause at this moment
    in_bout: bool = False


def decide(probability: float, rule: Rule, state: RuleState) -> tuple[int, RuleState]:
    """The label (0 or 1) of one frame, and the next state."""
    on = probability >= (rule.exit if state.on else rule.enter)
    if on:
        on_frames = state.on_frames + state.off_frames + 1 if state.on_frames else 1
        in_bout = state.in_bout or on_frames >= rule.min_bout_frames
        return int(in_bout), RuleState(True, on_frames, 0, in_bout)
    off_frames = state.off_frames + 1 if state.on_frames else 0
    if off_frames > rule.bridge_frames or not state.on_frames:
        return 0, RuleState()
    return int(state.in_bout), RuleState(False, state.on_frames, off_frames, state.in_bout)


@dataclass(frozen=True, slots=True)
class Bout:
    """One bout of one behaviour, in ticks; both ends belong to it."""

    behaviour: str
    start_frame: int
    stop_frame: int
    mean_p: float  # over the frames of the bout that have a probability
    complete: bool  # its onset and its offset were both seen


@dataclass(frozen=True, slots=True)
class BoutState:
    """An open bout, or the lack of one, of one behaviour."""

    start_frame: int = UNKNOWN  # UNKNOWN: no open bout
    stop_frame: int = UNKNOWN  # the last frame that is confirmed to belong to it
    sum_p: float = 0.0
    count_p: int = 0
    onset_seen: bool = False
    unknown_frames: int = 0  # length of the unknown stretch that ends at this moment
    began: bool = False  # a known frame has been seen since the last unknown stretch too long to bridge


def follow_bout(
    behaviour: str, index: int, label: int, probability: float, max_gap_frames: int, state: BoutState
) -> tuple[Bout | None, BoutState]:
    """Take one row of the label log; the bout that it ends, if any, and the next state.

    A bout is a run of labels 1. An unknown stretch of up to `max_gap_frames` inside of it belongs to it; a longer one
    ends it at its last confirmed frame, and it is then not complete.
    """
    if label == UNKNOWN:
        unknown = state.unknown_frames + 1
        if unknown <= max_gap_frames:
            return None, replace(state, unknown_frames=unknown)
        return end_bout(behaviour, state), BoutState(unknown_frames=unknown)
    if label == 0:
        onset_known_next = BoutState(began=True)
        # The offset lies in the unknown stretch before this frame, if there is one.
        return end_bout(behaviour, state, offset_seen=state.unknown_frames == 0), onset_known_next
    if state.start_frame == UNKNOWN:
        onset_seen = state.began and state.unknown_frames == 0
        return None, BoutState(index, index, probability, 1, onset_seen, began=True)
    return None, replace(
        state, stop_frame=index, sum_p=state.sum_p + probability, count_p=state.count_p + 1, unknown_frames=0
    )


def end_bout(behaviour: str, state: BoutState, *, offset_seen: bool = False) -> Bout | None:
    """The open bout of `state` as it ends now, at its last confirmed frame; None if there is none."""
    if state.start_frame == UNKNOWN:
        return None
    mean_p = state.sum_p / state.count_p
    return Bout(behaviour, state.start_frame, state.stop_frame, mean_p, state.onset_seen and offset_seen)


def fresh_rule_states(behaviours: Sequence[object]) -> tuple[RuleState, ...]:
    """The state before the first frame, and after a reset."""
    return tuple(RuleState() for _ in behaviours)
