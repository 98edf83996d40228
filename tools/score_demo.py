"""How well a bundle labels simulated recordings that it has not seen, through the program as users call it.

    python tools/score_demo.py --seeds 11 12 13 --minutes 5 --out /tmp/scores

records H.264 files of every condition, runs `mbr-live batch` on them and compares its labels with the truth.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mbr_live.bundle import load_bundle
from mbr_live.config import DEMO_BUNDLE
from mbr_live.evaluation.scoring import average_precision, f1
from mbr_live.simulation.camera import CONDITIONS, record

Columns = dict[str, list[str]]


def main() -> None:
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    names = {condition: [f"{condition}-{seed}" for seed in options.seeds] for condition in options.conditions}
    videos = [
        _recorded(condition, seed, options.minutes, options.out)
        for condition in options.conditions
        for seed in options.seeds
    ]
    command = [sys.executable, "-m", "mbr_live", "batch", *map(str, videos)]
    subprocess.run([*command, "--bundle", str(options.bundle), "--out", str(options.out / "labels")], check=True)
    table = Table("condition", "behaviour", "frames", "known", "prevalence", "PR-AUC", "worst PR-AUC", "F1")
    for condition, recordings in names.items():
        for behaviour in load_bundle(options.bundle).manifest.behaviour_names:
            table.add_row(condition, behaviour, *_scores(options.out, recordings, behaviour))
    Console(width=120).print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE)
    parser.add_argument("--conditions", nargs="+", default=sorted(CONDITIONS), choices=sorted(CONDITIONS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[11, 12, 13])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--out", type=Path, required=True, help="folder for recordings and labels, kept afterwards")
    return parser.parse_args()


def _recorded(condition: str, seed: int, minutes: float, folder: Path) -> Path:
    """The recording, made unless it is there already."""
    video, truth = folder / f"{condition}-{seed}.mp4", folder / f"{condition}-{seed}.truth.csv"
    if not (video.is_file() and truth.is_file()):
        record(condition, seed, 60.0 * minutes, video, truth)
    return video


def _scores(folder: Path, recordings: list[str], behaviour: str) -> list[str]:
    """Table cells: over all frames with status ok of the recordings, and the worst recording."""
    parts = [_compared(folder, name, behaviour) for name in recordings]
    probabilities, labels, truth = (np.concatenate([part[i] for part in parts]) for i in range(3))
    ticks = sum(part[3] for part in parts)
    each = [average_precision(part[0], part[2]) for part in parts]
    worst = min((value for value in each if value is not None), default=None)
    return [
        str(ticks),
        f"{len(truth) / ticks:.3f}",
        f"{truth.mean():.3f}",
        _shown(average_precision(probabilities, truth)),
        _shown(worst),
        _shown(f1(labels, truth)),
    ]


def _compared(folder: Path, name: str, behaviour: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Probabilities, labels and truth of the frames with status ok, and the number of all ticks."""
    truth = _read(folder / f"{name}.truth.csv")[behaviour]
    log = _read(folder / "labels" / f"{name}.labels.csv")
    known = [row for row, status in enumerate(log["status"]) if status == "ok"]
    probabilities = np.array([float(log[f"p_{behaviour}"][row]) for row in known])
    labels = np.array([log[behaviour][row] == "1" for row in known])
    shown = np.array([truth[int(log["source_frame"][row])] == "1" for row in known])
    return probabilities, labels, shown, len(log["status"])


def _read(path: Path) -> Columns:
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return {name: [row[column] for row in rows] for column, name in enumerate(header)}


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
