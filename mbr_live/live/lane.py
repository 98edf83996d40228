"""One camera at the inference side: its state, its files and its figures."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from mbr_live.appending import Unwritable, WaitingRows
from mbr_live.config import Camera, Config
from mbr_live.drift import MEMORY_FRAMES, Drift, Glance, Reference
from mbr_live.latency import LatencyHistogram
from mbr_live.live.arrivals import MAX_JUMP_TICKS
from mbr_live.live.backlog import Backlog
from mbr_live.pipeline import LaneState, Pipeline
from mbr_live.sinks.bouts import BOUTS_SUFFIX
from mbr_live.sinks.label_log import LABELS_SUFFIX
from mbr_live.sinks.run_manifest import RUN_SUFFIX, RunManifest, left_run, write_run
from mbr_live.sinks.session_log import SessionLog
from mbr_live.status import CameraStatus, Liveness
from mbr_live.types import RATE_FPS, Decision, MbrError
from mbr_live.wire.messages import CameraReport, End, FrameHeader, Heartbeat, own_clock

TIMINGS_SUFFIX = ".timings.csv"
TIMINGS_HEADER = "frame,capture_to_receive_ms,capture_to_label_ms"

STALE_AFTER_S = 1.0
KEEP_EVERY_S = 10.0  # at most: what was lost is written down, lest it be forgotten when the process is killed
_FPS_OVER_S = 5.0
_KEPT = ("started", "restarts", "clock", "outages", "capture", "captures", "refused")  # of a session that goes on

_log = logging.getLogger(__name__)


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
        self,
        config: Config,
        camera: Camera,
        pipeline: Pipeline,
        template: RunManifest,
        reference: Reference | None,
    ) -> None:
        out = config.out
        self.name = camera.name
        self._pipeline = pipeline
        self._paths = {s: out / f"{camera.name}{s}" for s in (LABELS_SUFFIX, BOUTS_SUFFIX, RUN_SUFFIX, TIMINGS_SUFFIX)}
        self._log = SessionLog.resume(
            self._paths[LABELS_SUFFIX], self._paths[BOUTS_SUFFIX], pipeline.manifest, config.labels.rotate
        )
        last_index = self._log.last_index
        self.state: LaneState = pipeline.start(last_index)
        try:
            self.run = self._begin_run(camera, template, last_index)
        except (OSError, MbrError):
            self._log.close()
            raise
        self.backlog = Backlog(camera.name, self._log.write)
        self._timings = WaitingRows(self._paths[TIMINGS_SUFFIX], TIMINGS_HEADER + "\n")
        self._untimed = 0  # frames whose timing was let go of
        self.latency, self.on_the_way = LatencyHistogram(), LatencyHistogram()  # capture to label, to receipt
        self.refused: Counter[str] = Counter(self.run.refused)
        self._noted, self._keep_at_s = self._countings(), 0.0
        self._keeping: threading.Thread | None = None
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
        if last_index >= 0:
            before = left_run(path)
            if before is None:
                _log.warning("%s: is not there or empty, so what the session was before is not known", path)
            else:
                kept = {name: getattr(before, name) for name in _KEPT}
                run = run.model_copy(update=kept, deep=True)
            run.restarts = sorted({*run.restarts, last_index})  # once, also where the beginning had to be tried again
        write_run(path, run)
        return run

    def note_timing(self, header: FrameHeader, received_ns: int) -> Timing:
        """Keep how long the frame took from capture to the written label."""
        now_ns = time.monotonic_ns()
        self.last_frame_s = now_ns / 1e9
        self._recent_s.append(self.last_frame_s)
        if header.clock != own_clock():
            self._note(f"{header.index},,\n")
            return Timing(None, received_ns, now_ns)
        latency_ms = (now_ns - header.captured_ns) / 1e6
        self._note(f"{header.index},{(received_ns - header.captured_ns) / 1e6:.3f},{latency_ms:.3f}\n")
        self.latency.add(latency_ms)
        self.on_the_way.add((received_ns - header.captured_ns) / 1e6)
        return Timing(header.captured_ns, received_ns, now_ns)

    def _note(self, row: str) -> None:
        """Keep a row of timings, as far as there is room: labels go on without them."""
        try:
            self._timings.append(row)
        except Unwritable as error:
            if not self._untimed:
                _log.error("%s What finds no place is let go of; labels go on.", error)
            self._untimed += 1

    def hear(self, message: Heartbeat | End) -> None:
        """Take what the capture process says of itself and of its camera."""
        self.report = message.report
        self.run.count_capture(message.session, message.counts.model_dump())
        self.run.outages = dict(message.report.outages)
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

    def _dropped(self) -> dict[str, int]:
        return {what: number for what, number in self.run.capture.items() if what.startswith("dropped_") and number}

    def _countings(self) -> tuple[dict[str, int], tuple[str, ...]]:
        return {**self._dropped(), **self.refused}, tuple(self.run.captures)

    def keep_counts(self, now_s: float) -> None:
        """Write down what was lost, where more was or another capture came, but not often.

        A disk may take its time; labels do not wait for it.
        """
        busy = self._keeping is not None and self._keeping.is_alive()
        if now_s < self._keep_at_s or self._countings() == self._noted or busy:
            return
        self._noted, self._keep_at_s = self._countings(), now_s + KEEP_EVERY_S
        run = self.run.model_copy(update={"refused": dict(self.refused)}, deep=True)
        self._keeping = threading.Thread(target=_keep, args=(self._paths[RUN_SUFFIX], run), name="keeping")
        self._keeping.start()

    def status(self, now_s: float) -> CameraStatus:
        """How this camera is doing."""
        recent = [at_s for at_s in self._recent_s if now_s - at_s <= _FPS_OVER_S]
        drops = self._dropped()
        # What was neither dropped by capture nor refused here never came from the camera, or found no process.
        unserved = self._log.rows["gap"] - sum(drops.values()) - self.refused["disk_full"] - self.refused["size"]
        if unserved > 0:
            drops["no_frame"] = unserved
        drift, drifted = self._drifted()
        return CameraStatus(
            name=self.name,
            state=self._liveness(now_s),
            fps=_rate_fps(recent, now_s),
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
        if self._untimed:
            _log.error("%s: the timings of %d frames are missing", self._paths[TIMINGS_SUFFIX], self._untimed)
        self.run.exit_status = "complete" if self.ended else "stopped"
        self.run.finished = datetime.now(UTC).isoformat()
        self.run.rows, self.run.bouts = dict(self._log.rows), dict(self._log.bout_counts)
        self.run.drops = self._log.gap_ranges()
        self.run.window_px = self._pipeline.window_px(self.name, self.state.sight)
        self.run.refused = dict(self.refused)
        self.run.drift, self.run.drifted = self._drifted()
        stages = {"capture_to_label": self.latency, "capture_to_receive": self.on_the_way}
        self.run.timings = {f"{name}_{key}": ms for name, of in stages.items() for key, ms in of.summary().items()}
        if self._keeping:
            self._keeping.join()
        try:
            write_run(self._paths[RUN_SUFFIX], self.run)
        except OSError as error:
            raise Unwritable(self._paths[RUN_SUFFIX], error.strerror or str(error), error.errno) from error


def _keep(path: Path, run: RunManifest) -> None:
    try:
        write_run(path, run)
    except OSError as error:
        _log.warning("%s: what was lost cannot be written down yet (%s)", path, error.strerror)


def _rate_fps(recent_s: Sequence[float], now_s: float) -> float:
    """How often frames come, from when the recent ones came; less and less where the next one is overdue."""
    if len(recent_s) < 2:
        return 0.0
    return round((len(recent_s) - 1) / (max(recent_s[-1], now_s - 1 / RATE_FPS) - recent_s[0]), 1)
