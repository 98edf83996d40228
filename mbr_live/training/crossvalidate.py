"""`mbr-live crossvalidate`: how good is a model on animals that it has not seen?

Every fold leaves whole groups out, trains a bundle on others, and labels what was left out as `mbr-live batch` does.
All labels are then scored together. Thresholds are chosen on the validation groups of a fold, never on its tested ones.

A fold is done when its `fold.json` stands beside its bundle; a recording, when its run manifest names that bundle.
Both are written last and whole, so a run that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mbr_live.batch.batch import Job, run_job
from mbr_live.bundle import Bundle, load_bundle
from mbr_live.datasets import splits
from mbr_live.datasets.dataset import Dataset, Progress, file_name, read_dataset
from mbr_live.datasets.recordings import files_of
from mbr_live.datasets.splits import Fold
from mbr_live.engines.openvino_engine import OpenVinoEngine
from mbr_live.evaluation.comparison import LabelFolder, Truth
from mbr_live.evaluation.metrics import BinaryScores, Evaluation
from mbr_live.evaluation.program import truth_of, write_report
from mbr_live.files import write_atomically
from mbr_live.progress import bars
from mbr_live.sinks.label_log import LABELS_SUFFIX
from mbr_live.sinks.run_manifest import RUN_SUFFIX, read_run
from mbr_live.training.extractors import file_hash
from mbr_live.training.train import train_on
from mbr_live.types import UNKNOWN, MbrError

FOLD_FILE = "fold.json"
SPLIT = "left out"  # what is scored, as the report calls it
_FOLDS = "folds"
_LIBRARIES = ("torch", "onnx", "openvino", "numpy", "opencv-python-headless", "av")


class FoldRecord(BaseModel):
    """`fold.json`: what the bundle beside it was made of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    key: str  # of the dataset, the code and the fold
    train: tuple[str, ...]  # recordings
    validation: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What one fold is to do."""

    name: str  # of its folder, different from those of the others
    fold: Fold
    key: str  # as in the FoldRecord
    tested: tuple[Truth, ...]


def crossvalidate_program(dataset_file: Path, out: Path, count: int | None = None, weights: Path | None = None) -> None:
    """Cross-validate with progress bars; print what came of it."""
    with bars(Console(stderr=True), over=_FOLDS) as show:
        evaluation = crossvalidate(dataset_file, out, count, progress=show, weights=weights)
    console = Console(soft_wrap=True, highlight=False)
    for table in _tables(evaluation):
        console.print(table)
    for caveat in evaluation.caveats:
        console.print(f"note: {caveat}", markup=False)
    console.print(f"{out / 'report' / 'report.html'} and {out / 'report' / 'metrics.json'}", markup=False)


def crossvalidate(
    dataset_file: Path,
    out: Path,
    count: int | None = None,
    *,
    progress: Progress,
    cache: Path | None = None,
    weights: Path | None = None,
) -> Evaluation:
    """Bundles into `out`/folds, labels of what each fold left out into `out`/labels, scores into `out`/report.

    The extractors start from the file `weights`, if it is given. What an earlier run into `out` has finished is not
    done again, unless the dataset, its files or the code changed. Raises MbrError for a dataset that cannot be
    cross-validated, before anything is trained.
    """
    dataset = read_dataset(dataset_file)
    dataset = dataset.with_weights(weights) if weights else dataset
    scored = _truths(dataset, progress, cache)
    source = _hash_of_sources(dataset, dataset_file)
    plans = _plans(_folds(dataset, scored, count), scored, source)
    labels = out / "labels"
    for done, plan in enumerate(plans):
        progress(_FOLDS, done, len(plans))
        bundle = _bundle(plan, dataset, out / "folds" / plan.name, labels, progress, cache)
        _label(plan, bundle, labels, dataset.window_px, progress)
    progress(_FOLDS, len(plans), len(plans))
    folder = LabelFolder("cross-validation", labels)
    return write_report(
        dataset, SPLIT, list(scored.values()), [folder], out / "report", caveats=list(_caveats(dataset))
    )


def _truths(dataset: Dataset, progress: Progress, cache: Path | None) -> dict[str, Truth]:
    """The marked recordings that can be tested, by name; each will have a label log of that name."""
    specs = [spec for spec in dataset.all_recordings() if spec.grouped]
    found = {}
    for done, spec in enumerate(specs, 1):
        truth = replace(truth_of(spec, dataset, cache), log_name=file_name(spec.name))
        progress("truth", done, len(specs))
        if np.any(truth.annotations.marks != UNKNOWN):
            found[spec.name] = truth
    counts = Counter(truth.log_name for truth in found.values())
    twice = [name for name, truth in found.items() if counts[truth.log_name] > 1]
    if twice:
        raise MbrError(f"{', '.join(twice[:5])} would have one label log. Give each a name that files can have.")
    return found


def _folds(dataset: Dataset, scored: Mapping[str, Truth], count: int | None) -> tuple[Fold, ...]:
    specs = [spec for spec in dataset.all_recordings() if spec.name in scored]
    shown = {name: _shown(truth) for name, truth in scored.items()}
    made = splits.folds(specs, count=count, seed=dataset.splits.seed, shown=shown, validate=dataset.is_fitted)
    if dataset.is_fitted and len(made) < 3:
        raise MbrError(
            f"Dataset {dataset.name}: found {len(made)} folds, expected at least 3: a fold trains on some groups, "
            "chooses thresholds on others and tests further ones. Give --folds, or recordings of more groups."
        )
    return made


def _shown(truth: Truth) -> list[str]:
    shown = np.any(truth.annotations.marks == 1, axis=0).tolist()
    return [name for name, there in zip(truth.annotations.behaviours, shown, strict=True) if there]


def _plans(made: Sequence[Fold], scored: Mapping[str, Truth], source: str) -> list[_Plan]:
    tested = [tuple(scored[name] for name in fold.test) for fold in made]
    return [
        _Plan(name, fold, hashlib.sha256(f"{source} {fold}".encode()).hexdigest(), truths)
        for name, fold, truths in zip(_names(tested), made, tested, strict=True)
    ]


def _names(tested: Sequence[tuple[Truth, ...]]) -> list[str]:
    """A folder for each fold: by the group that it tests, or its number; by numbers alone where two would have one."""
    numbers = [f"fold-{number}" for number in range(1, len(tested) + 1)]
    groups = [{truth.group for truth in truths} for truths in tested]
    named = [file_name(*each) if len(each) == 1 else number for each, number in zip(groups, numbers, strict=True)]
    return named if len(set(named)) == len(named) else numbers


def _hash_of_sources(dataset: Dataset, dataset_file: Path) -> str:
    """Of all that every fold depends on. Videos are large, so they are known by size and time of change."""
    digest = hashlib.sha256(dataset_file.read_bytes())
    digest.update(file_hash(dataset.weights_file).encode() if dataset.weights_file else b"")
    for spec in dataset.all_recordings():
        videos, labels = files_of(spec)
        for video in videos:
            stat = video.stat()
            digest.update(f"{video} {stat.st_size} {stat.st_mtime_ns}".encode())
        for label in labels:
            digest.update(label.read_bytes())
    for module in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(module.read_bytes())
    digest.update(" ".join(version(library) for library in _LIBRARIES).encode())
    return digest.hexdigest()


def _bundle(
    plan: _Plan, dataset: Dataset, folder: Path, labels: Path, progress: Progress, cache: Path | None
) -> Bundle:
    """The bundle of a fold, trained if it is not there."""
    if _is_done(folder / FOLD_FILE, plan.key):
        return load_bundle(folder / "bundle")
    (folder / FOLD_FILE).unlink(missing_ok=True)
    for truth in plan.tested:  # of other code or another dataset, even where the bundle turns out the same
        (labels / f"{truth.log_name}{RUN_SUFFIX}").unlink(missing_ok=True)
    bundle = train_on(
        dataset.with_fold(plan.fold),
        folder / "bundle",
        progress=lambda stage, done, total: progress(f"{plan.name}: {stage}", done, total),
        cache=cache,
    )
    record = FoldRecord(key=plan.key, train=plan.fold.train, validation=plan.fold.validation, test=plan.fold.test)
    write_atomically(folder / FOLD_FILE, record.model_dump_json(indent=1) + "\n")
    return bundle


def _is_done(file: Path, key: str) -> bool:
    try:
        return FoldRecord.model_validate_json(file.read_text(encoding="utf-8")).key == key
    except (OSError, ValidationError):
        return False


def _label(plan: _Plan, bundle: Bundle, labels: Path, window_px: int | None, progress: Progress) -> None:
    """Label what the fold left out, where that is not done."""
    missing = [truth for truth in plan.tested if not _is_labelled(labels, truth.log_name, bundle)]
    if not missing:
        return
    engine = OpenVinoEngine(bundle)
    for done, truth in enumerate(missing, 1):
        run_job(Job(truth.log_name, truth.videos), labels, bundle, engine, window_px=window_px)
        progress(f"{plan.name}: labels", done, len(missing))


def _is_labelled(labels: Path, log_name: str, bundle: Bundle) -> bool:
    run = labels / f"{log_name}{RUN_SUFFIX}"
    if not (run.is_file() and (labels / f"{log_name}{LABELS_SUFFIX}").is_file()):
        return False
    return read_run(run).bundle_sha256 == bundle.sha256


def _caveats(dataset: Dataset) -> Iterator[str]:
    ungrouped = sum(not spec.grouped for spec in dataset.all_recordings())
    if ungrouped:
        yield (
            f"{ungrouped} clips are of nobody knows which group. Every fold trained on them, so some may be of a group "
            "that it tested."
        )


def _tables(evaluation: Evaluation) -> Iterator[Table]:
    (model,) = evaluation.models
    together = Table(
        "behaviour", "scored on", "F1", "PR-AUC", "precision", "recall", "coverage", title="Left out groups"
    )
    for name, scores in model.pooled.behaviours.items():
        stills = scores.held is not None
        together.add_row(name, "judged stills" if stills else "frames", *_cells(scores.frames))
        if scores.held:
            together.add_row(name, "held", *_cells(scores.held))
        if model.clips:
            together.add_row(name, "clips", *_cells(model.clips.behaviours[name]))
    yield together
    if model.recordings:
        each = Table("recording", "group", *(f"F1 {name}" for name in evaluation.behaviours), title="Recordings")
        for recording in model.recordings:
            shown = (_shown_figure(recording.behaviours[name].frames.f1) for name in evaluation.behaviours)
            each.add_row(escape(recording.recording), escape(recording.group), *shown)
        yield each


def _cells(scores: BinaryScores) -> Iterator[str]:
    return map(_shown_figure, (scores.f1, scores.pr_auc, scores.precision, scores.recall, scores.coverage))


def _shown_figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
