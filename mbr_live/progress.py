"""How far work is: bars in a terminal, and a line now and then where the output goes to a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

T = TypeVar("T")

Show = Callable[[str, int, int | None], None]
"""Called with the name of a stage, what is done of it, and how much there will be where that is known."""

LINE_EVERY_S = 30.0


@contextmanager
def bars(console: Console | None = None, *, over: str | None = None) -> Iterator[Show]:
    """Draws what it is told of, on the error output by default.

    Below the bar of a stage `over` all others, theirs go when they are done, so that those at work are in sight.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as drawn:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = drawn.add_task(stage, total=total)
            drawn.update(tasks[stage], completed=done, total=total)
            if over is not None and stage != over and total is not None and done >= total:
                drawn.remove_task(tasks.pop(stage))

        yield show


def tracked(items: Iterable[T], stage: str, total: int | None = None) -> Iterator[T]:
    """The items, with a bar of how many were taken."""
    with bars() as show:
        for done, item in enumerate(items, start=1):
            yield item
            show(stage, done, total)


def _lines(console: Console) -> Show:
    """A line for a stage that goes on, at most every LINE_EVERY_S; none for one that is soon over."""
    said_s: dict[str, float] = {}

    def show(stage: str, done: int, total: int | None) -> None:
        now_s = time.monotonic()
        if now_s - said_s.setdefault(stage, now_s) >= LINE_EVERY_S:
            said_s[stage] = now_s
            console.print(f"{stage}: {done}" + (f" of {total}" if total else ""), markup=False, highlight=False)

    return show
