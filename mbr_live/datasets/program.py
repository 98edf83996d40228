"""`mbr-live dataset check`: what a dataset holds, and all that is wrong with it, before hours of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mbr_live.annotation.marks import Marks, ProblemKind, runs
from mbr_live.datasets import dataset, recordings
from mbr_live.datasets.dataset import Dataset, Problem
from mbr_live.datasets.recordings import Clip, RecordingSpec
from mbr_live.progress import tracked
from mbr_live.types import RATE_FPS, UNKNOWN, MbrError

EXIT_ERRORS = 1
_RECORDINGS_PER_PICTURE = 20
_NAMES_SHOWN = 4

Truth = Mapping[str, Marks]
"""Marks int8 [T, K] of the sampled frames of recordings, by name."""


@dataclass(frozen=True, slots=True)
class Line:
    """A recording, or the clips of one group in one split: what the table has rows for."""

    name: str
    spec: RecordingSpec  # of the first, where there are several
    parts: tuple[Marks, ...]  # [T, K] of each on the 10 fps grid


def check_program(dataset_file: Path, out: Path | None) -> int:
    """Print problems and statistics, draw the plots into `out`; 1 where a problem is an error, else 0."""
    plan = dataset.read_dataset(dataset_file)
    specs = plan.all_recordings()
    cache = dataset.cache_folder()
    problems: list[Problem] = []
    truth: dict[str, Marks] = {}
    for spec in tracked(specs, "reading labels", len(specs)):
        annotations, found = dataset.annotated(spec, plan, cache)
        problems += found
        source_frames = dataset.sampled_frames(spec, cache) if len(annotations.marks) else np.zeros(0, np.int64)
        truth[spec.name] = annotations.at(source_frames)
    problems += dataset_problems(plan, truth)
    console = Console(soft_wrap=True, highlight=False)
    lines = list(_lines(specs, truth))
    console.print(_table(plan, lines))
    for text in (*(f"note: {caveat}" for caveat in plan.caveats), *problem_lines(problems)):
        console.print(text, markup=False)
    if out is not None:
        _plot(plan, lines, out)
        console.print(f"plots: {out}", markup=False)
    errors = sum(problem.severity == "error" for problem in problems)
    console.print(f"{len(specs)} recordings, {errors} errors, {len(problems) - errors} warnings", markup=False)
    return EXIT_ERRORS if errors else 0


def dataset_problems(plan: Dataset, truth: Truth) -> list[Problem]:
    """The problems that no single recording shows."""
    findings: list[tuple[ProblemKind, str]] = [(each.kind, each.text) for each in plan.findings()]
    specs = plan.all_recordings()
    try:
        recordings.by_log_name(specs)
    except MbrError as error:
        findings.append(("log_names", str(error)))
    for split in ("train", "validation", "test"):
        of_split = [truth[spec.name] for spec in specs if spec.split == split]
        for k, behaviour in enumerate(plan.behaviours):
            marks = np.concatenate([part[:, k] for part in of_split]) if of_split else np.zeros(0, np.int8)
            findings += _class_findings(split, behaviour.name, marks) if of_split else []
    problems = (Problem(plan.problems.of(kind), "", kind, text) for kind, text in findings)
    return [problem for problem in problems if problem.severity != "ignore"]


def _class_findings(split: str, behaviour: str, marks: NDArray[np.int8]) -> list[tuple[ProblemKind, str]]:
    """What training needs of one behaviour in all recordings of a split: frames with it, and frames without."""
    labelled = marks[marks != UNKNOWN]
    if not np.any(labelled == 1):
        kind: ProblemKind = "empty_behaviour" if split == "train" else "empty_split"
        return [(kind, f"{behaviour} is shown in no {split} recording. Add one, or check the columns of the labels.")]
    if np.all(labelled == 1):
        text = f"{behaviour} is shown in every labelled frame for {split}: one class only. Label frames without it too."
        return [("one_class", text)]
    return []


def problem_lines(problems: Sequence[Problem]) -> list[str]:
    """One line of text for each problem, errors first; the recordings that share it stand together."""
    shared: dict[tuple[str, str, str], list[str]] = {}
    for problem in sorted(problems, key=lambda problem: problem.severity):
        shared.setdefault((problem.severity, problem.kind, problem.text), []).append(problem.recording)
    return [
        f"{severity} ({kind}): {_subject([name for name in names if name])}{text}"
        for (severity, kind, text), names in shared.items()
    ]


def _subject(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{', '.join(names[:_NAMES_SHOWN])}{more}: " if names else ""


def bout_lengths_s(parts: Sequence[Marks], behaviour: int) -> NDArray[np.float64]:
    """Lengths of the bouts of the k-th behaviour in seconds; a bout ends where labels end."""
    lengths = [np.diff(runs(part[:, behaviour]), axis=1).ravel() / RATE_FPS for part in parts]
    return np.concatenate(lengths) if lengths else np.zeros(0)


def _lines(specs: Sequence[RecordingSpec], truth: Truth) -> Iterator[Line]:
    clips: dict[tuple[str, str | None], list[RecordingSpec]] = {}
    for spec in specs:
        if isinstance(spec.source, Clip):
            clips.setdefault((spec.group, spec.split), []).append(spec)
        else:
            yield Line(spec.name, spec, (truth[spec.name],))
    for (group, _), members in sorted(clips.items()):
        yield Line(f"{group}: {len(members)} clips", members[0], tuple(truth[spec.name] for spec in members))


def _table(plan: Dataset, lines: Sequence[Line]) -> Table:
    table = Table(title=f"{plan.name}: truth at {RATE_FPS} fps", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("recording", overflow="fold", min_width=20)
    for column in ("split", "behaviour"):
        table.add_column(column, no_wrap=True)
    for column in ("labelled", "shown", "bouts", "bout length"):
        table.add_column(column, justify="right", no_wrap=True)
    table.caption = (
        "In seconds. shown: share of the labelled time. bout length: 10 %, 50 % and 90 % of bouts are shorter."
    )
    conditions = len({line.spec.condition for line in lines})
    for line in lines:
        cells = [_statistics(line, k) for k in range(len(plan.behaviours))]
        spec = line.spec
        about = ([spec.group] if not line.name.startswith(spec.group) else []) + (
            [spec.condition] if conditions > 1 else []
        )
        table.add_row(
            escape("\n".join([line.name, *([", ".join(about)] if about else [])])),
            spec.split,
            "\n".join(behaviour.name for behaviour in plan.behaviours),
            *("\n".join(column) for column in zip(*cells, strict=True)),
        )
    return table


def _statistics(line: Line, behaviour: int) -> tuple[str, str, str, str]:
    """Labelled seconds, share shown, number of bouts and quantiles of their length, as text."""
    marks = np.concatenate([part[:, behaviour] for part in line.parts])
    labelled = marks[marks != UNKNOWN]
    lengths = bout_lengths_s(line.parts, behaviour)
    quantiles = np.quantile(lengths, (0.1, 0.5, 0.9)).tolist() if len(lengths) else []
    share = f"{np.mean(labelled == 1):.1%}" if len(labelled) else "-"
    return (
        f"{len(labelled) / RATE_FPS:.1f}",
        share,
        str(len(lengths)),
        "  ".join(f"{length:.1f}" for length in quantiles) or "-",
    )


def _plot(plan: Dataset, lines: Sequence[Line], out: Path) -> None:
    """Ethograms of the recordings, some on a page, and the bout lengths; clips are too short for either."""
    try:
        from mbr_live.datasets.plots import plot_bout_lengths, plot_ethograms
    except ModuleNotFoundError as error:
        raise MbrError(f"plots: {error.name} is not installed. Run: pip install 'mbr-live[train]'") from error
    shown = [line for line in lines if not isinstance(line.spec.source, Clip) and len(line.parts[0])]
    names = [behaviour.name for behaviour in plan.behaviours]
    pages = range(0, len(shown), _RECORDINGS_PER_PICTURE)
    for page, first in enumerate(tracked(pages, "drawing", len(pages)), start=1):
        of_page = {
            f"{line.name} ({line.spec.split})": line.parts[0] for line in shown[first : first + _RECORDINGS_PER_PICTURE]
        }
        title = f"{plan.name}: truth" + (f", page {page} of {len(pages)}" if len(pages) > 1 else "")
        plot_ethograms(out / f"ethograms-{page}.png", names, of_page, title)
    if shown:
        parts = [line.parts[0] for line in shown]
        lengths = {name: bout_lengths_s(parts, k) for k, name in enumerate(names)}
        plot_bout_lengths(out / "bout-lengths.png", lengths)
