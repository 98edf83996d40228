"""What `mbr-live batch` costs beside the two things it cannot do without: decoding and the feature network.

    python tools/bench_batch.py VIDEO [--rounds 3] [--bundle engines/demo] [--engine openvino-f32] [--files 2]

Every figure is a whole process, CPU seconds (user + system) as the operating system counted them; all are run in
turn, several rounds, and ratios are taken within a round, since the speed of a machine drifts. Two cores that were
never idle would take half of the CPU seconds of decoding and features together; the wall time of `batch` is given in
terms of that. With `--files` the video is also labelled under so many names in one call.
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
from typing import get_args

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mbr_live.config import DEMO_BUNDLE
from mbr_live.types import DEFAULT_ENGINE, EngineKind

Figures = tuple[float, float]
"""CPU seconds and wall seconds of one process."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE)
    parser.add_argument("--engine", choices=get_args(EngineKind), default=DEFAULT_ENGINE)
    parser.add_argument("--files", type=int, default=1, help="of a call with several files")
    parser.add_argument("--only", choices=["decode", "features"], help=argparse.SUPPRESS)
    parser.add_argument("--frames", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only == "decode":
        print(decode_only(arguments.video))
    elif arguments.only == "features":
        features_only(arguments.bundle, arguments.engine, arguments.frames)
    else:
        compare(arguments.video, arguments.bundle, arguments.engine, arguments.rounds, arguments.files)


def decode_only(video: Path) -> int:
    """Decode every frame and make the picture of those that 10 fps sampling keeps; returns how many it keeps."""
    from mbr_live.video.sources import VideoFile, sampled

    return sum(1 for _ in sampled(VideoFile(video), "bench"))


def features_only(bundle: Path, kind: EngineKind, frames: int) -> None:
    """Run the feature network over as many crops as the video has 10 fps frames."""
    from mbr_live.bundle import load_bundle
    from mbr_live.engines.choice import engine_of

    engine = engine_of(load_bundle(bundle), kind)
    crops = np.random.default_rng(0).integers(0, 256, (64, 1, 160, 160, 3), np.uint8)
    for n in range(frames):
        engine.features(crops[n % len(crops)])


def compare(video: Path, bundle: Path, kind: EngineKind, rounds: int, files: int) -> None:
    frames = decode_only(video)
    model = ["--bundle", str(bundle), "--engine", kind]
    this = [sys.executable, str(Path(__file__).resolve()), str(video), *model]
    rows: list[dict[str, Figures]] = []
    for _ in track(range(rounds), "rounds", console=Console(stderr=True)):
        row = {
            "decode only": timed([*this, "--only", "decode"]),
            "features only": timed([*this, "--only", "features", "--frames", str(frames)]),
            "batch": labelled([video], model),
        }
        if files > 1:
            with tempfile.TemporaryDirectory() as folder:
                copies = [Path(folder, f"{n}{video.suffix}") for n in range(files)]
                for copy in copies:
                    copy.symlink_to(video.resolve())
                row[f"batch, {files} files"] = labelled(copies, model)
        rows.append(row)
    show(rows, frames, f"{video.name}, bundle {bundle.name}, {kind}", files)


def labelled(videos: list[Path], model: list[str]) -> Figures:
    """`mbr-live batch` over some files."""
    with tempfile.TemporaryDirectory() as out:
        return timed([sys.executable, "-m", "mbr_live", "batch", *map(str, videos), *model, "--out", out])


def timed(command: list[str]) -> Figures:
    """Run to the end; CPU and wall seconds."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime, time.monotonic() - start


def show(rows: list[dict[str, Figures]], frames: int, what: str, files: int) -> None:
    table = Table(title=f"{what}: {frames} frames at 10 fps, median of {len(rows)} rounds")
    for column in ("process", "CPU s", "wall s", "output frames/s (wall)"):
        table.add_column(column, justify="left" if column == "process" else "right")
    for name in rows[0]:
        cpu_s, wall_s = (statistics.median(row[name][kind] for row in rows) for kind in (0, 1))
        labelled_frames = frames * (files if name.endswith("files") else 1)
        table.add_row(name, f"{cpu_s:.2f}", f"{wall_s:.2f}", f"{labelled_frames / wall_s:.0f}")
    Console(width=100).print(table)
    needed_s = [row["decode only"][0] + row["features only"][0] for row in rows]
    say("CPU of batch / (decode + features)", [row["batch"][0] / s for row, s in zip(rows, needed_s, strict=True)])
    halves = [s / 2 for s in needed_s]
    say("wall of batch / half of (decode + features)", [r["batch"][1] / s for r, s in zip(rows, halves, strict=True)])
    if files > 1:
        several = [row[f"batch, {files} files"][1] / files for row in rows]
        say(f"the same of {files} files, per file", [wall_s / s for wall_s, s in zip(several, halves, strict=True)])


def say(what: str, ratios: list[float]) -> None:
    print(f"{what}: {', '.join(f'{ratio:.3f}' for ratio in ratios)}; median {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
