"""Live cameras through real processes: is a frame lost, and how late is a label?

    python tools/bench_live.py [--cameras 1 8] [--seconds 60] [--bundle engines/demo]

The system runs for START_S longer, so that the last camera to start has delivered for that long too.

Simulated 640 x 480 cameras, one capture process each, one inference process, everything on this machine. Capture to
label is from the moment the frame is in the memory of the capture process to the moment its row is in the label log.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mbr_live.config import DEMO_BUNDLE, Camera, Config, Simulated, Wire
from mbr_live.infer import TIMINGS_SUFFIX
from mbr_live.run import run
from mbr_live.sinks import RUN_SUFFIX, read_run
from mbr_live.types import RATE_FPS
from mbr_live.wire import free_endpoint

START_S = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cameras", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE)
    arguments = parser.parse_args()
    table = Table(title=f"{arguments.seconds:.0f} s live, simulated 640 x 480 cameras at 10 fps")
    for column in ("cameras", "frames labelled", "shortest camera s", "lost", "p50 ms", "p95 ms", "p99 ms", "max ms"):
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
        wire = Wire(frames=free_endpoint(), status=free_endpoint())
        config = Config(out=Path(folder), bundle=bundle, wire=wire, camera=cameras)
        run(config, seconds=seconds + START_S)
        runs = [read_run(config.out / f"{camera.name}{RUN_SUFFIX}") for camera in cameras]
        latencies = sorted(
            float(line.split(",")[2])
            for camera in cameras
            for line in (config.out / f"{camera.name}{TIMINGS_SUFFIX}").read_text().splitlines()[1:]
        )
    rows = [sum(run_.rows.values()) for run_ in runs]
    lost = sum(run_.rows.get("gap", 0) for run_ in runs)
    if min(rows) < seconds * RATE_FPS:
        print(f"{count} cameras: one delivered for {min(rows) / RATE_FPS:.1f} s only")
    quantiles = (latencies[min(int(share * len(latencies)), len(latencies) - 1)] for share in (0.5, 0.95, 0.99, 1.0))
    return str(sum(rows) - lost), f"{min(rows) / RATE_FPS:.1f}", str(lost), *(f"{value:.1f}" for value in quantiles)


if __name__ == "__main__":
    main()
