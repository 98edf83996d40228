"""Progress bars of programs that train: one for each stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from mbr_live.datasets import dataset


@contextmanager
def bars(console: Console, *, over: str | None = None) -> Iterator[dataset.Progress]:
    """Draws what it is told of. Below the bar of a stage `over` all others, theirs go when they are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as drawn:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = drawn.add_task(stage, total=total)
            drawn.update(tasks[stage], completed=done)
            if over is not None and done >= total and stage != over:
                drawn.remove_task(tasks.pop(stage))

        yield show
