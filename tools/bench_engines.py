"""What the engines cost, and how much they differ.

    python tools/resnet_bundle.py --out resnet50-512
    python tools/bench_engines.py speed --bundle resnet50-512
    python tools/bench_engines.py growth
    python tools/bench_engines.py differences VIDEO... --bundle BUNDLE

`speed`: frames per second of the feature network by precision, threads and lanes at a time. All are timed in turn,
round by round, and ratios are taken within a round, since the speed of a machine drifts. Frames per CPU second do not
depend on what else the machine does, or hardly. `growth`: one step of a TCN
by its receptive field. `differences`: how many frames an engine labels otherwise than openvino-f32.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mbr_live.bundle import Bundle, load_bundle, write_bundle
from mbr_live.config import DEMO_BUNDLE
from mbr_live.datasets.temporal_config import TcnConfig
from mbr_live.engines.choice import engine_of
from mbr_live.engines.openvino_engine import OpenVinoEngine, Precision, has_bf16
from mbr_live.engines.parity import probe, timed_s
from mbr_live.manifest import CARD, TEMPORAL
from mbr_live.quantisation.calibrate import Given, cost_of, label
from mbr_live.training.models import export_onnx
from mbr_live.training.temporal import Tcn
from mbr_live.types import EngineKind

BATCHES, THREADS = (1, 8, 32), (1, 2)
BLOCKS = (4, 5, 6, 7, 8)  # receptive fields of 61, 125, 253, 509 and 1021 frames
Way = tuple[Precision, int, int]
"""Precision, threads, lanes at a time."""

Speed = tuple[float, float]
"""Frames per second of wall time, and of CPU time."""

console = Console(highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    for name in ("speed", "growth", "differences"):
        command = what.add_parser(name)
        command.add_argument("--bundle", type=Path, default=DEMO_BUNDLE)
        command.add_argument("--rounds", type=int, default=5)
        if name == "differences":
            command.add_argument("videos", type=Path, nargs="+")
            command.add_argument("--engines", nargs="+", default=["torch", "openvino-bf16", "openvino-int8"])
    options = parser.parse_args()
    bundle = load_bundle(options.bundle)
    if options.what == "speed":
        speed(bundle, options.rounds)
    elif options.what == "growth":
        growth(bundle, options.rounds)
    else:
        differences(bundle, options.videos, options.engines)


def ways(bundle: Bundle) -> Iterator[Way]:
    precisions: list[Precision] = ["f32"]
    precisions += ["bf16"] if has_bf16() else []
    precisions += ["int8"] if bundle.manifest.int8 else []
    for precision in precisions:
        for threads in THREADS:
            for batch in BATCHES:
                yield precision, threads, batch


def speed(bundle: Bundle, rounds: int) -> None:
    engines = {way: OpenVinoEngine(bundle, precision=way[0], threads=way[1], batch=way[2]) for way in ways(bundle)}
    crops = np.tile(probe(), (3, 1, 1, 1))  # enough for all threads to have as many lanes as they take at a time
    measured: dict[Way, list[Speed]] = {way: [] for way in engines}
    for _ in track(range(rounds), "speed", console=Console(stderr=True)):
        for way, engine in engines.items():
            measured[way].append(speed_of(engine, crops[: way[1] * way[2]]))
    table = Table(title=f"features of {bundle.manifest.name}, median of {rounds}; x: f32, one thread, one lane")
    for column in ("precision", "threads", "lanes", "frames/s", "x", "frames/CPU s", "x CPU"):
        table.add_column(column, justify="left" if column == "precision" else "right")
    exact = measured["f32", 1, 1]
    for way, speeds in measured.items():
        cells = [cell for kind in (0, 1) for cell in cells_of(speeds, exact, kind)]
        table.add_row(way[0], str(way[1]), str(way[2]), *cells)
    console.print(table)
    for precision in dict.fromkeys(way[0] for way in measured):
        wall, cpu = (ratio_at_best(measured, precision, kind) for kind in (0, 1))
        console.print(f"{precision} at its best / f32 at its best: {wall:.2f} by wall time, {cpu:.2f} by CPU time")


def speed_of(engine: OpenVinoEngine, crops: np.ndarray) -> Speed:
    """The best call by wall time, and all calls together by CPU time."""
    start_s = time.process_time()
    times_s = timed_s(lambda: engine.features(crops), 0.3)
    cpu_s = time.process_time() - start_s
    return len(crops) / min(times_s), len(crops) * (len(times_s) + 1) / cpu_s


def cells_of(speeds: list[Speed], exact: list[Speed], kind: int) -> tuple[str, str]:
    ratio = statistics.median(here[kind] / there[kind] for here, there in zip(speeds, exact, strict=True))
    return f"{statistics.median(each[kind] for each in speeds):.0f}", f"{ratio:.2f}"


def ratio_at_best(measured: dict[Way, list[Speed]], precision: str, kind: int) -> float:
    """How many times as fast a precision is as float32, each at its best of every round."""

    def best(of: str) -> list[float]:
        rows = [speeds for way, speeds in measured.items() if way[0] == of]
        return [max(each[kind] for each in of_round) for of_round in zip(*rows, strict=True)]

    return statistics.median(here / there for here, there in zip(best(precision), best("f32"), strict=True))


def growth(bundle: Bundle, rounds: int) -> None:
    """One step of a TCN with the demo's features, one lane, one thread."""
    with tempfile.TemporaryDirectory() as folder:
        engines = {blocks: tcn(bundle, blocks, Path(folder, str(blocks))) for blocks in BLOCKS}
        bundles = {blocks: load_bundle(Path(folder, str(blocks), "bundle")) for blocks in BLOCKS}
        inputs = {
            blocks: (
                np.zeros((1, each.manifest.input_dim), np.float32),
                np.zeros((1, each.manifest.state_size), np.float32),
            )
            for blocks, each in bundles.items()
        }
        measured: dict[int, list[float]] = {blocks: [] for blocks in BLOCKS}
        for _ in range(rounds):
            for blocks, engine in engines.items():
                measured[blocks].append(statistics.median(timed_s(lambda: engine.step(*inputs[blocks]), 0.3)))  # noqa: B023
    table = Table(title=f"one step of a TCN, one lane, one thread, median of {rounds} rounds")
    for column in ("receptive field", "convolutions", "state KiB a lane", "us a step", "us a convolution"):
        table.add_column(column, justify="right")
    for blocks, times_s in measured.items():
        manifest, us = bundles[blocks].manifest, 1e6 * statistics.median(times_s)
        table.add_row(
            str(manifest.receptive_field_frames), str(2 * blocks), f"{manifest.state_size * 4 / 1024:.0f}",
            f"{us:.0f}", f"{us / (2 * blocks):.1f}",
        )  # fmt: skip
    console.print(table)


def tcn(bundle: Bundle, blocks: int, folder: Path) -> OpenVinoEngine:
    """The engine of an untrained TCN on kinematics in place of features, so that a step is all there is."""
    torch.manual_seed(1)
    dim = bundle.manifest.feature_dim
    temporal = Tcn(TcnConfig(blocks=blocks), feature_dim=dim, behaviours=len(bundle.manifest.behaviours))
    folder.mkdir()
    export_onnx(None, temporal, folder, kinematics=dim)
    manifest = bundle.manifest.model_copy(
        update={
            "feature_dim": 0, "kinematics": tuple(f"channel_{n}" for n in range(dim)), "kinematics_version": 1,
            "int8": None, "state_size": temporal.state_size,
            "receptive_field_frames": temporal.receptive_field_frames,
        }
    )  # fmt: skip
    contents = {TEMPORAL: (folder / TEMPORAL).read_bytes(), CARD: b"for measuring speed\n"}
    return OpenVinoEngine(write_bundle(folder / "bundle", manifest, contents))


def differences(bundle: Bundle, videos: Sequence[Path], kinds: Sequence[EngineKind]) -> None:
    given = [Given(path.stem, (path,)) for path in videos]
    names = bundle.manifest.behaviour_names
    of_engine = {}
    for kind in track(["openvino-f32", *kinds], "labelling", console=Console(stderr=True)):
        engine = engine_of(bundle, kind)
        of_engine[kind] = [label(each, bundle, engine, lambda what, done: None, kind) for each in given]
    table = Table(title=f"labels of {bundle.manifest.name}, against openvino-f32")
    for column in ("recording", "engine", "frames", "differ", "differ per 100,000", "largest difference of p"):
        table.add_column(column, justify="left" if column in ("recording", "engine") else "right")
    for number, each in enumerate(given):
        exact = of_engine["openvino-f32"][number]
        for kind in kinds:
            found = of_engine[kind][number]
            cost = cost_of(names, [each], [exact], [found])
            apart = float(np.max(np.abs(exact.probabilities - found.probabilities), initial=0.0))
            differ = round(cost.labels_differ * cost.frames)
            table.add_row(
                each.name, kind, str(cost.frames), str(differ), f"{1e5 * cost.labels_differ:.0f}", f"{apart:.1e}"
            )
    console.print(table)


if __name__ == "__main__":
    main()
