"""The inference process: frames in from all cameras, labels out.

One thread receives and looks at the pictures, the main one computes the networks, decides and writes; a few frames at
most lie between them. Frames that have been seen by the time that the networks are free share a call of theirs: nothing
waits for others to arrive.

It writes a label before it tells anybody about it. It goes on with the files that it finds, so that it can be killed
at any moment and started again.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime

import cv2

from mbr_live.ahead import Ahead
from mbr_live.appending import once_there_is_room
from mbr_live.cameras.calibration import windows_px
from mbr_live.config import Config
from mbr_live.drift import Reference, reference_of
from mbr_live.engines.choice import open_live_engine
from mbr_live.holding import INFERENCE, held
from mbr_live.keys import load_keys
from mbr_live.live.arrivals import Arrival, Eye, RefusedFrame, SeenFrame, arrivals
from mbr_live.live.backlog import Labelled
from mbr_live.live.checks import live_bundle, recorded_engine
from mbr_live.live.lane import Lane, Timing
from mbr_live.pipeline import Features, Pipeline
from mbr_live.processes import Stop, notify, stop_signal
from mbr_live.sinks.run_manifest import RunManifest, versions
from mbr_live.status import LabelMessage, OutputStatus, SystemStatus, passed_on, read_output_status
from mbr_live.types import Decision, Status
from mbr_live.wire.frames import FrameReceiver
from mbr_live.wire.messages import BadMessage, End, Header, Heartbeat, own_clock
from mbr_live.wire.status import StatusPublisher

STATUS_EVERY_S = 1.0
DRAIN_S = 2.0  # after a stop: how long no frame must come before cameras that said no end are given up
DRAIN_AT_MOST_S = 8.0  # ... and how long frames may; a capture that is told to stop as well says its end sooner
AHEAD_FRAMES = 8  # seen but not labelled yet; what is behind them waits in the sockets, where its size is bounded too
_WAIT_S = 0.2

_log = logging.getLogger(__name__)


def infer(config: Config) -> None:
    """Label what the cameras of `config` send, until told to stop.

    Then what is on its way is labelled too: until every camera has ended, none sends frames, or some seconds are over.
    """
    bundle = live_bundle(config)
    keys = load_keys(config.wire.keys)
    config.out.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(1)  # the networks and the captures have use for the other cores
    engine, note = open_live_engine(bundle, config.engine, recorded=recorded_engine(config))
    pipeline = Pipeline(bundle.manifest, engine, windows_px(config))
    reference = reference_of(bundle)
    with ExitStack() as stack:
        # Sockets first: an address in use must leave no files behind.
        receiver = stack.enter_context(closing(FrameReceiver(config.wire.frames, keys)))
        publisher = stack.enter_context(closing(StatusPublisher(config.wire.status, keys)))
        template = RunManifest(
            recording="", mode="live", exit_status="running", started=datetime.now(UTC).isoformat(),
            bundle=bundle.manifest.name, bundle_sha256=bundle.sha256, max_gap_frames=bundle.manifest.max_gap_frames,
            engine=engine.name, versions=versions(), sources=[],
        )  # fmt: skip
        stop = stack.enter_context(stop_signal())
        lanes = once_there_is_room(
            lambda: _lanes(config, pipeline, template, reference, stack), stopped=lambda: stop.requested
        )
        if lanes is None:
            return
        words = engine.name if note is None else f"{engine.name} ({note})"
        eyes = {
            name: Eye(pipeline, lane.state.last_index, glances=reference is not None) for name, lane in lanes.items()
        }
        service = _Service(config, pipeline, lanes, eyes, publisher, template, words)
        with closing(Ahead(arrivals(receiver, eyes, _WAIT_S), AHEAD_FRAMES)) as ahead:
            service.serve(ahead, stop)
            service.end()


def _lanes(
    config: Config, pipeline: Pipeline, template: RunManifest, reference: Reference | None, stack: ExitStack
) -> dict[str, Lane]:
    """All lanes, in a folder that is this process's alone, to be closed by `stack`; or none, and the error."""
    with ExitStack() as attempt:
        attempt.enter_context(held(config.out, INFERENCE))
        lanes = {
            camera.name: attempt.enter_context(closing(Lane(config, camera, pipeline, template, reference)))
            for camera in config.camera
        }
        stack.enter_context(attempt.pop_all())
    return lanes


class _Service:
    """The loop: take what was seen, compute, write, publish."""

    def __init__(
        self,
        config: Config,
        pipeline: Pipeline,
        lanes: dict[str, Lane],
        eyes: dict[str, Eye],
        publisher: StatusPublisher,
        template: RunManifest,
        engine: str,
    ) -> None:
        self._engine = engine
        self._config, self._pipeline = config, pipeline
        self._lanes, self._eyes = lanes, eyes
        self._publisher, self._template = publisher, template
        self._refused: Counter[str] = Counter()
        self._started_s = time.monotonic()
        self._next_status_s = 0.0

    def serve(self, ahead: Ahead[Arrival | None], stop: Stop) -> None:
        """Until a stop is asked for; then until every camera that was live has ended, no frames, or long enough."""
        notify("READY=1")
        frame_s = 0.0  # when the last frame came
        asked_s = math.inf  # when a stop was asked for
        for group in ahead.groups(AHEAD_FRAMES):
            now_s = time.monotonic()
            if any(isinstance(each, SeenFrame) for each in group):
                frame_s = now_s
            self._take([each for each in group if each is not None])
            self._catch_up()
            self._publish_status()
            if not stop.requested:
                continue
            asked_s = min(asked_s, now_s)
            no_frames = now_s - max(frame_s, asked_s) > DRAIN_S
            if self._all_ended() or no_frames or now_s - asked_s > DRAIN_AT_MOST_S:
                return

    def _all_ended(self) -> bool:
        return all(lane.ended or lane.session is None for lane in self._lanes.values())

    def _take(self, group: Sequence[Arrival]) -> None:
        """Take messages in their order; the features of all frames among them are computed together."""
        features = iter(self._pipeline.features([each.seen for each in group if isinstance(each, SeenFrame)]))
        due: dict[str, tuple[SeenFrame, Features | None]] = {}  # at most one frame per lane
        for each in group:
            if isinstance(each, BadMessage):
                self._refuse_message(str(each))
                continue
            message = each.header if isinstance(each, SeenFrame | RefusedFrame) else each
            if message.camera in due:
                self._label(due)
                due = {}
            self._hear(self._lanes[message.camera], message)
            if isinstance(each, SeenFrame):
                due[message.camera] = each, next(features)
            elif isinstance(each, RefusedFrame):
                self._lanes[message.camera].refused[each.why] += 1
        self._label(due)

    def _hear(self, lane: Lane, message: Header) -> None:
        """Take everything of a message but the picture."""
        if message.session != lane.session:
            lane.session, lane.ended = message.session, False
        match message:
            case Heartbeat():
                lane.hear(message)
            case End():
                self._tell(lane, lane.finish(message))

    def _label(self, due: Mapping[str, tuple[SeenFrame, Features | None]]) -> None:
        """Label one frame of each of some lanes."""
        states = {name: self._lanes[name].state for name in due}
        seen, features = [frame.seen for frame, _ in due.values()], [found for _, found in due.values()]
        decisions, states = self._pipeline.label(seen, features, states)
        for name, state in states.items():
            self._lanes[name].state = state
        for decision in decisions:
            lane = self._lanes[decision.camera]
            if decision.status is Status.GAP:
                self._tell(lane, [decision])
                continue
            frame, _ = due[decision.camera]
            lane.backlog.add(Labelled(decision, frame.header, frame.received_ns))
            self._tell_written(lane)
            lane.note_drift(frame.glance, decision)

    def _tell(self, lane: Lane, gaps: list[Decision]) -> None:
        for gap in gaps:
            lane.backlog.add(Labelled(gap, None))
        self._tell_written(lane)

    def _tell_written(self, lane: Lane, *, now: bool = False) -> None:
        for decision, header, received_ns in lane.backlog.written(now=now):
            self._publish(decision, lane.note_timing(header, received_ns) if header else None)

    def _catch_up(self) -> None:
        """Write what waits for room, and look at no more frames than may wait."""
        for name, lane in self._lanes.items():
            self._tell_written(lane)
            self._eyes[name].closed = lane.backlog.full

    def end(self) -> None:
        """Write what still waits. Rows that find no room now are in no log, and neither are they in the manifest."""
        for lane in self._lanes.values():
            self._tell_written(lane, now=True)
            if lane.backlog:
                _log.error("%s: the last %d rows found no room on the disk and are lost", lane.name, len(lane.backlog))

    def _publish(self, decision: Decision, timing: Timing | None) -> None:
        found = not math.isnan(decision.x_px)
        self._publisher.publish(
            LabelMessage(
                camera=decision.camera,
                index=decision.index,
                ticks=decision.ticks,
                status=decision.status,
                x_px=decision.x_px if found else None,
                y_px=decision.y_px if found else None,
                probabilities=list(decision.probabilities),
                labels=list(decision.labels),
                latency_ms=timing.latency_ms if timing else None,
                time_ns=decision.time_ns,
                clock=own_clock(),
                captured_ns=timing.captured_ns if timing else None,
                received_ns=timing.received_ns if timing else None,
                labelled_ns=timing.labelled_ns if timing else None,
            )
        )

    def _publish_status(self) -> None:
        now_s = time.monotonic()
        if now_s < self._next_status_s:
            return
        self._next_status_s = now_s + STATUS_EVERY_S
        notify("WATCHDOG=1")
        for lane in self._lanes.values():
            lane.keep_counts(now_s)
        self._publisher.publish(
            SystemStatus(
                out=str(self._config.out),
                bundle=self._template.bundle,
                engine=self._engine,
                behaviours=list(self._pipeline.manifest.behaviour_names),
                uptime_s=round(now_s - self._started_s, 1),
                refused=dict(self._refused),
                cameras=[lane.status(now_s) for lane in self._lanes.values()],
                output=self._output_status(),
            )
        )

    def _output_status(self) -> OutputStatus | None:
        if not self._config.trigger:
            return None
        return passed_on(read_output_status(self._config.out), time.monotonic_ns())

    def _refuse_message(self, why: str) -> None:
        # A fixed number of counters: reasons contain what a stranger sent.
        self._refused["messages"] += 1
        if self._refused["messages"] <= 10 or self._refused["messages"] % 1000 == 0:
            _log.warning("refused message %d: %s", self._refused["messages"], why)
