"""Does anything grow? A long session through the pipeline and its logs, with the resident memory on the way.

    python tools/endurance.py [--frames 200000] [--bundle engines/demo]

Simulated pictures (a loop of a minute, so that rendering is not what is measured), one camera, every 500th frame
missing and every 20,000 frames a gap of ten seconds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import closing
from pathlib import Path

from rich.progress import track

from mbr_live.bundle import load_bundle
from mbr_live.config import DEMO_BUNDLE
from mbr_live.engines.openvino_engine import OpenVinoEngine
from mbr_live.pipeline import Pipeline
from mbr_live.simulation.camera import Simulation
from mbr_live.sinks.session_log import SessionLog
from mbr_live.types import TICK_NS, Frame, Image

LOOP_FRAMES = 600
REFERENCE_FRAMES = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=200_000)
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE)
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.bundle)
    pipeline = Pipeline(bundle.manifest, OpenVinoEngine(bundle))
    pictures = loop()
    state = pipeline.start()
    samples: list[tuple[int, float, float]] = []  # frame, resident MiB, ms per frame since the sample before
    with tempfile.TemporaryDirectory() as folder:
        log = SessionLog.create(Path(folder, "e.labels.csv"), Path(folder, "e.bouts.csv"), bundle.manifest)
        with closing(log):
            since = time.monotonic()
            for n in track(range(arguments.frames), "frames"):
                if not missing(n):
                    frame = Frame("e", n, n, n * TICK_NS, 0, pictures[n % LOOP_FRAMES])
                    decisions, states = pipeline.step([frame], {"e": state})
                    state = states["e"]
                    for decision in decisions:
                        log.write(decision)
                if (n + 1) % REFERENCE_FRAMES == 0:
                    now = time.monotonic()
                    samples.append((n + 1, resident_mib(), (now - since) * 1000 / REFERENCE_FRAMES))
                    since = now
        print(f"rows by status: {dict(log.rows)}; bouts: {dict(log.bout_counts)}")
    show(samples)


def loop() -> list[Image]:
    simulation = Simulation("box", 77)
    pictures = []
    for _ in range(LOOP_FRAMES):
        simulation.advance()
        pictures.append(simulation.render())
    return pictures


def missing(n: int) -> bool:
    return n % 500 == 499 or n % 20_000 in range(10_000, 10_100)


def resident_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024


def show(samples: list[tuple[int, float, float]]) -> None:
    for frame, mib, ms in samples:
        print(f"after {frame:>8} frames: {mib:7.1f} MiB resident, {ms:.2f} ms per frame")
    if len(samples) > 1:
        growth = max(mib for _, mib, _ in samples[1:]) / samples[0][1] - 1
        print(f"growth after frame {samples[0][0]}: {growth:+.2%}")


if __name__ == "__main__":
    main()
