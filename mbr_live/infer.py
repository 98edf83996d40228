"""The inference process: frames in from all cameras, labels out, one thread, no queue of its own.

It writes a label before it tells anybody about it. It goes on with the files that it finds, so that it can be killed
at any moment and started again.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from mbr_live.bundle import check_live, load_bundle
from mbr_live.config import Camera, Config
from mbr_live.engine import OpenVinoEngine
from mbr_live.keys import load_keys
from mbr_live.latency import LatencyHistogram
from mbr_live.pipeline import LaneState, Pipeline
from mbr_live.processes import Stop, notify, stop_signal
from mbr_live.sinks import (
    BOUTS_SUFFIX,
    LABELS_SUFFIX,
    RUN_SUFFIX,
    RunManifest,
    SessionLog,
    append,
    gap_ranges,
    read_labels,
    read_run,
    versions,
    write_run,
)
from mbr_live.status import CameraStatus, LabelMessage, Liveness, SystemStatus
from mbr_live.types import RATE_FPS, Decision
from mbr_live.wire import (
    BadMessage,
    End,
    FrameHeader,
    FrameReceiver,
    Header,
    Heartbeat,
    StatusPublisher,
    frame_of,
    own_clock,
)

TIMINGS_SUFFIX = ".timings.csv"
TIMINGS_HEADER = "frame,capture_to_receive_ms,capture_to_label_ms"

STATUS_EVERY_S = 1.0
STALE_AFTER_S = 1.0
DRAIN_S = 2.0  # after a stop: how long silence must last before cameras that said no end are given up
MAX_JUMP_TICKS = 7 * 24 * 3600 * RATE_FPS  # a longer outage is a new session, and a larger number a damaged header
_FPS_OVER_S = 5.0

_log = logging.getLogger(__name__)


def infer(config: Config) -> None:
    """Label what the cameras of `config` send, until told to stop and every camera has ended or fallen silent."""
    bundle = load_bundle(config.bundle)
    check_live(bundle)
    keys = load_keys(config.wire.keys)
    config.out.mkdir(parents=True, exist_ok=True)
    engine = OpenVinoEngine(bundle)
    windows = {camera.name: camera.window_px for camera in config.camera if camera.window_px is not None}
    pipeline = Pipeline(bundle.manifest, engine, windows)
    with ExitStack() as stack:
        # Sockets first: an address in use must leave no files behind.
        receiver = stack.enter_context(closing(FrameReceiver(config.wire.frames, keys)))
        publisher = stack.enter_context(closing(StatusPublisher(config.wire.status, keys)))
        template = RunManifest(
            recording="", mode="live", exit_status="running", started=datetime.now(UTC).isoformat(),
            bundle=bundle.manifest.name, bundle_sha256=bundle.sha256, engine=engine.name, versions=versions(),
            sources=[],
        )  # fmt: skip
        lanes = {
            camera.name: stack.enter_context(closing(Lane(config.out, camera, pipeline, template)))
            for camera in config.camera
        }
        service = _Service(config, pipeline, lanes, receiver, publisher, template)
        with stop_signal() as stop:
            service.serve(stop)


class Lane:
    """One camera at the inference side: its state, its files and its figures."""

    def __init__(self, out: Path, camera: Camera, pipeline: Pipeline, template: RunManifest) -> None:
        self.name = camera.name
        self._pipeline = pipeline
        self._paths = {s: out / f"{camera.name}{s}" for s in (LABELS_SUFFIX, BOUTS_SUFFIX, RUN_SUFFIX, TIMINGS_SUFFIX)}
        self._log, last_index = SessionLog.resume(
            self._paths[LABELS_SUFFIX], self._paths[BOUTS_SUFFIX], pipeline.manifest
        )
        self.state: LaneState = pipeline.start(last_index)
        self.run = self._begin_run(camera, template, last_index)
        self._timings = FileIO(self._paths[TIMINGS_SUFFIX], "a")
        if self._timings.tell() == 0:
            append(self._timings, TIMINGS_HEADER + "\n")
        self.latency = LatencyHistogram()
        self.refused: Counter[str] = Counter()
        self.session: str | None = None  # the capture process that sends
        self.ended = False
        self.last_frame_s: float | None = None
        self._recent_s: deque[float] = deque(maxlen=int(_FPS_OVER_S * RATE_FPS) * 4)
        self._size: tuple[int, int] | None = None  # height and width of the first frame

    def _begin_run(self, camera: Camera, template: RunManifest, last_index: int) -> RunManifest:
        path = self._paths[RUN_SUFFIX]
        source = camera.source.model_dump_json()
        run = template.model_copy(update={"recording": camera.name, "sources": [source]}, deep=True)
        if path.exists() and last_index >= 0:
            before = read_run(path)
            run.started, run.restarts = before.started, [*before.restarts, last_index]
        write_run(path, run)
        return run

    def refusal(self, header: FrameHeader) -> str | None:
        """Why this frame cannot be used; None when it can."""
        if header.index <= self.state.last_index:
            return "late"  # its tick is in the log already
        if header.index - self.state.last_index > MAX_JUMP_TICKS:
            return "jump"
        size = (header.height, header.width)
        self._size = self._size or size
        return None if size == self._size else "size"

    def write(self, decision: Decision) -> None:
        """Append to the log; returns when the rows are in the file."""
        self._log.write(decision)

    def note_timing(self, header: FrameHeader, received_ns: int) -> float | None:
        """Keep how long the frame took from capture to the written label, in ms; None where that cannot be known,
        since it was captured by the clock of another machine."""
        now_ns = time.monotonic_ns()
        self.last_frame_s = now_ns / 1e9
        self._recent_s.append(self.last_frame_s)
        if header.clock != own_clock():
            append(self._timings, f"{header.index},,\n")
            return None
        latency_ms = (now_ns - header.captured_ns) / 1e6
        append(
            self._timings,
            f"{header.index},{(received_ns - header.captured_ns) / 1e6:.3f},{latency_ms:.3f}\n",
        )
        self.latency.add(latency_ms)
        return latency_ms

    def finish(self, end: End) -> list[Decision]:
        """Take the end of the session: account for the last ticks, which no frame will serve any more."""
        self.run.capture = end.counts.model_dump()
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
        return CameraStatus(
            name=self.name,
            state=self._liveness(now_s),
            fps=round(len(recent) / _FPS_OVER_S, 1),
            last_index=self.state.last_index,
            latency=self.latency.summary(),
            rows=dict(self._log.rows),
            drops={**drops, **self.refused},
            unrecorded=self.run.capture.get("unrecorded", 0),
        )

    def _liveness(self, now_s: float) -> Liveness:
        if self.ended:
            return "ended"
        if self.last_frame_s is None:
            return "waiting"
        return "stale" if now_s - self.last_frame_s > STALE_AFTER_S else "live"

    def close(self) -> None:
        """End the session: close the open bouts, and complete the manifest."""
        self._log.close()
        self._timings.close()
        self.run.exit_status = "complete" if self.ended else "stopped"
        self.run.finished = datetime.now(UTC).isoformat()
        self.run.rows, self.run.bouts = dict(self._log.rows), dict(self._log.bout_counts)
        self.run.drops = gap_ranges(read_labels(self._paths[LABELS_SUFFIX]))
        self.run.window_px = self._pipeline.window_px(self.name, self.state)
        self.run.refused = dict(self.refused)
        self.run.timings = {f"capture_to_label_{key}": value for key, value in self.latency.summary().items()}
        write_run(self._paths[RUN_SUFFIX], self.run)


class _Service:
    """The loop: receive, step, write, publish."""

    def __init__(
        self,
        config: Config,
        pipeline: Pipeline,
        lanes: dict[str, Lane],
        receiver: FrameReceiver,
        publisher: StatusPublisher,
        template: RunManifest,
    ) -> None:
        self._config, self._pipeline, self._lanes = config, pipeline, lanes
        self._receiver, self._publisher, self._template = receiver, publisher, template
        self._refused: Counter[str] = Counter()
        self._started_s = time.monotonic()
        self._next_status_s = 0.0

    def serve(self, stop: Stop) -> None:
        """Until a stop is asked for; then until every camera that was live has ended, or silence."""
        notify("READY=1")
        silent_since_s = time.monotonic()
        while True:
            if self._receive_one(timeout_s=0.2):
                silent_since_s = time.monotonic()
            self._publish_status()
            if stop.requested and (self._all_ended() or time.monotonic() - silent_since_s > DRAIN_S):
                return

    def _all_ended(self) -> bool:
        return all(lane.ended or lane.session is None for lane in self._lanes.values())

    def _receive_one(self, timeout_s: float) -> bool:
        try:
            received = self._receiver.receive(timeout_s)
            if received is None:
                return False
            self._take(*received)
        except BadMessage as error:
            self._refuse_message(str(error))
        return True

    def _take(self, header: Header, pixels: memoryview | None) -> None:
        lane = self._lanes.get(header.camera)
        if lane is None:
            raise BadMessage(f"camera {header.camera!r} is not in the configuration")
        if header.session != lane.session:
            lane.session, lane.ended = header.session, False
        match header:
            case FrameHeader() if pixels is not None:
                self._label(lane, header, pixels)
            case Heartbeat():
                lane.run.capture = header.counts.model_dump()
            case End():
                self._tell(lane, lane.finish(header))

    def _label(self, lane: Lane, header: FrameHeader, pixels: memoryview) -> None:
        received_ns = time.monotonic_ns()
        refusal = lane.refusal(header)
        if refusal is not None:
            lane.refused[refusal] += 1
            return
        decisions, states = self._pipeline.step([frame_of(header, pixels)], {lane.name: lane.state})
        lane.state = states[lane.name]
        *gaps, labelled = decisions
        self._tell(lane, gaps)
        lane.write(labelled)
        self._publish(labelled, lane.note_timing(header, received_ns))

    def _tell(self, lane: Lane, decisions: list[Decision]) -> None:
        for decision in decisions:
            lane.write(decision)
            self._publish(decision, None)

    def _publish(self, decision: Decision, latency_ms: float | None) -> None:
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
                latency_ms=latency_ms,
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
                engine=self._template.engine,
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
