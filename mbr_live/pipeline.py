"""The one place where the stages meet: locate > crop > features, kinematics > temporal > decide.

`Pipeline.step` has no clock, no queue, no thread and no randomness. Live and offline call the same function, so the
same pixels give the same bytes. All that a camera remembers is one LaneState.

The rule for what is not known. A tick without features (no frame, no animal, a dark or frozen picture) is labelled
unknown. For up to `max_gap_s` the temporal network goes on with the last features, so that its memory stays aligned
in time; a longer stretch resets the lane, which then warms up as at the start. Kinematics compare a frame with the
last one in which the animal was found, until the lane is reset.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbr_live.engines.protocol import Engine
from mbr_live.manifest import Manifest
from mbr_live.stages import locate
from mbr_live.stages.blindness import BlindState, is_blind
from mbr_live.stages.decide import Rule, RuleState, decide, fresh_rule_states
from mbr_live.stages.kinematics import Channels, KinematicState, columns, kinematics
from mbr_live.stages.silhouette import as_crop, silhouette
from mbr_live.types import NOT_FOUND, TICK_NS, UNKNOWN, Decision, Frame, Image, Sighting, Status

Features = NDArray[np.float32]
"""What the temporal network takes of one frame, float32 [D + M]."""


@dataclass(frozen=True, slots=True)
class SightState:
    """What one camera remembers of its pictures. Nothing in it depends on a network."""

    locate: locate.LocateState = field(default_factory=locate.initial_state)
    blind: BlindState = field(default_factory=BlindState)
    kinematics: KinematicState = field(default_factory=KinematicState)
    known_index: int = -1  # the last tick that had features; -1: none yet


@dataclass(frozen=True, slots=True)
class LaneState:
    """All that one camera remembers between two frames."""

    last_index: int  # -1 before the first frame
    sight: SightState
    temporal: NDArray[np.float32]  # [S]
    features: NDArray[np.float32] | None  # [D + M] of the last frame that had some; None after a reset
    rules: tuple[RuleState, ...]  # [K]
    steps: int  # steps of the temporal network since the reset; counts up to the warm-up only
    unknown_frames: int  # length of the unknown stretch that ends at this moment


@dataclass(frozen=True, slots=True)
class Seen:
    """What one frame shows, and what is to be remembered of it. Its pixels are not kept."""

    decision: Decision  # without probabilities and labels
    origin_ns: int  # capture time of tick 0
    after: SightState
    crop: Image | None = None  # None where the bundle has no feature network, or there are no features to be had
    channels: Channels | None = None  # [M]; None where it takes no kinematics, or there are none to be had


@dataclass(frozen=True, slots=True)
class Look:
    """What one tick, or one gap, shows before the temporal network has seen it."""

    decision: Decision  # without probabilities and labels
    features: NDArray[np.float32] | None  # [D + M]
    goes_on: bool  # whether a stretch goes on after it; where not, later frames say nothing of it


class Pipeline:
    """A bundle at work. Holds no state of any camera: that is in the LaneStates."""

    def __init__(self, manifest: Manifest, engine: Engine, window_px: Mapping[str, int] | None = None) -> None:
        """`window_px` fixes the crop window of a camera, by name; the others have the bundle's or, where it has none,
        find theirs from their first frames. MbrError for a bundle of other kinematic channels than are computed here.
        """
        self.manifest = manifest
        self._channels = columns(manifest.kinematics, manifest.kinematics_version)
        self._cuts = bool(manifest.kinematics) or manifest.crop == "silhouette"  # the animal out of the frame
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
        return LaneState(last_index, SightState(), temporal, None, fresh, 0, 0)

    def window_px(self, camera: str, state: SightState) -> int | None:
        """Side of the crop window: the camera's own if it was given, else the bundle's, else as found from the frames;
        None while not found yet.
        """
        return self._window_of(camera, state.locate)

    def _window_of(self, camera: str, located: locate.LocateState) -> int | None:
        return self._window_px.get(camera) or self.manifest.window_px or locate.window_px(located)

    def step(
        self, frames: Sequence[Frame], states: Mapping[str, LaneState]
    ) -> tuple[list[Decision], dict[str, LaneState]]:
        """Take at most one frame per lane; return their decisions, gaps first, and the next state of every lane.

        A frame must lie after the last one of its lane; ticks between the two become one gap decision.

        `see`, `features` and `label` are its three parts, for whoever runs them apart: pictures of several lanes can
        be seen at the same time, and the next picture of a lane while the networks are at the last one.
        """
        seen = [self.see(frame, states[frame.camera].sight) for frame in frames]
        return self.label(seen, self.features(seen), states)

    def see(self, frame: Frame, state: SightState) -> Seen:
        """Is there a picture, and an animal in it? Needs no network and no other lane; may run in any thread."""
        blind, looked = is_blind(frame.pixels, state.blind)
        if blind:
            return self._seen(frame, NOT_FOUND, Status.BLIND, replace(state, blind=looked))
        sighting, located = locate.locate(frame.pixels, state.locate)
        state = replace(state, locate=located, blind=looked)
        if not sighting.found:
            return self._seen(frame, sighting, Status.LOST, state)
        window_px = self._window_of(frame.camera, located)
        if window_px is None:
            return self._seen(frame, sighting, Status.WARMUP, state)
        crop, channels, moved = None, None, state.kinematics
        cut = silhouette(frame.pixels, sighting, located, window_px) if self._cuts else None
        if self.manifest.feature_dim:
            if cut and self.manifest.crop == "silhouette":
                crop = as_crop(cut)
            else:
                crop = locate.crop(frame.pixels, sighting.x_px, sighting.y_px, window_px)
        if cut and self.manifest.kinematics:
            if frame.index - state.known_index > self.manifest.max_gap_frames + 1:
                moved = moved.after_reset()  # as the lane has been since
            every, moved = kinematics(cut, moved)
            channels = every[self._channels]
        after = replace(state, kinematics=moved, known_index=frame.index)
        return replace(self._seen(frame, sighting, Status.OK, after), crop=crop, channels=channels)

    def _seen(self, frame: Frame, sighting: Sighting, status: Status, after: SightState) -> Seen:
        decision = Decision(
            frame.camera, frame.index, frame.source_frame, frame.time_ns, status,
            sighting.x_px, sighting.y_px, (), self._unknown,
        )  # fmt: skip
        return Seen(decision, frame.origin_ns, after)

    def features(self, seen: Sequence[Seen]) -> list[Features | None]:
        """What the temporal network takes, [D + M] each; None where there is none to be had. The pictures may be of
        any lanes, and of the same lane."""
        known = [each for each in seen if each.decision.status is Status.OK]
        crops = [each.crop for each in known if each.crop is not None]
        channels = [each.channels for each in known if each.channels is not None]
        rows = iter(self._inputs(crops, channels) if known else ())
        return [next(rows) if each.decision.status is Status.OK else None for each in seen]

    def label(
        self, seen: Sequence[Seen], features: Sequence[Features | None], states: Mapping[str, LaneState]
    ) -> tuple[list[Decision], dict[str, LaneState]]:
        """What `step` does after the features: at most one frame per lane, in order."""
        looks, after = self.look(seen, features, states)
        stepped = self._stepped(looks, after)
        decisions: list[Decision] = []
        for look in looks:
            decision, camera = look.decision, look.decision.camera
            if look.features is not None:
                decision, after[camera] = self._label(decision, *stepped[camera], after[camera])
            decisions.append(decision)
        return decisions, after

    def look(
        self, seen: Sequence[Seen], features: Sequence[Features | None], states: Mapping[str, LaneState]
    ) -> tuple[list[Look], dict[str, LaneState]]:
        """What `label` does before the temporal network: account for gaps, and remember what was seen."""
        after = dict(states)
        gaps: list[Look] = []
        looks: list[Look] = []
        for each, row in zip(seen, features, strict=True):
            camera, index = each.decision.camera, each.decision.index
            gap, state = self.gap(camera, index, each.origin_ns, after[camera])
            gaps += [Look(decision, None, state.features is not None) for decision in gap]
            after[camera] = state = self._remember(index, each, row, state)
            looks.append(Look(each.decision, row, state.features is not None))
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
                decision, state = self._label(decision, next(logits), state.temporal, state)
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

    def _inputs(self, crops: Sequence[Image], channels: Sequence[Channels]) -> NDArray[np.float32]:
        """Of lanes that have crops, channels or both, as the bundle wants them: [B, D + M]."""
        if not channels:
            return self._engine.features(_lanes(crops))
        if not crops:
            return _lanes(channels)
        return np.concatenate((self._engine.features(_lanes(crops)), _lanes(channels)), axis=1)

    def _remember(self, index: int, seen: Seen, features: NDArray[np.float32] | None, state: LaneState) -> LaneState:
        if features is None:
            return replace(self._pass_unknown(state), last_index=index, sight=seen.after)
        return replace(state, last_index=index, sight=seen.after, features=features, unknown_frames=0)

    def _stepped(
        self, looks: Sequence[Look], states: Mapping[str, LaneState]
    ) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Logits [K] and next temporal state [S] per lane that has features."""
        found = {look.decision.camera: look.features for look in looks if look.features is not None}
        if not found:
            return {}
        before = _lanes([states[camera].temporal for camera in found])
        logits, temporal = self._engine.step(_lanes(list(found.values())), before)
        return {camera: (logits[lane], temporal[lane]) for lane, camera in enumerate(found)}

    def _label(
        self, decision: Decision, logits: NDArray[np.float32], temporal: NDArray[np.float32], state: LaneState
    ) -> tuple[Decision, LaneState]:
        """Decide on a frame that has features, after which the temporal network is in state `temporal`."""
        if state.steps < self.manifest.warmup_frames:
            return replace(decision, status=Status.WARMUP), replace(state, temporal=temporal, steps=state.steps + 1)
        probabilities = _probabilities(logits)
        decided = [decide(*each) for each in zip(probabilities, self._rules, state.rules, strict=True)]
        labels = tuple(label for label, _ in decided)
        state = replace(state, temporal=temporal, rules=tuple(rule_state for _, rule_state in decided))
        return replace(decision, probabilities=probabilities, labels=labels), state

    def _pass_unknown(self, state: LaneState) -> LaneState:
        """One tick without features: hold the last ones for a while, then reset the lane. Where the animal was and
        what the arena looks like is kept, since it does not depend on an unbroken sequence."""
        unknown = state.unknown_frames + 1
        if state.features is None:
            return replace(state, unknown_frames=unknown)
        if unknown > self.manifest.max_gap_frames:
            fresh = self.start(state.last_index)
            return replace(fresh, sight=state.sight, unknown_frames=unknown)
        if not self.manifest.causal:
            return replace(state, unknown_frames=unknown)
        _, temporal = self._engine.step(state.features[None], state.temporal[None])
        return replace(state, temporal=temporal[0], unknown_frames=unknown)


class Hindsight:
    """Labels one camera with a bundle that looks ahead: ticks are held back until their stretch has ended.

    It sees as `Pipeline.step` does and decides by the same rules; only the temporal network sees what comes later.
    Needs memory for the features of the longest stretch.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._held: list[Look] = []

    def label(
        self, seen: Sequence[Seen], features: Sequence[Features | None], states: Mapping[str, LaneState]
    ) -> tuple[list[Decision], dict[str, LaneState]]:
        """As `Pipeline.label`, for frames of one camera, but the decisions come when their stretch has ended."""
        looks, after = self._pipeline.look(seen, features, states)
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


def _lanes(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Arrays of equal shape as one, [B, ...]; numpy's stack costs more."""
    return np.concatenate([array[None] for array in arrays])


def _probabilities(logits: NDArray[np.float32]) -> tuple[float, ...]:
    """Sigmoid, rounded as the log writes it: what is decided on is what is written."""
    return tuple(round(1.0 / (1.0 + math.exp(-min(max(float(x), -60.0), 60.0))), 6) for x in logits)
