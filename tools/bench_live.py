"""Live cameras through real processes: is a frame lost, and how late is a label?

    python tools/bench_live.py [--cameras 1 8] [--seconds 60] [--bundle engines/demo]

Measured are the `--seconds` from the first frame of the last camera to start, the same for all of them.

Simulated 640 x 480 cameras, one capture process each, one inference process, everything on this machine. Capture to
label is from the moment the frame is in the memory of the capture process to the moment its row is in the label log.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mbr_live.config import DEMO_BUNDLE, Camera, Config, Simulated
from mbr_live.live.lane import TIMINGS_SUFFIX
from mbr_live.live.run import free_wire, run
from mbr_live.sinks.label_log import LABELS_SUFFIX, read_labels
from mbr_live.types import RATE_FPS, Status

START_S = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cameras", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE)
    arguments = parser.parse_args()
    table = Table(title=f"{arguments.seconds:.0f} s live, simulated 640 x 480 cameras at 10 fps")
    for column in ("cameras", "frames labelled", "lost", "p50 ms", "p95 ms", "p99 ms", "max ms"):
        table.add_column(column, justify="right")
    for count in arguments.cameras:
        table.add_row(str(count), *measured(count, arguments.seconds, arguments.bundle))
    Console().print(table)


def measured(count: int, seconds: float, bundle: Path) -> tuple[str, ...]:
    """Run `count` cameras; frames labelled and lost, and the percentiles over all frames of all cameras."""
    cameras = tuple(
        Camera(name=f"cage{n}", source=Simulated(kind="simulated", condition="box", seed=n)) for n in range(count)
    )
    with tempfile.TemporaryDirectory() as folder:
        wire = free_wire()
        config = Config(out=Path(folder), bundle=bundle, wire=wire, camera=cameras)
        run(config, seconds=seconds + START_S)
        logs = [list(read_labels(config.out / f"{camera.name}{LABELS_SUFFIX}")) for camera in cameras]
        latencies_ms = [_latencies_ms(config.out / f"{camera.name}{TIMINGS_SUFFIX}") for camera in cameras]
    start_ns = max(log[0].time_ns for log in logs)
    end_ns = start_ns + int(seconds * 1e9)
    measured_rows = [[row for row in log if start_ns <= row.time_ns < end_ns] for log in logs]
    lost = sum(row.status == Status.GAP for rows in measured_rows for row in rows)
    labelled = sum(map(len, measured_rows)) - lost
    if labelled + lost < count * (seconds * RATE_FPS - 1):
        raise SystemExit(
            f"{count} cameras: not up within {START_S} s; the logs end before the {seconds:.0f} s are over"
        )
    found = sorted(
        of_camera[row.index]
        for rows, of_camera in zip(measured_rows, latencies_ms, strict=True)
        for row in rows
        if row.status != Status.GAP
    )
    quantiles = (found[min(int(share * len(found)), len(found) - 1)] for share in (0.5, 0.95, 0.99, 1.0))
    return str(labelled), str(lost), *(f"{value:.1f}" for value in quantiles)


def _latencies_ms(path: Path) -> dict[int, float]:
    """Capture to label, by frame."""
    rows = (line.split(",") for line in path.read_text().splitlines()[1:])
    return {int(row[0]): float(row[2]) for row in rows}


if __name__ == "__main__":
    main()
