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

from mbr_live.batch.batch import jobs_of
from mbr_live.batch.workers import Labeller, labelled
from mbr_live.bundle import load_bundle
from mbr_live.datasets.dataset import Dataset, read_dataset
from mbr_live.engines.choice import cores
from mbr_live.training.export import write_untaught
from mbr_live.training.extraction import feature_network, inputs_of
from mbr_live.training.extractors import build_extractor
from mbr_live.training.lessons import lesson_of
from mbr_live.training.models import Extractor
from mbr_live.training.networks import temporal_of
from mbr_live.training.preparation import prepare
from mbr_live.training.temporal import TemporalModel
from mbr_live.types import MbrError
from mbr_live.video.sources import VideoFile, sampled

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
group = "all"
video = "{name}{suffix}"
labels = "labels.csv"
split = "train"
"""
DATASET_FILE, BUNDLE = "dataset.toml", "bundle"
MODELS = {
    "none": '{ extractor = "none", kinematics = "shape" }',
    "slim": '{ extractor = "slim" }',
}
LEARNS_FIRST = ("slim",)  # the others stay as they were published; for speed, random weights do as well
PUBLISHED = '{{ extractor = "{name}", weights = "none" }}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--extractors", nargs="+", default=["none", "slim", "resnet18", "resnet50-layer2"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=2)
    parser.add_argument("--window-px", type=int, default=160)
    arguments = parser.parse_args()
    video = arguments.video.resolve()
    frames = [frame.source_frame for frame in sampled(VideoFile(video), "bench")]
    all_frames = arguments.files * len(frames)
    title = f"{arguments.files} x {video.name}: {all_frames} frames at 10 fps, median of {arguments.rounds} rounds"
    table = Table(title=title)
    for column in (
        "extractor",
        "training s",
        "frames/s",
        "after cropping s",
        "batch s",
        "frames/s",
        "training / batch",
    ):
        table.add_column(column, justify="left" if column == "extractor" else "right")
    for name in arguments.extractors:
        rows = [
            measured(name, video, frames, arguments.files, arguments.window_px, training_first=bool(n % 2))
            for n in track(range(arguments.rounds), name, console=Console(stderr=True))
        ]
        training_s, after_s, batch_s = (statistics.median(row[side] for row in rows) for side in range(3))
        table.add_row(
            name, f"{training_s:.1f}", f"{all_frames / training_s:.0f}", f"{after_s:.1f}", f"{batch_s:.1f}",
            f"{all_frames / batch_s:.0f}", f"{statistics.median(training / batch for training, _, batch in rows):.2f}",
        )  # fmt: skip
    Console(width=110).print(table)


def measured(
    name: str, video: Path, frames: list[int], files: int, window_px: int, *, training_first: bool
) -> tuple[float, float, float]:
    """Wall seconds of a training until it has its features, of them when all was cropped, and of batch."""
    with tempfile.TemporaryDirectory() as folder:
        model = MODELS.get(name) or PUBLISHED.format(name=name)
        names = [f"video{n}" for n in range(files)]
        recordings = "".join(RECORDING.format(name=each, suffix=video.suffix) for each in names)
        Path(folder, DATASET_FILE).write_text(DATASET.format(window_px=window_px, model=model) + recordings)
        for each in names:
            Path(folder, f"{each}{video.suffix}").symlink_to(video)
        rows = (f"{frame},{place % 2}" for place, frame in enumerate(frames))
        Path(folder, "labels.csv").write_text("source_frame,rearing\n" + "\n".join(rows) + "\n")
        plan = read_dataset(Path(folder, DATASET_FILE))
        write_untaught(Path(folder, BUNDLE), plan, *networks(plan))
        sides = ("extract", "label") if training_first else ("label", "extract")
        took = {side: timed(side, folder) for side in sides}
        training_s, after_s = took["extract"]
        return training_s, after_s, *took["label"]


def timed(work: str, folder: str) -> list[float]:
    """What `work` says in a process of its own, from which others start at no more cost than usual."""
    code = f"import bench_extraction; bench_extraction.{work}(bench_extraction.Path({folder!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    )
    return [float(word) for word in done.stdout.split()]


def networks(plan: Dataset) -> tuple[Extractor | None, TemporalModel]:
    """With weights from a seed."""
    torch.manual_seed(0)
    extractor = build_extractor(plan.model)
    for weights in extractor.parameters() if extractor else ():
        torch.nn.init.normal_(weights, std=0.05)  # as they come, some are zero, and equal parts are stored once
    return extractor, temporal_of(plan.model, extractor.feature_dim if extractor else 0, 1)


def extract(folder: Path) -> None:
    """What a training does before it learns: says the seconds of all, and those from the last crop on."""
    plan, cache = read_dataset(folder / DATASET_FILE), folder / "cache"
    extractor, temporal = networks(plan)  # which loads further libraries
    start_s = time.monotonic()
    with feature_network(extractor, temporal, plan) as network:
        published = None if plan.model.extractor in LEARNS_FIRST else network
        recordings = prepare(plan, cache, lambda *_: None, published)
        cropped_s = time.monotonic()
        lessons = [lesson_of(recording, plan.max_gap_frames) for recording in recordings]
        inputs_of(network, lessons, cache, lambda *_: None)
    print(time.monotonic() - start_s, time.monotonic() - cropped_s)


def label(folder: Path) -> None:
    """What batch does: says the seconds."""
    start_s = time.monotonic()
    labeller = Labeller(load_bundle(folder / BUNDLE), folder / "out")
    jobs = jobs_of([path for path in sorted(folder.iterdir()) if path.is_symlink()], None)
    for _, ended in labelled(labeller, jobs, cores(), lambda *_: None):
        if isinstance(ended, MbrError):
            raise ended
    print(time.monotonic() - start_s)


if __name__ == "__main__":
    main()
