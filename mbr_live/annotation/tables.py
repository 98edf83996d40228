"""Label files that are tables: a row per source frame, per step of time, or per change.

Axes: N source frames, C columns that are behaviours.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mbr_live.annotation.marks import Finding, Marks
from mbr_live.types import UNKNOWN, MbrError

TimesNs = NDArray[np.int64]
"""Presentation times of all N source frames of a video since its first frame, in ns."""

TOLERANCE_NS = 1_000_000  # labelling programs write times with three decimals
LARGEST = 1e9  # of a frame's number and a time in s; beyond it is no recording, nor can all be counted in ns
_LATE_NS = 500_000_000  # a time this far from the video is of another one
_NOT_A_NUMBER = ("nan", "na", "n/a", "none", "null")
_WORDS = {"": 0.0, "true": 1.0, "false": 0.0}
_COUNTS = ("frame", "frames", "frame number", "frame index")  # what a column of frame numbers is called
_HEADER_ROWS = 60  # a preamble before the header is not longer than this


@dataclass(frozen=True, slots=True)
class LabelTable:
    """What one label file says, before its columns are taken for the behaviours of a dataset."""

    names: tuple[str, ...]  # [C] as in the file
    marks: Marks  # [N, C]
    absent: int | None  # mark of a behaviour that is not named here; None: each has to be a column of its own
    foreign_columns: bool = False  # other columns of the file can be anything
    counts_frames: bool = False  # the number of rows is that of the video's frames
    judged: NDArray[np.bool_] | None = None  # [N] somebody looked at the frame; None: at every one
    findings: tuple[Finding, ...] = ()


def plain(name: str) -> str:
    """A column name as it is compared: small letters, and one blank for what parts its words."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def rows_of(path: Path) -> Iterator[list[str]]:
    """The rows of a .csv or .tsv file; what parts its columns is found out."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = _delimiter(list(islice(file, _HEADER_ROWS)))
            file.seek(0)
            yield from csv.reader(file, delimiter=delimiter)
    except OSError as error:
        raise MbrError(f"{path}: the labels cannot be read ({error.strerror}). Check the path.") from error
    except UnicodeDecodeError as error:
        raise MbrError(f"{path}: this is not a text file in UTF-8. Save it as CSV (UTF-8).") from error
    except csv.Error as error:
        raise MbrError(f"{path}: this is not a table ({error}). Save it as CSV (UTF-8).") from error


def header_of(path: Path, needed: Collection[str] = ()) -> tuple[int, list[str]]:
    """Number and cells of the first row that has all of the `needed` column names; without any, of the first row."""
    for number, row in enumerate(islice(rows_of(path), _HEADER_ROWS)):
        if row and set(needed) <= set(map(plain, row)):
            return number, row
    wanted = f" with the columns {', '.join(needed)}" if needed else ""
    raise MbrError(f"{path}: found no header{wanted}. Expected it in the first {_HEADER_ROWS} rows. Export it again.")


def read_frames(path: Path, wanted: Collection[str]) -> LabelTable:
    """A row per source frame and a 0/1 column per behaviour; blanks are 0, columns that are not `wanted` nothing."""
    header = header_of(path)[1]
    _check_every_frame(path, header)
    places = [place for place, name in enumerate(header) if plain(name) in wanted]
    marks, findings = _marks(path, header, places)
    names = tuple(header[place] for place in places)
    return LabelTable(names, marks, None, foreign_columns=True, counts_frames=True, findings=findings)


def read_deepethogram(path: Path) -> LabelTable:
    """DeepEthogram: an unnamed count of frames, `background`, then behaviours; -1 is not labelled."""
    header = header_of(path, ("background",))[1]
    _check_every_frame(path, header)
    places = [place for place, name in enumerate(header) if plain(name) not in ("", "background")]
    marks, findings = _marks(path, header, places)
    names = tuple(header[place] for place in places)
    return LabelTable(names, marks, None, counts_frames=True, findings=findings)


def _check_every_frame(path: Path, header: Sequence[str]) -> None:
    """MbrError where a table that numbers its frames leaves some out: the n-th row is taken for the n-th source frame.

    Numbers may begin with 0 or 1, and do so again where tables were put on end.
    """
    places = [place for place, name in enumerate(header) if plain(name) in _COUNTS or (place == 0 and not plain(name))]
    for place, texts in zip(places, _columns(path, header, places) if places else (), strict=True):
        if not all(re.fullmatch(r"\d+(\.0*)?", text.strip()) for text in texts):
            continue  # no numbers of frames
        numbers = np.array(texts, np.float64)
        wrong = np.flatnonzero((np.diff(numbers, prepend=-1.0) != 1.0) & (numbers > 1.0))
        if len(wrong):
            raise MbrError(
                f"{path}: row {wrong[0] + 1} below the header is of frame {numbers[wrong[0]]:.0f} (column "
                f"{header[place]!r}). Expected a row for every source frame. Add the missing rows, with -1, or call "
                "that column source_frame and count from 0."
            )


def read_sparse(path: Path, wanted: Collection[str], frames: int) -> LabelTable:
    """Rows of `source_frame` and behaviours; a row holds until the next, the last one as long as the one before."""
    header = header_of(path, ("source frame",))[1]
    places = [place for place, name in enumerate(header) if plain(name) in wanted]
    first = [plain(name) for name in header].index("source frame")
    numbers = _numbers(path, header[first], _columns(path, header, [first])[0])
    if np.any(numbers != np.round(numbers)) or np.any(np.diff(numbers) <= 0) or numbers[0] < 0:
        raise MbrError(f"{path}: source_frame is not a rising count of frames from 0 on. Sort the rows, each once.")
    starts = numbers.astype(np.int64)
    held = int(starts[-1] - starts[-2]) if len(starts) > 1 else 1
    marks, findings = _marks(path, header, places)
    if starts[-1] >= frames:
        text = f"{path.name} has a row for source frame {starts[-1]}, the video {frames} frames"
        findings = (*findings, Finding("too_many_frames", text))
    grid = np.arange(min(int(starts[-1]) + held, frames))
    names = tuple(header[place] for place in places)
    return LabelTable(
        names,
        _held(marks, starts, grid),
        None,
        foreign_columns=True,
        findings=findings,
        judged=None if _leaves_none_out(starts) else np.isin(grid, starts),
    )


def _leaves_none_out(starts: NDArray[np.int64]) -> bool:
    """Whether somebody judged frame by frame, not stills."""
    return len(starts) > 1 and bool(np.all(np.diff(starts) == 1))


def read_binary_table(path: Path, times_ns: TimesNs) -> LabelTable:
    """BORIS binary table: `time` in seconds, then a 0/1 column per behaviour; a row holds until the next."""
    header = header_of(path, ("time",))[1]
    first = [plain(name) for name in header].index("time")
    places = [place for place in range(len(header)) if place != first and header[place].strip()]
    seconds = _numbers(path, header[first], _columns(path, header, [first])[0])
    if np.any(np.isnan(seconds)) or np.any(np.diff(seconds) <= 0):
        raise MbrError(f"{path}: the times do not rise from row to row. Export the binary table of one observation.")
    starts = np.round(seconds * 1e9).astype(np.int64) - TOLERANCE_NS
    marks, findings = _marks(path, header, places)
    step_ns = int(starts[-1] - starts[-2]) if len(starts) > 1 else 0
    held = _held(marks, starts, times_ns)
    held[times_ns >= starts[-1] + step_ns] = UNKNOWN
    findings = (*findings, *outside(path, starts[[0, -1]], times_ns))
    return LabelTable(tuple(header[place] for place in places), held, None, findings=findings)


def outside(path: Path, at_ns: NDArray[np.int64], times_ns: TimesNs) -> tuple[Finding, ...]:
    """Whether one of the times `at_ns` lies far from the video."""
    far = at_ns[(at_ns < times_ns[0] - _LATE_NS) | (at_ns > times_ns[-1] + _LATE_NS)]
    if not len(far):
        return ()
    text = f"{path.name} says something of {far[-1] / 1e9:.1f} s, the video ends at {times_ns[-1] / 1e9:.1f} s"
    return (Finding("too_many_frames", text),)


def _held(marks: Marks, starts: NDArray[np.int64], grid: NDArray[np.int64]) -> Marks:
    """Marks [N, C] at the places of `grid`, of rows that hold from their start until the next one's."""
    if not marks.shape[1]:
        return np.zeros((len(grid), 0), np.int8)
    row = np.searchsorted(starts, grid, side="right") - 1
    held: Marks = marks[np.maximum(row, 0)]
    held[row < 0] = UNKNOWN
    return held


def _delimiter(lines: Sequence[str]) -> str:
    """What parts most lines into the same number of cells; commas of decimals and of texts are in fewer."""

    def alike(mark: str) -> tuple[int, int]:
        cells = Counter(len(row) for row in csv.reader(lines, delimiter=mark) if len(row) > 1)
        return max(((rows, width) for width, rows in cells.items()), default=(0, 0))

    return max(",;\t", key=alike)


def _columns(path: Path, header: Sequence[str], places: Sequence[int]) -> list[list[str]]:
    """The texts below the header in the columns at `places`; only they are kept, since some files have hundreds."""
    columns: list[list[str]] = [[] for _ in places]
    rows = rows_of(path)
    for row in rows:
        if row == list(header):
            break
    for row in rows:
        if not row and len(header) > 1:
            continue  # an empty line; in a table of one column it is a blank
        for column, place in zip(columns, places, strict=True):
            column.append(row[place] if place < len(row) else "")
    if places and not columns[0]:
        raise MbrError(f"{path}: there is no row below the header. Export the labels again.")
    return columns


def _marks(path: Path, header: Sequence[str], places: Sequence[int]) -> tuple[Marks, tuple[Finding, ...]]:
    if not places:
        return np.zeros((0, 0), np.int8), ()
    columns = [
        _column(path, header[place], texts) for place, texts in zip(places, _columns(path, header, places), strict=True)
    ]
    return np.column_stack([marks for marks, _ in columns]), tuple(found for _, found in columns if found)


def _column(path: Path, name: str, texts: Sequence[str]) -> tuple[NDArray[np.int8], Finding | None]:
    values = _numbers(path, name, texts)
    missing = np.isnan(values)
    wrong = np.flatnonzero(~missing & ~np.isin(values, (0.0, 1.0, -1.0)))
    if len(wrong):
        raise MbrError(
            f"{path}: column {name!r} has {texts[wrong[0]]!r} in row {wrong[0] + 1} below the header. "
            "Expected 1, 0, a blank (0) or -1 (not labelled)."
        )
    found = Finding(
        "nan_values", f"{path.name}: column {name!r} has NaN in {missing.sum()} rows; they are not labelled"
    )
    return np.where(missing, UNKNOWN, values).astype(np.int8), found if missing.any() else None


def _numbers(path: Path, name: str, texts: Sequence[str]) -> NDArray[np.float64]:
    distinct, places = np.unique(np.array(texts, dtype=np.str_), return_inverse=True)
    return np.array([_number(path, name, str(text)) for text in distinct])[places]


def _number(path: Path, name: str, text: str) -> float:
    word = text.strip().casefold()
    if word in _NOT_A_NUMBER:
        return float("nan")
    try:
        number = _WORDS[word] if word in _WORDS else float(word)
    except ValueError:
        number = float("inf")
    if not abs(number) <= LARGEST:
        raise MbrError(
            f"{path}: column {name!r} has {text!r}. Expected a number; decimals have a point. "
            "Mend it or name its format."
        )
    return number
