"""The experiments of two theses on mouse behaviour, as one command, on simulated recordings of three conditions.

    python tools/thesis_matrix.py --out matrix --temporal tcn lstm

Trains one model for every combination of extractor, input, kinematics, augmentation and temporal network asked for,
labels recordings of unseen seeds with it, and scores them by condition and behaviour. The recordings are as unevenly
spread as the theses' were: 17 of a box that fills the frame, 5 at 29.97 fps of a small arena in a cluttered room, 2 of
a dark box; grooming in about a tenth of the frames and rearing in a fifth. About a fifth of each condition validates.

Every model is `mbr-live train` with a dataset file that stands in its folder, its labels are those of `mbr-live batch`,
its figures those of `mbr-live evaluate`. What is done is not done again: the command can be stopped and given again, or
given again with more values. Recordings, crops and channels are cached as those of any training.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from mbr_live.batch.batch import Job, run_job
from mbr_live.datasets.augmentation import Augmentation
from mbr_live.datasets.dataset import cache_folder, key_of, read_dataset
from mbr_live.datasets.extractor_config import FROM_SCRATCH, IMAGENET, OWN
from mbr_live.datasets.settings import ModelSettings
from mbr_live.engines.openvino_engine import OpenVinoEngine
from mbr_live.evaluation.comparison import LabelFolder
from mbr_live.evaluation.metrics import BinaryScores, Evaluation
from mbr_live.evaluation.program import truths, write_report
from mbr_live.files import write_atomically
from mbr_live.training.train import train

CONDITIONS = {"box": 17, "clutter": 5, "dark": 2}
"""Recordings of the theses in conditions of this kind."""

FIRST_SEED, FIRST_TEST_SEED = 2001, 2101
BEHAVIOURS = ("grooming", "rearing", "rearing_mid", "rearing_wall")
TEMPORAL: dict[str, dict[str, Any]] = {
    "lstm": {"kind": "lstm"},
    "bilstm": {"kind": "lstm", "offline": True},
    "tcn": {"kind": "tcn"},
    "transformer": {"kind": "transformer"},
    "transformer_both": {"kind": "transformer", "offline": True},
}
"""Temporal networks; bilstm and transformer_both look ahead, as those of the theses did."""

INPUTS: dict[str, dict[str, Any]] = {
    "rgb": {},
    "maximum": {"features": "maximum"},
    "binary": {"crop": "silhouette"},
}
"""What the extractor sees, and what becomes of its features: those that the theses compared."""

FIGURES = ("accuracy", "precision", "recall", "pr_auc", "f1")

# What the thesis of 2024 reached on one real recording of each condition: accuracy, precision, recall and PR-AUC, each
# in the order of CONDITIONS; ImageNet features (512), augmented. Its Transformer looks ahead.
THESIS: dict[str, dict[str, tuple[tuple[float, float, float], ...]]] = {
    "lstm": {
        "grooming": ((0.957, 0.983, 0.971), (0.882, 0.912, 0.913), (0.908, 0.464, 0.537), (0.96, 0.889, 0.695)),
        "rearing": ((0.885, 0.986, 0.858), (0.647, 0.602, 0.518), (0.687, 0.78, 0.869), (0.762, 0.829, 0.785)),
    },
    "bilstm": {
        "grooming": ((0.953, 0.995, 0.948), (0.92, 1.0, 0.689), (0.842, 0.848, 0.144), (0.944, 0.941, 0.47)),
        "rearing": ((0.917, 0.986, 0.895), (0.841, 0.824, 0.783), (0.651, 0.19, 0.421), (0.812, 0.479, 0.663)),
    },
    "tcn": {
        "grooming": ((0.941, 0.995, 0.962), (0.832, 0.942, 0.671), (0.937, 0.875, 0.582), (0.91, 0.955, 0.683)),
        "rearing": ((0.902, 0.99, 0.962), (0.702, 0.895, 0.69), (0.673, 0.459, 0.686), (0.754, 0.743, 0.78)),
    },
    "transformer_both": {
        "grooming": ((0.94, 0.995, 0.958), (0.885, 0.97, 0.882), (0.779, 0.857, 0.297), (0.902, 0.939, 0.691)),
        "rearing": ((0.888, 0.981, 0.873), (0.719, 0.588, 0.567), (0.545, 0.135, 0.682), (0.693, 0.284, 0.685)),
    },
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One model of the matrix."""

    extractor: str
    inputs: str
    kinematics: str
    augment: str  # "yes" or "no"
    temporal: str

    @property
    def name(self) -> str:
        """Of its folder and its bundle."""
        kinematics = self.kinematics.replace("+", "_")
        return "-".join((self.extractor, self.inputs, kinematics, f"augment_{self.augment}", self.temporal))


class Figures(BaseModel):
    """Of one behaviour in one condition, over the frames that have a label; None: not defined."""

    model_config = ConfigDict(extra="forbid")

    frames: int
    prevalence: float | None
    accuracy: float | None
    precision: float | None
    recall: float | None
    pr_auc: float | None
    f1: float | None


class Result(BaseModel):
    """`cell.json`: what one model reached."""

    model_config = ConfigDict(extra="forbid")

    key: str  # of the dataset file, the code and the libraries
    cell: dict[str, str]
    seconds: float  # training, labelling and scoring
    figures: dict[str, dict[str, Figures]]  # by behaviour and condition


def main() -> None:
    options = _options()
    axes = (options.extractors, options.inputs, options.kinematics, options.augment, options.temporal)
    results = _run(cells_of(*axes), options)
    text = report(results, options.behaviours, options.conditions)
    write_atomically(options.out / "matrix.md", text)
    write_atomically(options.out / "matrix.json", json.dumps([each.model_dump() for each in results], indent=1) + "\n")
    print(f"{text}\n{options.out / 'matrix.md'} and {options.out / 'matrix.json'}")


def cells_of(
    extractors: Sequence[str],
    inputs: Sequence[str],
    kinematics: Sequence[str],
    augment: Sequence[str],
    temporal: Sequence[str],
) -> list[Cell]:
    """All combinations that see something; without an extractor there is nothing to vary or to augment."""
    cells: dict[Cell, None] = {}
    for extractor, seen, channels, augmented, network in product(extractors, inputs, kinematics, augment, temporal):
        if extractor != "none":
            cells[Cell(extractor, seen, channels, augmented, network)] = None
        elif channels != "none":
            cells[Cell(extractor, "rgb", channels, "no", network)] = None
    return list(cells)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    extractors = get_args(ModelSettings.model_fields["extractor"].annotation)
    parser.add_argument("--extractors", nargs="+", choices=extractors, default=["slim"])
    parser.add_argument("--inputs", nargs="+", choices=tuple(INPUTS), default=["rgb"])
    parser.add_argument("--weights", help="of published extractors: a file instead of those of the hub, or none")
    parser.add_argument("--kinematics", nargs="+", default=["none"], help="none, or sets of channels such as all+arena")
    parser.add_argument("--augment", nargs="+", choices=("yes", "no"), default=["yes"])
    parser.add_argument("--temporal", nargs="+", choices=tuple(TEMPORAL), default=list(TEMPORAL))
    parser.add_argument("--behaviours", nargs="+", choices=BEHAVIOURS, default=["grooming", "rearing"])
    parser.add_argument("--conditions", nargs="+", choices=tuple(CONDITIONS), default=list(CONDITIONS))
    parser.add_argument("--recordings", nargs="+", type=int, help="of each condition (default: as the theses had)")
    parser.add_argument("--minutes", type=float, default=3.0, help="of each recording to train on; the theses had 11")
    parser.add_argument("--test-minutes", type=float, default=3.0)
    parser.add_argument("--test-recordings", type=int, default=2, help="of each condition")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="of the dataset file, as training.frame_steps=300"
    )
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="folder for recordings and crops")
    parser.add_argument("--out", type=Path, required=True, help="folder for models, labels, reports and the tables")
    options = parser.parse_args()
    options.recordings = options.recordings or [CONDITIONS[name] for name in options.conditions]
    if len(options.recordings) != len(options.conditions) or min(options.recordings) < 2:
        parser.error("--recordings: give one number for each condition, at least 2: one to train on, one to validate")
    return options


def _run(cells: Sequence[Cell], options: argparse.Namespace) -> list[Result]:
    """All results in order; shows what is being done and how long the rest will take."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results: list[Result] = []
    with Progress(*columns, console=Console(stderr=True)) as bars:
        overall = bars.add_task("models", total=len(cells))
        for cell in cells:
            results.append(_result(cell, options, bars))
            left_s = sum(each.seconds for each in results) / len(results) * (len(cells) - len(results))
            bars.update(overall, advance=1, description=f"models, about {_span(left_s)} left" if left_s else "models")
    return results


def _result(cell: Cell, options: argparse.Namespace, bars: Progress) -> Result:
    folder = options.out / "models" / cell.name
    text = dataset_file(cell, options)
    key = key_of(text, ("**/*.py",))
    kept = _kept(folder / "cell.json", key)
    if kept:
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "dataset.toml", text)
    started_s = time.monotonic()
    evaluation = _evaluated(cell, folder, options.cache, bars)
    result = Result(
        key=key,
        cell={field.name: str(getattr(cell, field.name)) for field in fields(cell)},
        seconds=round(time.monotonic() - started_s, 1),
        figures=_figures(evaluation, options.conditions),
    )
    write_atomically(folder / "cell.json", result.model_dump_json(indent=1) + "\n")
    return result


def _kept(file: Path, key: str) -> Result | None:
    """The result of an earlier run, if it is of the same dataset, code and libraries."""
    try:
        result = Result.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
    return result if result.key == key else None


def _evaluated(cell: Cell, folder: Path, cache: Path, bars: Progress) -> Evaluation:
    """Train the model, label the test recordings with it, and score the labels."""
    tasks: dict[str, TaskID] = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(f"{cell.name}: {stage}", total=total)
        bars.update(tasks[stage], completed=done)

    bundle = train(folder / "dataset.toml", folder / "bundle", progress=show, cache=cache)
    dataset = read_dataset(folder / "dataset.toml")
    scored = truths(dataset, "test", cache)
    engine = OpenVinoEngine(bundle)
    for done, truth in enumerate(scored, 1):
        run_job(Job(truth.log_name, truth.videos), folder / "labels", bundle, engine)
        show("labels", done, len(scored))
    evaluation = write_report(dataset, "test", scored, [LabelFolder(cell.name, folder / "labels")], folder / "report")
    for task in tasks.values():
        bars.remove_task(task)
    return evaluation


def _figures(evaluation: Evaluation, conditions: Sequence[str]) -> dict[str, dict[str, Figures]]:
    """By behaviour and condition; "all": all conditions together."""
    (model,) = evaluation.models
    sets = {**(model.sets.get("condition") or {conditions[0]: model.pooled}), "all": model.pooled}
    return {
        behaviour: {name: _of(scores.behaviours[behaviour].frames) for name, scores in sets.items()}
        for behaviour in evaluation.behaviours
    }


def _of(scores: BinaryScores) -> Figures:
    figures = {figure: getattr(scores, figure) for figure in ("prevalence", *FIGURES)}
    return Figures(frames=scores.scored, **figures)


def dataset_file(cell: Cell, options: argparse.Namespace) -> str:
    """The dataset file of a model, TOML."""
    model = {"extractor": cell.extractor, **INPUTS[cell.inputs], "kinematics": cell.kinematics}
    if options.weights and cell.extractor not in OWN:
        named = options.weights in (FROM_SCRATCH, IMAGENET)
        model["weights"] = options.weights if named else str(Path(options.weights).resolve())
    tables: dict[str, dict[str, Any]] = {"model": {**model, "temporal": TEMPORAL[cell.temporal]}, "training": {}}
    if cell.augment == "no":
        # Of every change of single frames the least. Mirroring, which no label depends on, stays.
        tables["training"]["augmentation"] = {
            name: 0.0 for name, field in Augmentation.model_fields.items() if field.annotation is float
        }
    elif ModelSettings.model_validate(model).is_frozen:
        # It learns from no single frames. As in the theses: a copy of each recording, with one change for all of it.
        tables["training"]["recording_augmentation"] = {"copies": 1}
    top: dict[str, str] = {}
    for setting in options.set:
        place, _, value = setting.partition("=")
        table, _, name = place.rpartition(".")
        if table:
            tables.setdefault(table, {})[name] = _Verbatim(value)
        else:
            top[name] = value
    lines = [
        f'name = "{cell.name}"',
        'summary = "A model of the experiment matrix, trained on a simulated animal: not for science."',
        *(f"{name} = {value}" for name, value in top.items()),
        "simulated = [",
        *(f"    {_toml(each)}," for each in _recordings(options)),
        "]",
    ]
    for behaviour in options.behaviours:
        # Labels without a delay: frames are what is scored.
        lines += ["", "[[behaviours]]", *_entries({"name": behaviour, "min_bout_s": 0.0, "bridge_s": 0.0})]
    for table, entries in tables.items():
        lines += ["", f"[{table}]", *_entries(entries)]
    return "\n".join(lines) + "\n"


def _recordings(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Entries of `simulated`: of each condition the first to train on, about a fifth to validate, others to test."""
    for condition, count in zip(options.conditions, options.recordings, strict=True):
        validating = max(1, round(count / 5))
        for number in range(count):
            split = "train" if number < count - validating else "validation"
            yield {"condition": condition, "seed": FIRST_SEED + number, "minutes": options.minutes, "split": split}
        for number in range(options.test_recordings):
            seed = FIRST_TEST_SEED + number
            yield {"condition": condition, "seed": seed, "minutes": options.test_minutes, "split": "test"}


class _Verbatim(str):
    """A value that is TOML already."""


def _entries(table: Mapping[str, Any]) -> Iterator[str]:
    return (f"{name} = {_toml(value)}" for name, value in table.items())


def _toml(value: Any) -> str:
    if isinstance(value, _Verbatim):
        return str(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(_entries(value)) + " }"
    return json.dumps(value)


def report(results: Sequence[Result], behaviours: Sequence[str], conditions: Sequence[str]) -> str:
    """The tables, Markdown: a row per model, and below them what the thesis had with such temporal networks."""
    shown = " / ".join(conditions)
    lines = [
        f"Figures of {shown}. The rows of the thesis are of one real recording of each condition, ours are of "
        "simulated ones that are spread as theirs were: for scale, not for a claim about mice.",
    ]
    for behaviour in behaviours:
        prevalence = " / ".join(_shown(results[0].figures[behaviour][name].prevalence) for name in conditions)
        lines += [
            "",
            f"**{behaviour}** (prevalence {prevalence})",
            "",
            "| model | accuracy | precision | recall | PR-AUC | F1 | F1, all frames |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [_row(result, behaviour, conditions) for result in results]
        networks = dict.fromkeys(result.cell["temporal"] for result in results)
        lines += [line for network in networks for line in _thesis_row(network, behaviour, conditions)]
    return "\n".join(lines) + "\n"


def _row(result: Result, behaviour: str, conditions: Sequence[str]) -> str:
    of_condition = result.figures[behaviour]
    cells = (" / ".join(_shown(getattr(of_condition[name], figure)) for name in conditions) for figure in FIGURES)
    cell = result.cell
    seen = [] if cell["extractor"] == "none" else [cell["extractor"], cell["inputs"]]
    seen += [] if cell["kinematics"] == "none" else [f"kinematics {cell['kinematics']}"]
    seen += ["not augmented"] if cell["augment"] == "no" and cell["extractor"] != "none" else []
    name = ", ".join((cell["temporal"], *seen))
    return f"| {name} | {' | '.join(cells)} | {_shown(of_condition['all'].f1)} |"


def _thesis_row(temporal: str, behaviour: str, conditions: Sequence[str]) -> list[str]:
    figures = THESIS.get(temporal, {}).get(behaviour)
    if figures is None:
        return []
    places = [list(CONDITIONS).index(name) for name in conditions]
    cells = (" / ".join(_shown(each[place]) for place in places) for each in figures)
    return [f"| *thesis 2024, {temporal}* | {' | '.join(cells)} | - | - |"]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


if __name__ == "__main__":
    main()
