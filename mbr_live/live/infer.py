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
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import cv2

from mbr_live.ahead import Ahead
from mbr_live.appending import Unwritable, WaitingRows, once_there_is_room
from mbr_live.bundle import check_live, load_bundle
from mbr_live.cameras.calibration import windows_px
from mbr_live.config import Camera, Config
from mbr_live.drift import MEMORY_FRAMES, Drift, Glance, Reference, reference_of
from mbr_live.engines.choice import kind_of, open_live_engine
from mbr_live.keys import load_keys
from mbr_live.latency import LatencyHistogram
from mbr_live.live.arrivals import MAX_JUMP_TICKS, Arrival, Eye, RefusedFrame, SeenFrame, arrivals
from mbr_live.live.backlog import Backlog, Labelled
from mbr_live.pipeline import Features, LaneState, Pipeline
from mbr_live.processes import Stop, notify, stop_signal
from mbr_live.sinks import (
    BOUTS_SUFFIX,
    LABELS_SUFFIX,
    RUN_SUFFIX,
    RunManifest,
    SessionLog,
    gap_ranges,
    read_labels,
    read_run,
    versions,
    write_run,
)
from mbr_live.status import CameraStatus, LabelMessage, Liveness, SystemStatus
from mbr_live.types import RATE_FPS, Decision, EngineKind, MbrError, Status
from mbr_live.wire import (
    BadMessage,
    CameraReport,
    End,
    FrameHeader,
    FrameReceiver,
    Header,
    Heartbeat,
    StatusPublisher,
    own_clock,
)

TIMINGS_SUFFIX = ".timings.csv"
TIMINGS_HEADER = "frame,capture_to_receive_ms,capture_to_label_ms"

STATUS_EVERY_S = 1.0
STALE_AFTER_S = 1.0
DRAIN_S = 2.0  # after a stop: how long silence must last before cameras that said no end are given up
AHEAD_FRAMES = 8  # seen but not labelled yet; what is behind them waits in the sockets, where its size is bounded too
_WAIT_S = 0.2
_FPS_OVER_S = 5.0

_log = logging.getLogger(__name__)


def infer(config: Config) -> None:
    """Label what the cameras of `config` send, until told to stop and every camera has ended or fallen silent."""
    bundle = load_bundle(config.bundle)
    check_live(bundle)
    keys = load_keys(config.wire.keys)
    config.out.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(1)  # the networks and the captures have use for the other cores
    engine, note = open_live_engine(bundle, config.engine, recorded=_recorded_engine(config))
    pipeline = Pipeline(bundle.manifest, engine, windows_px(config))
    reference = reference_of(bundle)
    with ExitStack() as stack:
        # Sockets first: an address in use must leave no files behind.
        receiver = stack.enter_context(closing(FrameReceiver(config.wire.frames, keys)))
        publisher = stack.enter_context(closing(StatusPublisher(config.wire.status, keys)))
        template = RunManifest(
            recording="", mode="live", exit_status="running", started=datetime.now(UTC).isoformat(),
            bundle=bundle.manifest.name, bundle_sha256=bundle.sha256, engine=engine.name, versions=versions(),
            sources=[],
        )  # fmt: skip
        stop = stack.enter_context(stop_signal())
        lanes = once_there_is_room(
            lambda: _lanes(config, pipeline, template, reference, stack), lambda: stop.requested
        )  # fmt: skip
        if lanes is None:
            return
        words = engine.name if note is None else f"{engine.name} ({note})"
        eyes = {
            name: Eye(pipeline, lane.state.last_index, glances=reference is not None) for name, lane in lanes.items()
        }
        service = _Service(config, pipeline, (lanes, eyes), publisher, template, words)
        with closing(Ahead(arrivals(receiver, eyes, _WAIT_S), AHEAD_FRAMES)) as ahead:
            service.serve(ahead, stop)
            service.end()


def _lanes(
    config: Config, pipeline: Pipeline, template: RunManifest, reference: Reference | None, stack: ExitStack
) -> dict[str, Lane]:
    """All lanes, to be closed by `stack`; or none, and the error."""
    with ExitStack() as attempt:
        lanes = {
            camera.name: attempt.enter_context(closing(Lane(config.out, camera, pipeline, template, reference)))
            for camera in config.camera
        }
        stack.enter_context(attempt.pop_all())
    return lanes


def _recorded_engine(config: Config) -> EngineKind | None:
    """The engine of the labels that are there and will be gone on with; None where there are none."""
    runs = [config.out / f"{camera.name}{RUN_SUFFIX}" for camera in config.camera]
    kinds = {path: kind_of(read_run(path).engine) for path in runs if path.exists()}
    if len(set(kinds.values())) > 1:
        raise MbrError(
            f"{config.out}: its sessions were labelled with several engines "
            f"({', '.join(f'{path.name}: {kind}' for path, kind in kinds.items())}), and one process has one. "
            "Give another folder."
        )
    return next(iter(kinds.values()), None)


class Timing(NamedTuple):
    """When a frame was in memory, received and labelled; CLOCK_MONOTONIC of this machine."""

    captured_ns: int | None  # None where that cannot be known, since it was captured by the clock of another machine
    received_ns: int
    labelled_ns: int

    @property
    def latency_ms(self) -> float | None:
        """From capture to label."""
        return None if self.captured_ns is None else (self.labelled_ns - self.captured_ns) / 1e6


class Lane:
    """One camera at the inference side: its state, its files and its figures."""

    def __init__(
        self, out: Path, camera: Camera, pipeline: Pipeline, template: RunManifest, reference: Reference | None
    ) -> None:
        self.name = camera.name
        self._pipeline = pipeline
        self._paths = {s: out / f"{camera.name}{s}" for s in (LABELS_SUFFIX, BOUTS_SUFFIX, RUN_SUFFIX, TIMINGS_SUFFIX)}
        self._log, last_index = SessionLog.resume(
            self._paths[LABELS_SUFFIX], self._paths[BOUTS_SUFFIX], pipeline.manifest
        )
        self.state: LaneState = pipeline.start(last_index)
        try:
            self.run = self._begin_run(camera, template, last_index)
        except OSError:
            self._log.close()
            raise
        self.backlog = Backlog(camera.name, self._log.write)
        self._timings = WaitingRows(self._paths[TIMINGS_SUFFIX], TIMINGS_HEADER + "\n")
        self.latency, self.on_the_way = LatencyHistogram(), LatencyHistogram()  # capture to label, to receipt
        self.refused: Counter[str] = Counter()
        self.session: str | None = None  # the capture process that sends
        self.ended = False
        self.report = CameraReport()
        self.last_frame_s: float | None = None
        self._recent_s: deque[float] = deque(maxlen=int(_FPS_OVER_S * RATE_FPS) * 4)
        names = pipeline.manifest.behaviour_names
        self._drift = Drift(reference, names, MEMORY_FRAMES) if reference else None

    def _begin_run(self, camera: Camera, template: RunManifest, last_index: int) -> RunManifest:
        path = self._paths[RUN_SUFFIX]
        source = camera.source.model_dump_json()
        run = template.model_copy(update={"recording": camera.name, "sources": [source]}, deep=True)
        if path.exists() and last_index >= 0:
            before = read_run(path)
            # Once, also where the beginning had to be tried again.
            run.started, run.restarts = before.started, sorted({*before.restarts, last_index})
        write_run(path, run)
        return run

    def note_timing(self, header: FrameHeader, received_ns: int) -> Timing:
        """Keep how long the frame took from capture to the written label."""
        now_ns = time.monotonic_ns()
        self.last_frame_s = now_ns / 1e9
        self._recent_s.append(self.last_frame_s)
        if header.clock != own_clock():
            self._timings.append(f"{header.index},,\n")
            return Timing(None, received_ns, now_ns)
        latency_ms = (now_ns - header.captured_ns) / 1e6
        self._timings.append(f"{header.index},{(received_ns - header.captured_ns) / 1e6:.3f},{latency_ms:.3f}\n")
        self.latency.add(latency_ms)
        self.on_the_way.add((received_ns - header.captured_ns) / 1e6)
        return Timing(header.captured_ns, received_ns, now_ns)

    def hear(self, message: Heartbeat | End) -> None:
        """Take what the capture process says of itself and of its camera."""
        self.report = message.report
        self.run.capture, self.run.outages = message.counts.model_dump(), dict(message.report.outages)
        self.run.clock = message.report.clock or self.run.clock

    def note_drift(self, glance: Glance | None, decision: Decision) -> None:
        """Keep what a frame looked like, once its label is out."""
        if self._drift:
            self._drift.hear([decision])
            if glance:
                self._drift.see(glance)

    def _drifted(self) -> tuple[dict[str, float], list[str]]:
        figures = self._drift.figures() if self._drift else {}
        return figures, self._drift.drifted(figures) if self._drift else []

    def finish(self, end: End) -> list[Decision]:
        """Take the end of the session: account for the last ticks, which no frame will serve any more."""
        self.hear(end)
        self.ended = True
        ticks = end.last_index - self.state.last_index
        if ticks > MAX_JUMP_TICKS:
            self.refused["jump"] += 1
        if not 0 < ticks <= MAX_JUMP_TICKS:
            return []
        gaps, self.state = self._pipeline.gap(self.name, end.last_index + 1, end.origin_ns, self.state)
        return gaps

    def status(self, now_s: float) -> CameraStatus:
        """How this camera is doing."""
        recent = [at_s for at_s in self._recent_s if now_s - at_s <= _FPS_OVER_S]
        drops = {key: value for key, value in self.run.capture.items() if key.startswith("dropped_") and value}
        # What capture did not drop never came from the camera, or came while no process was there to take it.
        unserved = self._log.rows["gap"] - sum(drops.values())
        if unserved > 0:
            drops["no_frame"] = unserved
        drift, drifted = self._drifted()
        return CameraStatus(
            name=self.name,
            state=self._liveness(now_s),
            fps=round(len(recent) / _FPS_OVER_S, 1),
            last_index=self.state.last_index,
            latency=self.latency.summary(),
            rows=dict(self._log.rows),
            drops={**drops, **self.refused},
            lost=self.report.lost,
            lost_for_s=self.report.lost_for_s,
            detail=self.report.detail,
            outages=self.report.outages,
            source_fps=self.report.source_fps,
            alarms=self.report.alarms,
            drift=drift,
            drifted=drifted,
            unrecorded=self.run.capture.get("unrecorded", 0),
            unwritten=len(self.backlog),
        )

    def _liveness(self, now_s: float) -> Liveness:
        if self.ended:
            return "ended"
        if self.last_frame_s is None:
            return "waiting"
        return "stale" if now_s - self.last_frame_s > STALE_AFTER_S else "live"

    def close(self) -> None:
        """End the session: close the open bouts, and complete the manifest. Unwritable on a full disk."""
        self._log.close()
        self._timings.close()
        self.run.exit_status = "complete" if self.ended else "stopped"
        self.run.finished = datetime.now(UTC).isoformat()
        self.run.rows, self.run.bouts = dict(self._log.rows), dict(self._log.bout_counts)
        self.run.drops = gap_ranges(read_labels(self._paths[LABELS_SUFFIX]))
        self.run.window_px = self._pipeline.window_px(self.name, self.state.sight)
        self.run.refused = dict(self.refused)
        self.run.drift, self.run.drifted = self._drifted()
        stages = {"capture_to_label": self.latency, "capture_to_receive": self.on_the_way}
        self.run.timings = {f"{name}_{key}": ms for name, of in stages.items() for key, ms in of.summary().items()}
        try:
            write_run(self._paths[RUN_SUFFIX], self.run)
        except OSError as error:
            raise Unwritable(self._paths[RUN_SUFFIX], error.strerror or str(error), error.errno) from error


class _Service:
    """The loop: take what was seen, compute, write, publish."""

    def __init__(
        self,
        config: Config,
        pipeline: Pipeline,
        lanes: tuple[dict[str, Lane], dict[str, Eye]],
        publisher: StatusPublisher,
        template: RunManifest,
        engine: str,
    ) -> None:
        self._engine = engine
        self._config, self._pipeline = config, pipeline
        self._lanes, self._eyes = lanes
        self._publisher, self._template = publisher, template
        self._refused: Counter[str] = Counter()
        self._started_s = time.monotonic()
        self._next_status_s = 0.0

    def serve(self, ahead: Ahead[Arrival | None], stop: Stop) -> None:
        """Until a stop is asked for; then until every camera that was live has ended, or silence."""
        notify("READY=1")
        silent_since_s = time.monotonic()
        for group in ahead.groups(AHEAD_FRAMES):
            arrived = [arrival for arrival in group if arrival is not None]
            if arrived:
                silent_since_s = time.monotonic()
            self._take(arrived)
            self._catch_up()
            self._publish_status()
            if stop.requested and (self._all_ended() or time.monotonic() - silent_since_s > DRAIN_S):
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
        self._publisher.publish(
            SystemStatus(
                out=str(self._config.out),
                bundle=self._template.bundle,
                engine=self._engine,
                behaviours=list(self._pipeline.manifest.behaviour_names),
                uptime_s=round(now_s - self._started_s, 1),
                refused=dict(self._refused),
                cameras=[lane.status(now_s) for lane in self._lanes.values()],
            )
        )

    def _refuse_message(self, why: str) -> None:
        # A fixed number of counters: reasons contain what a stranger sent.
        self._refused["messages"] += 1
        if self._refused["messages"] <= 10 or self._refused["messages"] % 1000 == 0:
            _log.warning("refused message %d: %s", self._refused["messages"], why)
