"""Is a training slower than `mbr-live batch` at what both do, from a video to features?

    python tools/bench_extraction.py VIDEO [--extractors none slim resnet18 resnet50-layer2] [--rounds 3] [--files 2]

Each side is a process of its own, in turn, and says how long its work took once its libraries were loaded (torch takes
seconds, once); ratios are taken within a round. The training side finds, crops and measures the animal and computes the
features of all frames into an empty cache; the other side labels the same video with a bundle of the same graph.
Weights are random, which changes neither. The video is taken under several names, as the recordings of a lab would be:
both sides then look at two at a time.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mbr_live.datasets.dataset import Dataset, read_dataset
from mbr_live.sinks import RUN_SUFFIX, read_run
from mbr_live.training.export import write_untaught
from mbr_live.training.extraction import inputs_of
from mbr_live.training.extractors import build_extractor
from mbr_live.training.lessons import lesson_of
from mbr_live.training.models import Extractor
from mbr_live.training.networks import temporal_of
from mbr_live.training.preparation import prepare
from mbr_live.training.temporal import TemporalModel
from mbr_live.video.sources import open_video, sampled

DATASET = """
name = "bench"
summary = "Labels that mean nothing, for measuring speed."
window_px = {window_px}
behaviours = [{{ name = "rearing" }}]
model = {model}
training = {{ threshold = 0.5 }}
splits = {{ validation = 0.0, test = 0.0 }}
"""
RECORDING = """
[[recordings]]
name = "{name}"
group = "{name}"
video = "{name}{suffix}"
labels = "labels.csv"
split = "train"
"""
MODELS = {
    "none": '{ extractor = "none", kinematics = "shape" }',
    "slim": '{ extractor = "slim" }',
}
PUBLISHED = '{{ extractor = "{name}", weights = "none" }}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--extractors", nargs="+", default=["none", "slim", "resnet18", "resnet50-layer2"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=2)
    parser.add_argument("--window-px", type=int, default=160)
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        extract(arguments.only)
        return
    video = arguments.video.resolve()
    frames = [frame.source_frame for frame in sampled(open_video(video), "bench")]
    all_frames = arguments.files * len(frames)
    title = f"{arguments.files} x {video.name}: {all_frames} frames at 10 fps, median of {arguments.rounds} rounds"
    table = Table(title=title)
    for column in ("extractor", "training s", "frames/s", "batch s", "frames/s", "training / batch"):
        table.add_column(column, justify="left" if column == "extractor" else "right")
    for name in arguments.extractors:
        rows = [
            measured(name, video, frames, arguments.files, arguments.window_px)
            for _ in track(range(arguments.rounds), name, console=Console(stderr=True))
        ]
        training_s, batch_s = (statistics.median(row[side] for row in rows) for side in (0, 1))
        ratio = statistics.median(training / batch for training, batch in rows)
        cells = (f"{s:.1f}" if n % 2 == 0 else f"{s:.0f}" for n, s in enumerate(
            (training_s, all_frames / training_s, batch_s, all_frames / batch_s)
        ))  # fmt: skip
        table.add_row(name, *cells, f"{ratio:.2f}")
    Console(width=110).print(table)


def measured(name: str, video: Path, frames: list[int], files: int, window_px: int) -> tuple[float, float]:
    """Wall seconds of both sides."""
    with tempfile.TemporaryDirectory() as folder:
        model = MODELS.get(name) or PUBLISHED.format(name=name)
        file, out = Path(folder, "dataset.toml"), Path(folder, "out")
        names = [f"video{n}" for n in range(files)]
        recordings = "".join(RECORDING.format(name=each, suffix=video.suffix) for each in names)
        file.write_text(DATASET.format(window_px=window_px, model=model) + recordings)
        videos = [Path(folder, f"{each}{video.suffix}") for each in names]
        for each in videos:
            each.symlink_to(video)
        rows = (f"{frame},{place % 2}" for place, frame in enumerate(frames))
        Path(folder, "labels.csv").write_text("source_frame,rearing\n" + "\n".join(rows) + "\n")
        plan = read_dataset(file)
        bundle = write_untaught(Path(folder, "bundle"), plan, *networks(plan))
        this = [sys.executable, str(Path(__file__).resolve()), str(video), "--only", str(file)]
        training_s = float(subprocess.run(this, check=True, capture_output=True, text=True).stdout)
        batch = [sys.executable, "-m", "mbr_live", "batch", *videos, "--bundle", bundle.path, "--out", out]
        subprocess.run(batch, check=True, capture_output=True)
        return training_s, max(read_run(out / f"{each}{RUN_SUFFIX}").timings["wall_s"] for each in names)


def networks(plan: Dataset) -> tuple[Extractor | None, TemporalModel]:
    """With weights from a seed."""
    torch.manual_seed(0)
    extractor = build_extractor(plan.model)
    for weights in extractor.parameters() if extractor else ():
        torch.nn.init.normal_(weights, std=0.05)  # as they come, some are zero, and equal parts are stored once
    return extractor, temporal_of(plan.model, extractor.feature_dim if extractor else 0, 1)


def extract(file: Path) -> None:
    """What a training does before it learns."""
    plan, cache, start_s = read_dataset(file), file.parent / "cache", time.monotonic()
    recordings = prepare(plan, cache, lambda *_: None)
    extractor, temporal = networks(plan)
    lessons = [lesson_of(recording, plan.max_gap_frames) for recording in recordings]
    inputs_of(extractor, temporal, lessons, plan, cache / "features", lambda *_: None)
    print(time.monotonic() - start_s)


if __name__ == "__main__":
    main()
