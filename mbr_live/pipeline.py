"""The one place where the stages meet: locate > crop > features > temporal > decide.

`Pipeline.step` has no clock, no queue, no thread and no randomness. Live and offline call the same function, so the
same pixels give the same bytes. All that a camera remembers is one LaneState. A bundle that looks ahead, for recorded
files alone, goes through `Hindsight` instead, which shares every stage but the temporal network.

The rule for what is not known. A tick without features (no frame, no animal, a dark or frozen picture) is labelled
unknown. For up to `max_gap_s` the temporal network goes on with the last features, so that its memory stays aligned
in time; a longer stretch resets the lane, which then warms up as at the start.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mbr_live import locate
from mbr_live.bundle import Manifest
from mbr_live.decide import Rule, RuleState, decide, fresh_rule_states
from mbr_live.engine import Engine
from mbr_live.types import NOT_FOUND, TICK_NS, UNKNOWN, Decision, Frame, Image, Sighting, Status

FROZEN_FRAMES = 50  # no camera delivers the same noise for five seconds
_DARK_LEVEL = 20  # of 255; the noise of a covered lens stays below
_LIT_SHARE = 0.001  # a picture with fewer pixels above that level shows nothing
_LOOK_EVERY_ROWS = 32  # health looks at every 32nd row: 0.02 ms instead of 1 ms at 640 x 480


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
    picture_crc: int
    same_pictures: int  # how often that picture came in a row


@dataclass(frozen=True, slots=True)
class Look:
    """What one tick, or one gap, shows before the temporal network has seen it."""

    decision: Decision  # without probabilities and labels
    features: NDArray[np.float32] | None  # [D]
    goes_on: bool  # whether a stretch goes on after it; where not, later frames say nothing of it


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
        return LaneState(last_index, locate.initial_state(), temporal, None, fresh, 0, 0, 0, 0)

    def window_px(self, camera: str, state: LaneState) -> int | None:
        """Side of the crop window: the camera's own if it was given, else as found; None while not found yet."""
        return self._window_px.get(camera) or locate.window_px(state.locate)

    def step(
        self, frames: Sequence[Frame], states: Mapping[str, LaneState]
    ) -> tuple[list[Decision], dict[str, LaneState]]:
        """Take at most one frame per lane; return their decisions, gaps first, and the next state of every lane.

        A frame must lie after the last one of its lane; ticks between the two become one gap decision.
        """
        looks, after = self.look(frames, states)
        logits = self._classify(looks, after)
        decisions: list[Decision] = []
        for look in looks:
            decision, camera = look.decision, look.decision.camera
            if look.features is not None:
                decision, after[camera] = self._label(decision, logits[camera], after[camera])
            decisions.append(decision)
        return decisions, after

    def look(self, frames: Sequence[Frame], states: Mapping[str, LaneState]) -> tuple[list[Look], dict[str, LaneState]]:
        """What `step` does before the temporal network: where is the animal, and what are its features?"""
        after = dict(states)
        crops: dict[str, Image] = {}
        seen: list[Decision] = []
        gaps: list[Look] = []
        for frame in frames:
            gap, state = self.gap(frame.camera, frame.index, frame.origin_ns, after[frame.camera])
            gaps += [Look(decision, None, state.features is not None) for decision in gap]
            decision, crop, after[frame.camera] = self._look(frame, state)
            seen.append(decision)
            if crop is not None:
                crops[frame.camera] = crop
        features = self._features(crops)
        looks: list[Look] = []
        for decision in seen:
            camera = decision.camera
            after[camera] = state = self._remember(decision.index, features.get(camera), after[camera])
            looks.append(Look(decision, features.get(camera), state.features is not None))
        return gaps + looks, after

    def label_stretch(self, looks: Sequence[Look]) -> list[Decision]:
        """Label the ticks between two resets at once, with a network that looks ahead; short gaps hold the features
        before them, as in training."""
        known = [(look.decision.index, look.features) for look in looks if look.features is not None]
        if not known:
            return [look.decision for look in looks]
        ticks = np.array([tick for tick, _ in known])
        rows = np.repeat(np.arange(len(ticks)), np.diff(ticks, append=ticks[-1] + 1))
        features = np.stack([known[row][1] for row in rows])
        logits = iter(self._engine.sequence(features)[ticks - ticks[0]])
        state = self.start()
        decisions: list[Decision] = []
        for look in looks:
            decision = look.decision
            if look.features is not None:
                decision, state = self._label(decision, next(logits), state)
            decisions.append(decision)
        return decisions

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

    def _look(self, frame: Frame, state: LaneState) -> tuple[Decision, Image | None, LaneState]:
        """Is there a picture, and an animal in it? The crop is None where there are no features to be had."""
        sighting, status, crop, state = self._sight(frame, state)
        decision = Decision(
            frame.camera, frame.index, frame.source_frame, frame.time_ns, status, sighting.x_px, sighting.y_px,
            (), self._unknown,
        )  # fmt: skip
        return decision, crop, state

    def _sight(self, frame: Frame, state: LaneState) -> tuple[Sighting, Status, Image | None, LaneState]:
        blind, state = _is_blind(frame.pixels, state)
        if blind:
            return NOT_FOUND, Status.BLIND, None, state
        sighting, located = locate.locate(frame.pixels, state.locate)
        state = replace(state, locate=located)
        if not sighting.found:
            return sighting, Status.LOST, None, state
        window_px = self.window_px(frame.camera, state)
        if window_px is None:
            return sighting, Status.WARMUP, None, state
        crop = locate.crop(frame.pixels, sighting.x_px, sighting.y_px, window_px)
        return sighting, Status.OK, crop, state

    def _features(self, crops: Mapping[str, Image]) -> dict[str, NDArray[np.float32]]:
        """Features [D] per lane that has a crop."""
        if not crops:
            return {}
        return dict(zip(crops, self._engine.features(np.stack(list(crops.values()))), strict=True))

    def _remember(self, index: int, features: NDArray[np.float32] | None, state: LaneState) -> LaneState:
        if features is None:
            return replace(self._pass_unknown(state), last_index=index)
        return replace(state, last_index=index, features=features, unknown_frames=0)

    def _classify(self, looks: Sequence[Look], states: dict[str, LaneState]) -> dict[str, NDArray[np.float32]]:
        """Logits [K] per lane that has features; moves the temporal state of those lanes on, in `states`."""
        seen = {look.decision.camera: look.features for look in looks if look.features is not None}
        if not seen:
            return {}
        before = np.stack([states[camera].temporal for camera in seen])
        logits, temporal = self._engine.step(np.stack(list(seen.values())), before)
        for lane, camera in enumerate(seen):
            states[camera] = replace(states[camera], temporal=temporal[lane])
        return dict(zip(seen, logits, strict=True))

    def _label(self, decision: Decision, logits: NDArray[np.float32], state: LaneState) -> tuple[Decision, LaneState]:
        """Decide on a frame that has features."""
        if state.steps < self.manifest.warmup_frames:
            return replace(decision, status=Status.WARMUP), replace(state, steps=state.steps + 1)
        probabilities = _probabilities(logits)
        decided = [decide(*each) for each in zip(probabilities, self._rules, state.rules, strict=True)]
        labels = tuple(label for label, _ in decided)
        state = replace(state, rules=tuple(rule_state for _, rule_state in decided))
        return replace(decision, probabilities=probabilities, labels=labels), state

    def _pass_unknown(self, state: LaneState) -> LaneState:
        """One tick without features: hold the last ones for a while, then reset the lane. Where the animal was and
        what the arena looks like is kept, since it does not depend on an unbroken sequence."""
        unknown = state.unknown_frames + 1
        if state.features is None:
            return replace(state, unknown_frames=unknown)
        if unknown > self.manifest.max_gap_frames:
            fresh = self.start(state.last_index)
            return replace(
                fresh, locate=state.locate, unknown_frames=unknown,
                picture_crc=state.picture_crc, same_pictures=state.same_pictures,
            )  # fmt: skip
        if not self.manifest.causal:
            return replace(state, unknown_frames=unknown)
        _, temporal = self._engine.step(state.features[None], state.temporal[None])
        return replace(state, temporal=temporal[0], unknown_frames=unknown)


class Hindsight:
    """Labels one camera with a bundle that looks ahead: ticks are held back until their stretch has ended.

    It looks as `Pipeline.step` does and decides by the same rules; only the temporal network sees what comes later.
    Needs memory for the features of the longest stretch.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._held: list[Look] = []

    def step(
        self, frames: Sequence[Frame], states: Mapping[str, LaneState]
    ) -> tuple[list[Decision], dict[str, LaneState]]:
        """As `Pipeline.step`, for frames of one camera, but the decisions come when their stretch has ended."""
        looks, after = self._pipeline.look(frames, states)
        decisions: list[Decision] = []
        for look in looks:
            self._held.append(look)
            if not look.goes_on:
                decisions += self.flush()
        return decisions, after

    def flush(self) -> list[Decision]:
        """End the stretch; the decisions that were held back."""
        looks, self._held = self._held, []
        return self._pipeline.label_stretch(looks)


def _probabilities(logits: NDArray[np.float32]) -> tuple[float, ...]:
    """Sigmoid, rounded as the log writes it: what is decided on is what is written."""
    return tuple(round(1.0 / (1.0 + math.exp(-min(max(float(x), -60.0), 60.0))), 6) for x in logits)


def _is_blind(pixels: Image, state: LaneState) -> tuple[bool, LaneState]:
    """Dark: hardly a pixel rises above the noise. Frozen: the very same picture, noise and all, again and again."""
    rows = np.ascontiguousarray(pixels[::_LOOK_EVERY_ROWS])
    crc = zlib.crc32(rows.data)
    same = state.same_pictures + 1 if crc == state.picture_crc else 1
    state = replace(state, picture_crc=crc, same_pictures=min(same, FROZEN_FRAMES + 1))
    dark = bool(np.count_nonzero(rows > _DARK_LEVEL) < _LIT_SHARE * rows.size)
    return dark or same > FROZEN_FRAMES, state
