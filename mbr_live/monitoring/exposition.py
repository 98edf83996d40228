"""What inference says of a running system, as Prometheus metrics (text exposition format, by prometheus-client)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from mbr_live.status import CameraStatus, OutputStatus, SystemStatus


class SystemMetrics(Collector):
    """Made anew from the last status at every scrape, so nothing outlives what it describes."""

    def __init__(self, latest: Callable[[], tuple[SystemStatus | None, Collection[tuple[str, str]]]]) -> None:
        """`latest` gives the last status, None while inference is silent, and (kind, subject) of the alarms."""
        self._latest = latest

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus-client."""
        return metrics(*self._latest())


def metrics(system: SystemStatus | None, alarms: Collection[tuple[str, str]]) -> Iterator[Metric]:
    """All metrics of a system; without a status, that inference is down and the alarms."""
    yield GaugeMetricFamily("mbr_inference_up", "1 while inference speaks.", value=float(system is not None))
    raised = GaugeMetricFamily("mbr_alarm", "1 for every alarm that is raised.", labels=["kind", "subject"])
    for kind, subject in sorted(alarms):
        raised.add_metric([kind, subject], 1.0)
    yield raised
    if system is None:
        return
    yield GaugeMetricFamily("mbr_inference_uptime_seconds", "Since inference started.", value=system.uptime_s)
    refused = CounterMetricFamily("mbr_refused_messages", "Messages that were not ours.", labels=["reason"])
    for reason, count in system.refused.items():
        refused.add_metric([reason], count)
    yield refused
    yield from _of_cameras(system.cameras)
    if system.output is not None:
        yield from _of_triggers(system.output)


def _of_cameras(cameras: list[CameraStatus]) -> Iterator[Metric]:
    up = GaugeMetricFamily("mbr_camera_up", "1 while labels of the camera are fresh.", labels=["camera"])
    fps = GaugeMetricFamily("mbr_camera_fps", "Labelled frames per second.", labels=["camera"])
    rows = CounterMetricFamily("mbr_label_rows", "Rows of the label log.", labels=["camera", "status"])
    drops = CounterMetricFamily("mbr_dropped_frames", "Frames without a label.", labels=["camera", "cause"])
    unrecorded = CounterMetricFamily("mbr_unrecorded_frames", "For lack of room on the disk.", labels=["camera"])
    unwritten = GaugeMetricFamily("mbr_waiting_label_rows", "In memory, since the disk is full.", labels=["camera"])
    source_fps = GaugeMetricFamily("mbr_camera_source_fps", "Frames per second of the camera.", labels=["camera"])
    outages = CounterMetricFamily("mbr_camera_outages", "How often it was lost.", labels=["camera", "cause"])
    unwell = GaugeMetricFamily("mbr_camera_unwell", "1 while its pictures are so.", labels=["camera", "alarm"])
    latency = GaugeMetricFamily(
        "mbr_capture_to_label_seconds", "Since inference started.", labels=["camera", "quantile"]
    )
    for camera in cameras:
        up.add_metric([camera.name], float(camera.state == "live"))
        fps.add_metric([camera.name], camera.fps)
        unrecorded.add_metric([camera.name], camera.unrecorded)
        unwritten.add_metric([camera.name], camera.unwritten)
        source_fps.add_metric([camera.name], camera.source_fps)
        for cause, count in camera.outages.items():
            outages.add_metric([camera.name, cause], count)
        for alarm in camera.alarms:
            unwell.add_metric([camera.name, alarm], 1.0)
        for status, count in camera.rows.items():
            rows.add_metric([camera.name, status], count)
        for cause, count in camera.drops.items():
            drops.add_metric([camera.name, cause], count)
        for quantile, value_ms in camera.latency.items():
            latency.add_metric([camera.name, quantile.removesuffix("_ms")], value_ms / 1000)
    yield from (up, fps, rows, drops, unrecorded, unwritten, source_fps, outages, unwell, latency)


def _of_triggers(output: OutputStatus) -> Iterator[Metric]:
    yield GaugeMetricFamily("mbr_output_up", "1 while the output process speaks.", value=float(output.up))
    on = GaugeMetricFamily("mbr_trigger_on", "1 while a trial is on, shams included.", labels=["trigger"])
    trials = CounterMetricFamily("mbr_trials", "Trials of the session.", labels=["trigger", "kind"])
    skipped = CounterMetricFamily("mbr_trials_skipped", "Trials that were not begun.", labels=["reason"])
    usable = GaugeMetricFamily("mbr_output_usable", "1 while the output can be reached.", labels=["output"])
    waiting = GaugeMetricFamily("mbr_output_waiting", "Messages that it has not taken.", labels=["output"])
    edges = CounterMetricFamily("mbr_output_edges", "What became of edges.", labels=["output", "outcome"])
    for trigger in output.triggers:
        on.add_metric([trigger.name], float(trigger.on))
        trials.add_metric([trigger.name, "sham"], trigger.shams)
        trials.add_metric([trigger.name, "dry run" if trigger.dry_run else "real"], trigger.trials - trigger.shams)
    for reason, count in output.skipped.items():
        skipped.add_metric([reason], count)
    for each in output.outputs:
        usable.add_metric([each.name], float(output.up and not each.error))
        waiting.add_metric([each.name], each.waiting)
        for outcome, count in each.delivered.items():
            edges.add_metric([each.name, outcome], count)
    yield from (on, trials, skipped, usable, waiting, edges)
