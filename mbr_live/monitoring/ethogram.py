"""The rolling ethogram as text: what is known of every tick, gathered into columns and drawn with block characters.

Two columns share one character cell. Columns are aligned to multiples of their span, so that the picture moves by
whole columns and never flickers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from mbr_live.types import RATE_FPS, Status

Marks = NDArray[np.uint8]
"""One Mark per behaviour and tick or column, uint8 [K, T]."""


class Mark(IntEnum):
    """What is known of one behaviour at one tick. Of the ticks of a column the largest is shown."""

    NOTHING = 0  # nobody said anything about this tick
    NO = 1
    UNKNOWN = 2
    WARMUP = 3
    GAP = 4
    LOST = 5
    BLIND = 6
    YES = 7  # a column shows a behaviour if it occurred at all


GLYPHS = {
    Mark.NOTHING: " ",
    Mark.NO: "▁",
    Mark.UNKNOWN: "?",
    Mark.WARMUP: "░",
    Mark.GAP: "×",
    Mark.LOST: "?",
    Mark.BLIND: "▒",
}
_YES = {(True, True): "▄", (True, False): "▖", (False, True): "▗"}
_BRAILLE_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # left and right, from the top down
_AXIS_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
_UNKNOWN_MARKS: dict[str, Mark] = {
    Status.WARMUP: Mark.WARMUP,
    Status.GAP: Mark.GAP,
    Status.LOST: Mark.LOST,
    Status.BLIND: Mark.BLIND,
}

Run = tuple[str, int]
"""Characters of one colour: the number of a behaviour, or -1 for what is no behaviour."""


def mark_of(label: int, status: str) -> Mark:
    """What a label (1, 0, else unknown) means, and if unknown, why."""
    if label == 1:
        return Mark.YES
    if label == 0:
        return Mark.NO
    return _UNKNOWN_MARKS.get(status, Mark.UNKNOWN)


class History:
    """The marks of the last ticks of one camera, in constant memory."""

    def __init__(self, behaviours: int, ticks: int) -> None:
        self._marks: Marks = np.zeros((behaviours, ticks), np.uint8)
        self.last: int | None = None  # newest tick, that of the last column

    def put(self, index: int, ticks: int, marks: Sequence[Mark]) -> None:
        """Keep `marks` [K] for `ticks` ticks from `index` on; what lies before the kept ticks is let go."""
        length, stop = self._marks.shape[1], index + ticks
        if ticks < 1:
            return
        new = stop - 1 - self.last if self.last is not None else length
        if new > 0:
            self._marks = np.roll(self._marks, -min(new, length), axis=1)
            self._marks[:, max(length - new, 0) :] = Mark.NOTHING
            self.last = stop - 1
        first = (stop - 1 if self.last is None else self.last) - length + 1
        if stop > first:
            self._marks[:, max(index - first, 0) : stop - first] = np.asarray(marks, np.uint8)[:, None]

    def columns(self, edge: int, count: int, span: int) -> Marks:
        """Marks [K, count] of columns of `span` ticks; the last one holds tick `edge`. All NOTHING without history."""
        if self.last is None:
            return np.zeros((len(self._marks), count), np.uint8)
        return gather(self._marks, self.last - self._marks.shape[1] + 1, edge, count, span)


def gather(marks: Marks, first: int, edge: int, count: int, span: int) -> Marks:
    """Columns [K, count] of `marks` [K, T], which begin at tick `first`; the last column holds tick `edge`.

    A column stands for the ticks from a multiple of `span` up to the next one, and shows the largest mark among them.
    """
    start = (edge // span - count + 1) * span
    wanted = np.zeros((len(marks), count * span), np.uint8)
    low, high = max(first, start), min(first + marks.shape[1], start + count * span)
    if low < high:
        wanted[:, low - start : high - start] = marks[:, low - first : high - first]
    columns: Marks = wanted.reshape(len(marks), count, span).max(axis=2)
    return columns


def strip(columns: Marks, behaviour: int) -> list[Run]:
    """One behaviour's columns [2 * cells] as quarter blocks on a base line, which leave a gap between two rows."""
    return _runs(_strip_cell(left, right, behaviour) for left, right in _pairs(columns))


def _strip_cell(left: int, right: int, behaviour: int) -> Run:
    yes = (left == Mark.YES, right == Mark.YES)
    return (_YES[yes], behaviour) if any(yes) else (GLYPHS[Mark(max(left, right))], -1)


def braille_strip(columns: Marks) -> list[Run]:
    """Up to four behaviours [K, 2 * cells] in one line of text, each at its own height; a fifth starts again."""
    return _runs(_braille_cell(columns[:, cell : cell + 2]) for cell in range(0, columns.shape[1], 2))


def _braille_cell(pair: Marks) -> Run:
    left, right = (np.flatnonzero(side == Mark.YES).tolist() for side in pair.T)
    if left or right:
        return braille_dots(left, right, len(pair)), min(left + right)
    return GLYPHS[Mark(int(pair.max(initial=0)))], -1


def braille_dots(left: Sequence[int], right: Sequence[int], behaviours: int) -> str:
    """One cell whose columns show these of all behaviours: half a cell high for two behaviours, else a quarter."""
    heights = ((0, 1), (2, 3)) if behaviours <= 2 else ((0,), (1,), (2,), (3,))
    dots = 0
    for side, shown in enumerate((left, right)):
        for behaviour in shown:
            for height in heights[behaviour % len(heights)]:
                dots |= _BRAILLE_DOTS[height][side]
    return chr(0x2800 + dots)


def _pairs(columns: Marks) -> list[list[int]]:
    pairs: list[list[int]] = columns.reshape(-1, 2).tolist()
    return pairs


def _runs(cells: Iterable[Run]) -> list[Run]:
    return [("".join(glyph for glyph, _ in run), colour) for colour, run in groupby(cells, key=lambda cell: cell[1])]


def bar(value: float, cells: int, behaviour: int) -> list[Run]:
    """`value` (0..1, clipped; 0 for NaN) as a bar in half cells on a base line; not empty above 0, full only at 1."""
    halves = 0
    if value > 0:
        halves = 2 * cells if value >= 1 else min(max(1, round(value * 2 * cells)), 2 * cells - 1)
    columns = np.full(2 * cells, Mark.NO, np.uint8)
    columns[:halves] = Mark.YES
    return strip(columns, behaviour)


def axis(cells: int, cell_s: float) -> str:
    """The time axis below a strip: a tick and minutes:seconds before now, as many as have room."""
    line = [" "] * cells
    step_s = next((step for step in _AXIS_STEPS_S if step / cell_s >= 10), _AXIS_STEPS_S[-1])
    for text, back_s in [
        ("now", 0),
        *((f"-{k * step_s // 60}:{k * step_s % 60:02}", k * step_s) for k in range(1, 50)),
    ]:
        at = cells - 1 - round(back_s / cell_s)
        if at < 0:
            break
        label = f"{text}╵" if back_s == 0 else f"╵{text}"
        start = at - len(text) if back_s == 0 else at
        if start >= 0 and not "".join(line[start : start + len(label) + 1]).strip():
            line[start : start + len(label)] = label
    return "".join(line)


def span_ticks(minutes: float, cells: int) -> int:
    """Ticks of one column when `cells` character cells are to hold `minutes`."""
    return max(1, -(-round(minutes * 60 * RATE_FPS) // (2 * cells)))
