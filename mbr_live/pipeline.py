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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbr_live import locate
from mbr_live.bundle import Manifest
from mbr_live.decide import Rule, RuleState, decide, fresh_rule_states
from mbr_live.engine import Engine
from mbr_live.kinematics import Channels, KinematicState, columns, kinematics
from mbr_live.silhouette import silhouette
from mbr_live.types import NOT_FOUND, TICK_NS, UNKNOWN, Decision, Frame, Image, Sighting, Status

FROZEN_FRAMES = 50  # no camera delivers the same noise for five seconds
_DARK_LEVEL = 20  # of 255; the noise of a covered lens stays below
_LIT_SHARE = 0.001  # a picture with fewer pixels above that level shows nothing
_NO_ROWS = np.zeros((0, 0, 3), np.uint8)
_LOOK_EVERY_ROWS = 32  # health looks at every 32nd row: 0.02 ms instead of 1 ms at 640 x 480


@dataclass(frozen=True, slots=True)
class LaneState:
    """All that one camera remembers between two frames."""

    last_index: int  # -1 before the first frame
    locate: locate.LocateState
    temporal: NDArray[np.float32]  # [S]
    features: NDArray[np.float32] | None  # [D + M] of the last frame that had some; None after a reset
    kinematics: KinematicState
    rules: tuple[RuleState, ...]  # [K]
    steps: int  # steps of the temporal network since the reset; counts up to the warm-up only
    unknown_frames: int  # length of the unknown stretch that ends at this moment
    rows: Image  # of the last picture, those that health looks at
    same_pictures: int  # how often these came in a row


@dataclass(frozen=True, slots=True)
class _Classified:
    """What the networks say of one frame of one lane."""

    probabilities: tuple[float, ...]  # [K]
    features: NDArray[np.float32]  # [D + M]
    temporal: NDArray[np.float32]  # [S], the state after the frame


@dataclass(frozen=True, slots=True)
class _View:
    """What the networks are shown of one frame."""

    crop: Image | None  # None where the bundle has no feature network
    channels: Channels | None  # [M]; None where it takes no kinematics


class Pipeline:
    """A bundle at work. Holds no state of any camera: that is in the LaneStates."""

    def __init__(self, manifest: Manifest, engine: Engine, window_px: Mapping[str, int] | None = None) -> None:
        """`window_px` fixes the crop window of a camera, by name; the others have the bundle's or, where it has none,
        find theirs from their first frames. MbrError for a bundle of other kinematic channels than are computed here.
        """
        self.manifest = manifest
        self._channels = columns(manifest.kinematics, manifest.kinematics_version)
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
        return LaneState(last_index, locate.initial_state(), temporal, None, KinematicState(), fresh, 0, 0, _NO_ROWS, 0)

    def window_px(self, camera: str, state: LaneState) -> int | None:
        """Side of the crop window: the camera's own if it was given, else the bundle's, else as found from the frames;
        None while not found yet.
        """
        return self._window_px.get(camera) or self.manifest.window_px or locate.window_px(state.locate)

    def step(
        self, frames: Sequence[Frame], states: Mapping[str, LaneState]
    ) -> tuple[list[Decision], dict[str, LaneState]]:
        """Take at most one frame per lane; return their decisions, gaps first, and the next state of every lane.

        A frame must lie after the last one of its lane; ticks between the two become one gap decision.
        """
        decisions: list[Decision] = []
        after = dict(states)
        views: dict[str, _View] = {}
        seen: dict[str, tuple[Sighting, Status]] = {}
        for frame in frames:
            gap, state = self.gap(frame.camera, frame.index, frame.origin_ns, after[frame.camera])
            decisions += gap
            sighting, status, view, state = self._look(frame, state)
            seen[frame.camera], after[frame.camera] = (sighting, status), state
            if view is not None:
                views[frame.camera] = view
        classified = self._classify(views, after)
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

    def _look(self, frame: Frame, state: LaneState) -> tuple[Sighting, Status, _View | None, LaneState]:
        """Is there a picture, and an animal in it? The view is None where there are no features to be had."""
        blind, rows, same = _is_blind(frame.pixels, state)
        if blind:
            return NOT_FOUND, Status.BLIND, None, replace(state, rows=rows, same_pictures=same)
        sighting, located = locate.locate(frame.pixels, state.locate)
        state = replace(state, locate=located, rows=rows, same_pictures=same)
        if not sighting.found:
            return sighting, Status.LOST, None, state
        window_px = self.window_px(frame.camera, state)
        if window_px is None:
            return sighting, Status.WARMUP, None, state
        view, state = self._viewed(frame.pixels, sighting, window_px, state)
        return sighting, Status.OK, view, state

    def _viewed(self, pixels: Image, sighting: Sighting, window_px: int, state: LaneState) -> tuple[_View, LaneState]:
        crop, channels = None, None
        if self.manifest.feature_dim:
            crop = locate.crop(pixels, sighting.x_px, sighting.y_px, window_px)
        if self.manifest.kinematics:
            cut = silhouette(pixels, sighting, state.locate, window_px)
            every, moved = kinematics(cut, state.kinematics)
            channels, state = every[self._channels], replace(state, kinematics=moved)
        return _View(crop, channels), state

    def _classify(self, views: Mapping[str, _View], states: Mapping[str, LaneState]) -> dict[str, _Classified]:
        """What the networks say, per lane that has a view."""
        if not views:
            return {}
        cameras = list(views)
        features = self._inputs(list(views.values()))
        before = _lanes([states[camera].temporal for camera in cameras])
        logits, temporal = self._engine.step(features, before)
        return {
            camera: _Classified(_probabilities(logits[lane]), features[lane], temporal[lane])
            for lane, camera in enumerate(cameras)
        }

    def _inputs(self, views: Sequence[_View]) -> NDArray[np.float32]:
        """What the temporal network takes of every lane, [B, D + M]."""
        crops = [view.crop for view in views if view.crop is not None]
        channels = [view.channels for view in views if view.channels is not None]
        if not channels:
            return self._engine.features(_lanes(crops))
        if not crops:
            return _lanes(channels)
        return np.concatenate((self._engine.features(_lanes(crops)), _lanes(channels)), axis=1)

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
            return replace(
                fresh, locate=state.locate, unknown_frames=unknown,
                rows=state.rows, same_pictures=state.same_pictures,
            )  # fmt: skip
        _, temporal = self._engine.step(state.features[None], state.temporal[None])
        return replace(state, temporal=temporal[0], unknown_frames=unknown)


def _lanes(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Arrays of equal shape as one, [B, ...]; numpy's stack takes three times as long."""
    return np.concatenate([array[None] for array in arrays])


def _probabilities(logits: NDArray[np.float32]) -> tuple[float, ...]:
    """Sigmoid, rounded as the log writes it: what is decided on is what is written."""
    return tuple(round(1.0 / (1.0 + math.exp(-min(max(float(x), -60.0), 60.0))), 6) for x in logits)


def _is_blind(pixels: Image, state: LaneState) -> tuple[bool, Image, int]:
    """Dark: hardly a pixel rises above the noise. Frozen: the very same picture, noise and all, again and again.

    Returns whether it is either, the rows that were looked at and how often they came in a row.
    """
    rows = np.ascontiguousarray(pixels[::_LOOK_EVERY_ROWS])
    same = min(state.same_pictures, FROZEN_FRAMES) + 1 if np.array_equal(rows, state.rows) else 1
    dark = bool(np.count_nonzero(rows > _DARK_LEVEL) < _LIT_SHARE * rows.size)
    return dark or same > FROZEN_FRAMES, rows, same
