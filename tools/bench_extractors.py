"""Size and speed of every extractor as exported, in OpenVINO in float32 on one thread, as `mbr-live batch` has it.

    python tools/bench_extractors.py [--frames 40] [--rounds 3] [--resize 160 224]

The weights are random, which changes neither. Time is of the CPU, as the operating system counted it for the process,
so that other work on the machine counts little. The extractors are run in turn, several rounds, and the best round of
each counts, since the speed of a machine drifts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from mbr_live.datasets.dataset import Dataset
from mbr_live.datasets.settings import BehaviourSpec, ModelSettings
from mbr_live.engines.openvino_engine import OpenVinoEngine
from mbr_live.engines.protocol import Engine
from mbr_live.manifest import FEATURES
from mbr_live.training.export import write_untaught
from mbr_live.training.extractors import PUBLISHED, build_extractor
from mbr_live.training.networks import temporal_of
from mbr_live.types import CROP_PX


@dataclass
class Candidate:
    """An extractor that is ready to run."""

    name: str
    side_px: int
    features: int
    parameters: int
    size_bytes: int
    engine: Engine
    best_s: float = float("inf")  # per frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--resize", type=int, nargs="+", default=[CROP_PX], help="sides of what the networks see, px")
    arguments = parser.parse_args()
    wanted = [(name, side) for side in arguments.resize for name in ("slim", *PUBLISHED)]
    wanted = [(name, side) for name, side in wanted if name != "slim" or side == CROP_PX]
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        candidates = [candidate(name, side, Path(folder)) for name, side in track(wanted, "export", console=console)]
    crops = np.random.default_rng(0).integers(0, 256, (arguments.frames, 1, CROP_PX, CROP_PX, 3), np.uint8)
    rounds = [each for _ in range(arguments.rounds) for each in candidates]
    for each in track(rounds, "run", console=console):
        each.best_s = min(each.best_s, seconds_per_frame(each.engine, crops))
    Console().print(table(candidates))


def candidate(name: str, side_px: int, folder: Path) -> Candidate:
    """Export an extractor with random weights."""
    torch.manual_seed(0)
    given: dict[str, object] = {} if name == "slim" else {"weights": "none"}
    if side_px != CROP_PX:
        given["resize_px"] = side_px
    model = ModelSettings.model_validate({"extractor": name, **given})
    plan = Dataset(name=name, summary="", behaviours=(BehaviourSpec(name="rearing"),), model=model)
    extractor = build_extractor(model)
    if extractor is None:
        raise ValueError(f"{name} sees no pictures")
    for weights in extractor.parameters():
        torch.nn.init.normal_(weights, std=0.05)  # as they come, some are zero, and equal parts are stored once
    temporal = temporal_of(model, extractor.feature_dim, 1)
    bundle = write_untaught(folder / f"{name}-{side_px}", plan, extractor, temporal)
    return Candidate(
        name,
        side_px,
        extractor.feature_dim,
        sum(each.numel() for each in extractor.parameters()),
        bundle.manifest.files[FEATURES].bytes,
        OpenVinoEngine(bundle),
    )


def seconds_per_frame(engine: Engine, crops: np.ndarray) -> float:
    """CPU time of one round over crops [N, 1, H, W, 3], after one that warms up."""
    engine.features(crops[0])
    start = time.process_time()
    for crop in crops:
        engine.features(crop)
    return (time.process_time() - start) / len(crops)


def table(candidates: list[Candidate]) -> Table:
    found = Table(Column("extractor", no_wrap=True), "sees px", "features", "M param.", "MiB", "frames/CPU s")
    for each in candidates:
        found.add_row(
            each.name, str(each.side_px), str(each.features), f"{each.parameters / 1e6:.2f}",
            f"{each.size_bytes / 2**20:.1f}", f"{1 / each.best_s:.0f}",
        )  # fmt: skip
    return found


if __name__ == "__main__":
    main()
