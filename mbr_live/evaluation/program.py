"""`mbr-live evaluate`: label logs against the truth, as a report to read and as figures to compute with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from mbr_live.datasets import dataset as datasets
from mbr_live.datasets.recordings import Clip, RecordingSpec, by_log_name
from mbr_live.evaluation.comparison import LabelFolder, Truth
from mbr_live.evaluation.evaluate import evaluate
from mbr_live.evaluation.metrics import Evaluation
from mbr_live.evaluation.report import render
from mbr_live.files import write_atomically
from mbr_live.places import check_writable
from mbr_live.types import MbrError

_FILE_WIDTH = 120  # of tables that go to a file
ALL = "all"
"""Instead of a split: every recording, for a truth of recordings that no model has been trained on."""


def evaluate_program(
    labels: Sequence[Path], names: Sequence[str], dataset_file: Path, out: Path, *, split: str | None = None
) -> None:
    """Score every folder of label logs; write `report.html` and `metrics.json` into `out`."""
    folders = _folders(labels, names)
    check_writable(out)
    dataset = datasets.read_dataset(dataset_file)
    console = Console(stderr=True)
    split = split or default_split(dataset)
    with console.status("reading the truth") as status:
        scored = truths(dataset, split)
        evaluation = write_report(dataset, split, scored, folders, out, progress=status.update)
    shown = Console()
    shown = shown if shown.is_terminal else Console(width=_FILE_WIDTH)
    shown.print(_table(evaluation))
    if evaluation.lookahead:
        shown.print(_lookahead_table(evaluation))
    print(_scored(dataset, split))
    print(f"{out / 'report.html'} and {out / 'metrics.json'}")


def write_report(
    dataset: datasets.Dataset,
    split: str,
    scored: Sequence[Truth],
    folders: Sequence[LabelFolder],
    out: Path,
    *,
    caveats: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Score the folders; `report.html` and `metrics.json` into `out`, with the dataset's caveats and further ones."""
    evaluation, compared = evaluate(
        dataset.name,
        split,
        [behaviour.name for behaviour in dataset.behaviours],
        scored,
        folders,
        [*dataset.caveats, *caveats],
        lambda name: progress(f"scoring {name}"),
    )
    progress("drawing the report")
    page = render(evaluation, compared)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "metrics.json", evaluation.model_dump_json(indent=1) + "\n")
    write_atomically(out / "report.html", page)
    return evaluation


def _folders(labels: Sequence[Path], names: Sequence[str]) -> list[LabelFolder]:
    if names and len(names) != len(labels):
        raise MbrError(
            f"evaluate: found {len(labels)} --labels and {len(names)} --name. Give each folder a name, or none."
        )
    absent = [str(folder) for folder in labels if not folder.is_dir()]
    if absent:
        raise MbrError(f"evaluate: --labels {', '.join(absent)}: there is no such folder. Check the name.")
    chosen = list(names) or [folder.resolve().name for folder in labels]
    twice = sorted({name for name in chosen if chosen.count(name) > 1})
    if twice:
        raise MbrError(
            f"evaluate: {', '.join(twice)} names several folders. Tell them apart with --name, one for each."
        )
    return [LabelFolder(name, folder) for name, folder in zip(chosen, labels, strict=True)]


def truths(dataset: datasets.Dataset, split: str, cache: Path | None = None) -> list[Truth]:
    """The marked recordings of a split, or of all; simulated ones are rendered into `cache` if they are not there."""
    specs = [spec for spec in dataset.all_recordings() if split in (spec.split, ALL)]
    if not specs:
        splits = ", ".join(sorted({str(spec.split) for spec in dataset.all_recordings()}))
        raise MbrError(
            f"Dataset {dataset.name}: found no recording of split {split}; it has {splits}. "
            f"Name one of these, or {ALL}, with --split."
        )
    by_log_name(specs)  # refuses two recordings of one log
    return [truth_of(spec, dataset, cache) for spec in specs]


def truth_of(spec: RecordingSpec, dataset: datasets.Dataset, cache: Path | None = None) -> Truth:
    """What people have marked in one recording."""
    return Truth(
        recording=spec.name,
        log_name=spec.log_name,
        group=spec.group,
        condition=spec.condition,
        camera=spec.camera,
        clip=isinstance(spec.source, Clip),
        annotations=datasets.annotations_of(spec, dataset, cache),
        videos=datasets.video_files(spec, cache),
    )


def default_split(dataset: datasets.Dataset) -> str:
    """What has not been trained on: the test recordings; where there are none, those of validation."""
    return "test" if any(spec.split == "test" for spec in dataset.all_recordings()) else "validation"


def _scored(dataset: datasets.Dataset, split: str) -> str:
    """What the figures are of, and what was left out."""
    counts = Counter(str(spec.split) for spec in dataset.all_recordings())
    if split == ALL:
        return f"scored: all recordings, {counts.total()}"
    others = ", ".join(f"{count} of {name}" for name, count in sorted(counts.items()) if name != split)
    left_out = f"; not scored: {others} (--split)" if others else ""
    return f"scored: recordings of {split}, {counts[split]}{left_out}"


def _lookahead_table(evaluation: Evaluation) -> Table:
    table = Table("causal", "looks ahead", "behaviour", "F1", "95 %", "PR-AUC", "bout F1", "onset ms",
                  title="What not looking ahead costs (onset: how much later)")  # fmt: skip
    for cost in evaluation.lookahead:
        gains = ("-" if gain is None else f"{gain:+.3f}" for gain in (cost.f1, cost.pr_auc, cost.bout_f1))
        f1, pr_auc, bout_f1 = gains
        interval = f"{cost.f1_interval[0]:+.3f} to {cost.f1_interval[1]:+.3f}" if cost.f1_interval else "-"
        onset = "-" if cost.onset_ms is None else f"{cost.onset_ms:+.0f}"
        table.add_row(cost.causal, cost.ahead, cost.behaviour, f1, interval, pr_auc, bout_f1, onset)
    return table


def _table(evaluation: Evaluation) -> Table:
    stills = any(model.pooled.stills is not None for model in evaluation.models)
    names = ("model", "behaviour", "coverage", "F1", "PR-AUC", *(("F1 held", "PR-AUC held") if stills else ()))
    columns = [Column(name, overflow="fold") for name in (*names, "worst F1", "bout F1")]  # names are never cut short
    table = Table(*columns, title="Judged stills; held: all ticks" if stills else None)
    for model in evaluation.models:
        for name, scores in model.pooled.behaviours.items():
            worst = scores.spread.get("f1")
            held = (scores.held.f1, scores.held.pr_auc) if scores.held else ()
            cells = (
                scores.frames.coverage,
                scores.frames.f1,
                scores.frames.pr_auc,
                *held,
                worst.worst if worst else None,
                scores.bouts["0.5"].f1 if scores.bouts else None,
            )
            shown = ("-" if cell is None else f"{cell:.3f}" for cell in cells)
            table.add_row(model.name, name, *shown)
    return table
