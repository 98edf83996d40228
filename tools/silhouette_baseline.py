"""What plain silhouette statistics reach, beside a cross-validated model.

    mbr-live crossvalidate cylinder.toml --out folds
    python tools/silhouette_baseline.py cylinder.toml --beside folds/report/metrics.json

Extremely randomised trees (Geurts, Ernst & Wehenkel 2006) on statistics of the last 2.5 s of five silhouette measures
(aspect, height, area, motion energy, speed): causal, every group left out once, nothing tuned. They see the same
silhouettes as the model and are scored on the same frames: those that `mbr-live batch` labels and somebody judged.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.ensemble import ExtraTreesClassifier

from mbr_live.annotation.marks import Marks, where_judged
from mbr_live.datasets.dataset import Dataset, cache_folder, read_dataset
from mbr_live.datasets.splits import Fold
from mbr_live.datasets.variation import Variation
from mbr_live.evaluation.scoring import average_precision, f1
from mbr_live.training.preparation import Recording, prepare, stretches
from mbr_live.types import RATE_FPS, UNKNOWN, MbrError

MEASURES = ("log_aspect", "height", "size", "motion", "speed")
MEMORY_FRAMES = round(2.5 * RATE_FPS)
TREES = 500
LEAF_FRAMES = 3


@dataclass(frozen=True, slots=True)
class Group:
    """The frames of a group that the pipeline labels."""

    name: str
    statistics: NDArray[np.float64]  # [M, S]
    truth: Marks  # [M, K], UNKNOWN where nobody judged this very frame


def main() -> None:
    options = _options()
    try:
        dataset = read_dataset(options.dataset)
        groups = _groups(dataset)
        beside = json.loads(options.beside.read_text(encoding="utf-8")) if options.beside else None
    except (MbrError, OSError, json.JSONDecodeError) as error:
        sys.exit(f"silhouette_baseline: {error}")
    console = Console(width=120)
    for k, behaviour in enumerate(dataset.behaviours):
        shown = track(range(len(groups)), behaviour.name, console=Console(stderr=True), transient=True)
        found = [_probabilities(groups, left_out, k) for left_out in shown]
        console.print(_table(behaviour.name, groups, k, found, beside))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="dataset file of recordings of several groups")
    parser.add_argument("--beside", type=Path, help="metrics.json of mbr-live crossvalidate with the same file")
    return parser.parse_args()


def _groups(dataset: Dataset) -> list[Group]:
    group_of = {spec.name: spec.group for spec in dataset.all_recordings() if spec.grouped}
    model = dataset.model.model_copy(update={"extractor": "none", "kinematics": "all"})
    training = dataset.training.model_copy(update={"variation": Variation()})
    plain = dataset.with_fold(Fold((), (), ())).model_copy(update={"model": model, "training": training})
    with Console(stderr=True).status("recordings") as status:
        recordings = prepare(plain, cache_folder(), lambda stage, done, total: status.update(f"{stage} {done}/{total}"))
    measures = [model.channels.index(name) for name in MEASURES]
    groups = []
    for name in dict.fromkeys(group_of.values()):
        parts = [
            part
            for recording in recordings
            if group_of.get(recording.name) == name
            for part in _labelled(recording, measures, dataset.max_gap_frames, dataset.warmup_frames)
        ]
        if parts:
            groups.append(Group(name, *(np.concatenate(each) for each in zip(*parts, strict=True))))
    if len(groups) < 2:
        raise MbrError(f"{dataset.name} has labels of {len(groups)} groups, expected two at least: one is left out.")
    return groups


def _labelled(
    recording: Recording, measures: Sequence[int], max_gap_frames: int, warmup_frames: int
) -> list[tuple[NDArray[np.float64], Marks]]:
    """Statistics and truth of the frames of each stretch that the pipeline would label."""
    if recording.channels is None:
        raise ValueError(f"{recording.name} was prepared without channels")
    found = []
    truth = where_judged(recording.truth, recording.judged)
    for stretch in stretches(recording.ticks, max_gap_frames):
        labelled = stretch.known & (np.cumsum(stretch.known) > warmup_frames)
        values = _statistics(recording.channels[stretch.rows][:, measures])
        found.append((values[labelled], truth[stretch.rows][labelled]))
    return found


def _statistics(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of measures [T, 5]: now, and mean, deviation, least and most of the last 2.5 s, the first held before it."""
    before = np.repeat(values[:1], MEMORY_FRAMES - 1, axis=0)
    last = sliding_window_view(np.concatenate((before, values)), MEMORY_FRAMES, axis=0).astype(np.float64)
    return np.hstack((values, last.mean(axis=2), last.std(axis=2), last.min(axis=2), last.max(axis=2)))


def _probabilities(groups: Sequence[Group], left_out: int, k: int) -> NDArray[np.float64]:
    """[M] of the group that is left out, by trees that have seen the others."""
    others = [group for place, group in enumerate(groups) if place != left_out]
    statistics = np.concatenate([group.statistics for group in others])
    truth = np.concatenate([group.truth[:, k] for group in others])
    judged = truth != UNKNOWN
    trees = ExtraTreesClassifier(TREES, min_samples_leaf=LEAF_FRAMES, class_weight="balanced", random_state=1, n_jobs=2)
    trees.fit(statistics[judged], truth[judged] == 1)
    column = list(trees.classes_).index(True) if True in trees.classes_ else None
    said = trees.predict_proba(groups[left_out].statistics)
    return np.zeros(len(said)) if column is None else said[:, column]


def _table(
    behaviour: str,
    groups: Sequence[Group],
    k: int,
    found: Sequence[NDArray[np.float64]],
    beside: Mapping[str, Any] | None,
) -> Table:
    table = Table(behaviour, "frames", "with it", "F1", "PR-AUC", *(("F1 model", "PR-AUC model") if beside else ()))
    truths = [group.truth[:, k] for group in groups]
    for group, truth, probabilities in zip(groups, truths, found, strict=True):
        model = _of_group(beside, group.name, behaviour) if beside else ()
        table.add_row(group.name, *_scores(probabilities, truth), *model)
    model = _pooled(beside, behaviour) if beside else ()
    table.add_row("all", *_scores(np.concatenate(found), np.concatenate(truths)), *model)
    return table


def _scores(probabilities: NDArray[np.float64], truth: Marks) -> list[str]:
    judged = truth != UNKNOWN
    probabilities, shown = probabilities[judged], truth[judged] == 1
    scores = (f1(probabilities >= 0.5, shown), average_precision(probabilities, shown))
    return [str(len(shown)), str(int(shown.sum())), *map(_figure, scores)]


def _of_group(metrics: Mapping[str, Any], group: str, behaviour: str) -> list[str]:
    """F1 and PR-AUC of the model in a group of one recording; of several it has no figures of its own."""
    of_group = [each for each in metrics["models"][0]["recordings"] if each["group"] == group]
    return _figures(of_group[0]["behaviours"][behaviour]) if len(of_group) == 1 else ["-", "-"]


def _pooled(metrics: Mapping[str, Any], behaviour: str) -> list[str]:
    return _figures(metrics["models"][0]["pooled"]["behaviours"][behaviour])


def _figures(scores: Mapping[str, Any]) -> list[str]:
    return [_figure(scores["frames"][name]) for name in ("f1", "pr_auc")]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
