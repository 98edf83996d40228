"""The one place where the stages meet: locate > crop > features > temporal > decide.

`Pipeline.step` has no clock, no queue, no thread and no randomness. Live and offline call the same function, so the
same pixels give the same bytes. All that a camera remembers is one LaneState.

The rule for what is not known. A tick without features (no frame, no animal, a dark or frozen picture) is labelled
unknown. For up to `max_gap_s` the temporal network goes on with the last features, so that its memory stays aligned
in time; a longer stretch resets the lane, which then warms up as at the start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbr_live import locate
from mbr_live.blindness import BlindState, is_blind
from mbr_live.bundle import Manifest
from mbr_live.decide import Rule, RuleState, decide, fresh_rule_states
from mbr_live.engine import Engine
from mbr_live.types import NOT_FOUND, TICK_NS, UNKNOWN, Decision, Frame, Image, Sighting, Status


@dataclass(frozen=True, slots=True)
class LaneState:
    """All that one camera remembers between two frames."""

    last_index: int  # -1 before the first frame
    locate: locate.LocateState
    temporal: NDArray[np.float32]  # [S]
    features: NDArray[np.float32] | None  # [D] of the last frame that had some; None after a reset
    rules: tuple[RuleState, ...]  # [K]
    steps: int  # steps of the temporal network since the reset; counts up to the warm-up only
    unknown_frames: int  # length of the unknown stretch that ends at this moment
    blind: BlindState


@dataclass(frozen=True, slots=True)
class _Classified:
    """What the networks say of one frame of one lane."""

    probabilities: tuple[float, ...]  # [K]
    features: NDArray[np.float32]  # [D]
    temporal: NDArray[np.float32]  # [S], the state after the frame


class Pipeline:
    """A bundle at work. Holds no state of any camera: that is in the LaneStates."""

    def __init__(self, manifest: Manifest, engine: Engine, window_px: Mapping[str, int] | None = None) -> None:
        """`window_px` fixes the crop window of a camera, by name; the others find theirs from their first frames."""
        self.manifest = manifest
        self._engine = engine
        self._window_px = dict(window_px or {})
        self._rules = tuple(
            Rule(b.enter, b.exit, min_bout, bridge)
            for b, min_bout, bridge in zip(
                manifest.behaviours, manifest.min_bout_frames, manifest.bridge_frames, strict=True
            )
        )
        self._unknown = (UNKNOWN,) * len(self._rules)

    def start(self, last_index: int = -1) -> LaneState:
        """The state of a lane before its first frame, or after a restart that follows tick `last_index`."""
        temporal = np.zeros(self.manifest.state_size, np.float32)
        fresh = fresh_rule_states(self._rules)
        return LaneState(last_index, locate.initial_state(), temporal, None, fresh, 0, 0, BlindState())

    def window_px(self, camera: str, state: LaneState) -> int | None:
        """Side of the crop window: the camera's own if it was given, else as found; None while not found yet."""
        return self._window_px.get(camera) or locate.window_px(state.locate)

    def step(
        self, frames: Sequence[Frame], states: Mapping[str, LaneState]
    ) -> tuple[list[Decision], dict[str, LaneState]]:
        """Take at most one frame per lane; return their decisions, gaps first, and the next state of every lane.

        A frame must lie after the last one of its lane; ticks between the two become one gap decision.
        """
        decisions: list[Decision] = []
        after = dict(states)
        crops: dict[str, Image] = {}
        seen: dict[str, tuple[Sighting, Status]] = {}
        for frame in frames:
            gap, state = self.gap(frame.camera, frame.index, frame.origin_ns, after[frame.camera])
            decisions += gap
            sighting, status, crop, state = self._look(frame, state)
            seen[frame.camera], after[frame.camera] = (sighting, status), state
            if crop is not None:
                crops[frame.camera] = crop
        classified = self._classify(crops, after)
        for frame in frames:
            decision, after[frame.camera] = self._decide(
                frame, *seen[frame.camera], classified.get(frame.camera), after[frame.camera]
            )
            decisions.append(decision)
        return decisions, after

    def gap(self, camera: str, until: int, origin_ns: int, state: LaneState) -> tuple[list[Decision], LaneState]:
        """Account for the ticks between the lane's last one and `until`, which is not included."""
        first, ticks = state.last_index + 1, until - state.last_index - 1
        if ticks < 0:
            raise ValueError(f"{camera}: tick {until} does not lie after tick {state.last_index}")
        if ticks == 0:
            return [], state
        for _ in range(min(ticks, self.manifest.max_gap_frames + 1)):
            state = self._pass_unknown(state)
        time_ns = origin_ns + first * TICK_NS
        nan = float("nan")
        gap = Decision(camera, first, UNKNOWN, time_ns, Status.GAP, nan, nan, (), self._unknown, ticks)
        return [gap], replace(state, last_index=until - 1)

    def _look(self, frame: Frame, state: LaneState) -> tuple[Sighting, Status, Image | None, LaneState]:
        """Is there a picture, and an animal in it? The crop is None where there are no features to be had."""
        blind, looked = is_blind(frame.pixels, state.blind)
        if blind:
            return NOT_FOUND, Status.BLIND, None, replace(state, blind=looked)
        sighting, located = locate.locate(frame.pixels, state.locate)
        state = replace(state, locate=located, blind=looked)
        if not sighting.found:
            return sighting, Status.LOST, None, state
        window_px = self.window_px(frame.camera, state)
        if window_px is None:
            return sighting, Status.WARMUP, None, state
        crop = locate.crop(frame.pixels, sighting.x_px, sighting.y_px, window_px)
        return sighting, Status.OK, crop, state

    def _classify(self, crops: Mapping[str, Image], states: Mapping[str, LaneState]) -> dict[str, _Classified]:
        """What the two networks say, per lane that has a crop."""
        if not crops:
            return {}
        cameras = list(crops)
        features = self._engine.features(_lanes([crops[camera] for camera in cameras]))
        before = _lanes([states[camera].temporal for camera in cameras])
        logits, temporal = self._engine.step(features, before)
        return {
            camera: _Classified(_probabilities(logits[lane]), features[lane], temporal[lane])
            for lane, camera in enumerate(cameras)
        }

    def _decide(
        self,
        frame: Frame,
        sighting: Sighting,
        status: Status,
        classified: _Classified | None,
        state: LaneState,
    ) -> tuple[Decision, LaneState]:
        labels = self._unknown
        probabilities: tuple[float, ...] = ()
        if classified is None:
            state = replace(self._pass_unknown(state), last_index=frame.index)
        else:
            rules, steps = state.rules, state.steps
            if steps >= self.manifest.warmup_frames:
                probabilities = classified.probabilities
                decided = [decide(*each) for each in zip(probabilities, self._rules, rules, strict=True)]
                labels = tuple(label for label, _ in decided)
                rules = tuple(rule_state for _, rule_state in decided)
            else:
                status, steps = Status.WARMUP, steps + 1
            state = replace(
                state, last_index=frame.index, temporal=classified.temporal, features=classified.features,
                rules=rules, steps=steps, unknown_frames=0,
            )  # fmt: skip
        x_px, y_px = sighting.x_px, sighting.y_px
        decision = Decision(
            frame.camera, frame.index, frame.source_frame, frame.time_ns, status, x_px, y_px, probabilities, labels
        )
        return decision, state

    def _pass_unknown(self, state: LaneState) -> LaneState:
        """One tick without features: hold the last ones for a while, then reset the lane. Where the animal was and
        what the arena looks like is kept, since it does not depend on an unbroken sequence."""
        unknown = state.unknown_frames + 1
        if state.features is None:
            return replace(state, unknown_frames=unknown)
        if unknown > self.manifest.max_gap_frames:
            fresh = self.start(state.last_index)
            return replace(fresh, locate=state.locate, unknown_frames=unknown, blind=state.blind)
        _, temporal = self._engine.step(state.features[None], state.temporal[None])
        return replace(state, temporal=temporal[0], unknown_frames=unknown)


def _lanes(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Arrays of equal shape as one, [B, ...]; numpy's stack takes three times as long."""
    return np.concatenate([array[None] for array in arrays])


def _probabilities(logits: NDArray[np.float32]) -> tuple[float, ...]:
    """Sigmoid, rounded as the log writes it: what is decided on is what is written."""
    return tuple(round(1.0 / (1.0 + math.exp(-min(max(float(x), -60.0), 60.0))), 6) for x in logits)
