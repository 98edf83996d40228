"""What `mbr-live batch` costs beside the two things it cannot do without: decoding and the feature network.

    python tools/bench_batch.py VIDEO [--rounds 3] [--bundle engines/demo]

Every figure is a whole process, CPU seconds (user + system) as the operating system counted them; the three are run
in turn, several rounds, and the ratio is taken within a round, since the speed of a machine drifts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mbr_live.config import DEMO_BUNDLE

Figures = tuple[float, float]
"""CPU seconds and wall seconds of one process."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE)
    parser.add_argument("--only", choices=["decode", "features"], help=argparse.SUPPRESS)
    parser.add_argument("--frames", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only == "decode":
        print(decode_only(arguments.video))
    elif arguments.only == "features":
        features_only(arguments.bundle, arguments.frames)
    else:
        compare(arguments.video, arguments.bundle, arguments.rounds)


def decode_only(video: Path) -> int:
    """Decode every frame and make the picture of those that 10 fps sampling keeps; returns how many it keeps."""
    from mbr_live.sources import open_video, sampled

    return sum(1 for _ in sampled(open_video(video), "bench"))


def features_only(bundle: Path, frames: int) -> None:
    """Run the feature network over as many crops as the video has 10 fps frames."""
    from mbr_live.bundle import load_bundle
    from mbr_live.openvino_engine import OpenVinoEngine

    engine = OpenVinoEngine(load_bundle(bundle))
    crops = np.random.default_rng(0).integers(0, 256, (64, 1, 160, 160, 3), np.uint8)
    for n in range(frames):
        engine.features(crops[n % len(crops)])


def compare(video: Path, bundle: Path, rounds: int) -> None:
    frames = decode_only(video)
    this = [sys.executable, str(Path(__file__).resolve()), str(video), "--bundle", str(bundle)]
    rows: list[tuple[Figures, Figures, Figures]] = []
    for _ in range(rounds):
        decode = timed([*this, "--only", "decode"])
        features = timed([*this, "--only", "features", "--frames", str(frames)])
        with tempfile.TemporaryDirectory() as out:
            batch = timed(
                [sys.executable, "-m", "mbr_live", "batch", str(video), "--bundle", str(bundle), "--out", out]
            )
        rows.append((decode, features, batch))
    show(rows, frames, video)


def timed(command: list[str]) -> Figures:
    """Run to the end; CPU and wall seconds."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime, time.monotonic() - start


def show(rows: list[tuple[Figures, Figures, Figures]], frames: int, video: Path) -> None:
    table = Table(title=f"{video.name}: {frames} frames at 10 fps, median of {len(rows)} rounds")
    for column in ("process", "CPU s", "wall s", "output frames/s (wall)"):
        table.add_column(column, justify="left" if column == "process" else "right")
    for number, name in enumerate(("decode only", "features only", "batch, whole")):
        cpu_s, wall_s = (statistics.median(row[number][kind] for row in rows) for kind in (0, 1))
        table.add_row(name, f"{cpu_s:.2f}", f"{wall_s:.2f}", f"{frames / wall_s:.0f}")
    Console().print(table)
    ratios = [batch[0] / (decode[0] + features[0]) for decode, features, batch in rows]
    print(f"CPU of batch / (decode + features), per round: {', '.join(f'{ratio:.3f}' for ratio in ratios)}")
    print(f"median: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
