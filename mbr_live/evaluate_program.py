"""`mbr-live evaluate`: label logs against the truth, as a report to read and as figures to compute with."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mbr_live import dataset as datasets
from mbr_live import simulate
from mbr_live.annotations import Annotations
from mbr_live.evaluate import LabelFolder, Truth, evaluate
from mbr_live.metrics import Evaluation
from mbr_live.report import render
from mbr_live.sinks import write_atomically
from mbr_live.types import MbrError

TRAIN = "train"


def evaluate_program(
    labels: Sequence[Path], names: Sequence[str], dataset_file: Path, out: Path, *, split: str | None = None
) -> None:
    """Score every folder of label logs; write `report.html` and `metrics.json` into `out`."""
    folders = _folders(labels, names)
    dataset = datasets.read_dataset(dataset_file)
    console = Console(stderr=True)
    with console.status("reading the truth") as status:
        scored = truths(dataset, split)
        behaviours = [behaviour.name for behaviour in dataset.behaviours]
        evaluation, compared = evaluate(
            dataset.name,
            split or f"all but {TRAIN}",
            behaviours,
            scored,
            folders,
            lambda name: status.update(f"scoring {name}"),
        )
        status.update("drawing the report")
        page = render(evaluation, compared)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "metrics.json", evaluation.model_dump_json(indent=1) + "\n")
    write_atomically(out / "report.html", page)
    Console().print(_table(evaluation))
    print(f"{out / 'report.html'} and {out / 'metrics.json'}")


def _folders(labels: Sequence[Path], names: Sequence[str]) -> list[LabelFolder]:
    if names and len(names) != len(labels):
        raise MbrError(
            f"evaluate: found {len(labels)} --labels and {len(names)} --name. Give each folder a name, or none."
        )
    chosen = list(names) or [folder.resolve().name for folder in labels]
    twice = sorted({name for name in chosen if chosen.count(name) > 1})
    if twice:
        raise MbrError(
            f"evaluate: {', '.join(twice)} names several folders. Tell them apart with --name, one for each."
        )
    return [LabelFolder(name, folder) for name, folder in zip(chosen, labels, strict=True)]


def truths(dataset: datasets.Dataset, split: str | None) -> list[Truth]:
    """The marked recordings of a split; without one, all that are not for training."""
    chosen = [each for each in dataset.simulated if (each.split == split if split else each.split != TRAIN)]
    if not chosen:
        splits = ", ".join(sorted({each.split for each in dataset.simulated}))
        raise MbrError(
            f"Dataset {dataset.name}: found no recording of split {split or f'other than {TRAIN}'}; it has {splits}. "
            "Name one of these with --split."
        )
    behaviours = tuple(behaviour.name for behaviour in dataset.behaviours)
    return [_simulated(each, behaviours) for each in chosen]


def _simulated(recording: datasets.SimulatedRecording, behaviours: tuple[str, ...]) -> Truth:
    cache = datasets.cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    video, truth, _, _ = datasets._files(recording, cache)
    if not (video.is_file() and truth.is_file()):
        simulate.record(recording.condition, recording.seed, 60.0 * recording.minutes, video, truth)
    with truth.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    marks = np.array([[row[name] == "1" for name in behaviours] for row in rows], np.int8)
    return Truth(
        recording=recording.name,
        log_name=recording.name,
        group=recording.name,
        condition=recording.condition,
        camera="",
        clip=False,
        annotations=Annotations(behaviours, marks),
        videos=(video,),
    )


def _table(evaluation: Evaluation) -> Table:
    table = Table("model", "behaviour", "coverage", "F1", "PR-AUC", "worst F1", "bout F1")
    for model in evaluation.models:
        for name, scores in model.pooled.behaviours.items():
            worst = scores.spread.get("f1")
            cells = (
                scores.frames.coverage,
                scores.frames.f1,
                scores.frames.pr_auc,
                worst.worst if worst else None,
                scores.bouts["0.5"].f1 if scores.bouts else None,
            )
            shown = ("-" if cell is None else f"{cell:.3f}" for cell in cells)
            table.add_row(model.name, name, *shown)
    return table
