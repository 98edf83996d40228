"""Label files that list bouts: BORIS events and JAABA .mat files."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbr_live.annotation.marks import Finding, Marks
from mbr_live.annotation.tables import (
    LARGEST,
    TOLERANCE_NS,
    LabelTable,
    TimesNs,
    header_of,
    outside,
    plain,
    rows_of,
)
from mbr_live.types import UNKNOWN, MbrError

_HDF5 = 2  # version of a MATLAB file that is not of MATLAB's own format
_NO_BEHAVIOUR = "none"  # JAABA: the name of a bout that shows nothing
_WHEN = ("time", "start (s)")  # BORIS: the columns of times
_FIRST_PLAYER = re.compile(r"^player #1:|(\||\bplayer #[2-9]).*")  # BORIS: what is not of it in the column of sources
_NO_MEDIA = ("", "na", "live")  # BORIS: what stands for the video of an observation without one

Row = Mapping[str, str]
"""Cells of a BORIS export by the plain name of their column."""


@dataclass(frozen=True, slots=True)
class _Bout:
    """A stretch of time with one mark; a point event has no length."""

    code: str
    start_ns: int
    stop_ns: int
    mark: int = 1


def read_boris_events(path: Path, times_ns: TimesNs, videos: Sequence[str], wanted: Collection[str]) -> LabelTable:
    """BORIS tabular events, current and older: START, STOP and POINT rows.

    `videos` are the stems of the recording's files; faults are reported of `wanted` behaviours only.
    """
    needed = ("time", "behavior")
    _, header = header_of(path, needed)
    kind = next((name for name in ("behavior type", "status") if name in map(plain, header)), None)
    if kind is None:
        raise MbrError(f"{path}: found no column 'Behavior type' or 'Status'. Export tabular events from BORIS again.")
    rows = sorted(_boris_rows(path, needed, videos), key=lambda row: _time_ns(path, row, "time"))
    by_key: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        modifiers = tuple(text for name, text in row.items() if name.startswith("modifier"))
        by_key[row["behavior"], row.get("subject", ""), *modifiers].append(row)
    bouts: list[_Bout] = []
    findings: list[Finding] = []
    for events in by_key.values():
        paired, unpaired = _paired(path, events, kind, int(times_ns[-1]))
        bouts += paired
        findings += unpaired if plain(events[0]["behavior"]) in wanted else []
    return _table(path, bouts, times_ns, findings, wanted)


def read_boris_bouts(path: Path, times_ns: TimesNs, videos: Sequence[str], wanted: Collection[str]) -> LabelTable:
    """BORIS aggregated events: a row with start and stop per bout."""
    bouts = []
    for row in _boris_rows(path, ("behavior", "start (s)", "stop (s)"), videos):
        start_ns, stop_ns = (_time_ns(path, row, column) for column in ("start (s)", "stop (s)"))
        if stop_ns < start_ns:
            raise MbrError(
                f"{path}: a bout of {row['behavior']} stops before it starts, at {start_ns / 1e9} s. Mend it."
            )
        bouts.append(_Bout(row["behavior"], start_ns, stop_ns))
    return _table(path, bouts, times_ns, [], wanted)


def read_jaaba_scores(path: Path) -> LabelTable:
    """JAABA scores: bouts of one behaviour, frames counted from 1, the end one past; NaN scores are not labelled."""
    content = load_mat(path)
    scores = _field(path, content, "allScores").ravel()[0]
    values = _single(path, scores, "scores")
    marks = np.where(np.isnan(values.astype(np.float64)), UNKNOWN, 0).astype(np.int8)
    for start, stop in _jaaba_bouts(path, scores):
        if stop > len(marks):
            raise MbrError(
                f"{path}: a bout has t1 {stop + 1}, and there are scores of {len(marks)} frames. Score the recording "
                "again."
            )
        marks[start:stop] = 1
    return LabelTable((_text(_field(path, content, "behaviorName")),), marks[:, None], UNKNOWN, counts_frames=True)


def read_jaaba_labels(path: Path) -> LabelTable:
    """JAABA labels: bouts of a behaviour and of none; what lies between them is not labelled."""
    content = load_mat(path)
    labels = content["labels"].ravel() if "labels" in content else [content]
    if len(labels) != 1:
        raise MbrError(f"{path}: the labels are of {len(labels)} experiments. Expected one. Save each for itself.")
    bouts = _jaaba_bouts(path, labels[0])
    names = [_text(name) for name in _single(path, labels[0], "names")]
    if len(names) != len(bouts):
        raise MbrError(f"{path}: names has {len(names)} entries, t0s has {len(bouts)}. Save the labels again.")
    shown = sorted({re.sub(r"^no_", "", name, flags=re.IGNORECASE) for name in names if plain(name) != _NO_BEHAVIOUR})
    if not shown and "behaviorName" in content:
        shown = [_text(content["behaviorName"])]
    marks = np.full((max((stop for _, stop in bouts), default=0), len(shown)), UNKNOWN, np.int8)
    for (start, stop), name in zip(bouts, names, strict=True):
        for place, behaviour in enumerate(shown):
            if plain(name) in (_NO_BEHAVIOUR, plain(f"no {behaviour}")):
                marks[start:stop, place] = 0
            elif name == behaviour:
                marks[start:stop, place] = 1
    return LabelTable(tuple(shown), marks, UNKNOWN)


def _jaaba_bouts(path: Path, record: Any) -> list[tuple[int, int]]:
    """First frame and frame after the last of every bout, counted from 0; JAABA counts t0s and t1s from 1."""
    starts, stops = (_single(path, record, name).astype(np.float64) for name in ("t0s", "t1s"))
    if len(starts) != len(stops):
        raise MbrError(
            f"{path}: t0s has {len(starts)} entries, t1s has {len(stops)}. Expected both ends of every bout. Save the "
            "file again."
        )
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        if not (start.is_integer() and stop.is_integer() and 1 <= start <= stop <= LARGEST):
            raise MbrError(
                f"{path}: a bout has t0 {start:g} and t1 {stop:g}. Expected frames counted from 1, t1 one past the "
                "end. Mend it, or save the file again."
            )
    return [(int(start) - 1, int(stop) - 1) for start, stop in zip(starts, stops, strict=True)]


def load_mat(path: Path) -> dict[str, Any]:
    """The variables of a MATLAB file."""
    try:
        from scipy.io.matlab import MatReadError, loadmat, matfile_version
    except ModuleNotFoundError as error:
        raise MbrError(f"{path}: to read .mat files, run: pip install 'mbr-live[train]'") from error
    try:
        if matfile_version(path)[0] == _HDF5:
            raise MbrError(f"{path}: this is MATLAB's format 7.3. In MATLAB, load it and save it with '-v7'.")
        content: dict[str, Any] = loadmat(path)
    except (OSError, ValueError, TypeError, MatReadError) as error:
        raise MbrError(f"{path}: this MATLAB file cannot be read ({error}). Copy or save it again.") from error
    return content


def _field(path: Path, record: Any, name: str) -> NDArray[Any]:
    """A field of a MATLAB structure, or a variable of the file."""
    try:
        field: NDArray[Any] = record[name]
    except (KeyError, ValueError, IndexError) as error:
        raise MbrError(f"{path}: found no {name} in it. Expected scores or labels as JAABA saves them.") from error
    return field


def _single(path: Path, record: Any, name: str) -> NDArray[Any]:
    """What the cell array [1, animals] of that name holds for the only animal, flat."""
    cells = _field(path, record, name)
    if cells.dtype != object:
        return cells.ravel()
    if cells.size != 1:
        raise MbrError(f"{path}: found {cells.size} animals, expected one. Save the labels of one animal.")
    return np.asarray(cells.ravel()[0]).ravel()


def _text(value: Any) -> str:
    while isinstance(value, np.ndarray) and value.size:
        value = value.ravel()[0]
    return str(value)


def _boris_rows(path: Path, needed: Sequence[str], videos: Sequence[str]) -> list[Row]:
    """The rows of one recording: those that name one of its videos, or all of one observation that names none."""
    number, header = header_of(path, needed)
    names = [plain(name) for name in header]
    rows: list[Row] = [
        dict(zip_longest(names, cells[: len(names)], fillvalue=""))
        for line, cells in enumerate(rows_of(path))
        if line > number and any(cells)
    ]
    named = [_media(row) for row in rows]
    stems = set(map(plain, videos))
    of_video = [row for row, found in zip(rows, named, strict=True) if stems & set(map(plain, found))]
    observations = {row.get("observation id", "") for row in rows}
    if of_video:
        for observation in {row.get("observation id", "") for row in of_video}:
            of_observation = [row for row in rows if row.get("observation id", "") == observation]
            _check_times_begin(path, of_observation, videos, next(name for name in _WHEN if name in needed))
    if of_video or (len(observations) == 1 and not any(named)):
        _check_no_offset(path, of_video or rows)
        return of_video or rows
    found = sorted({name for each in named for name in each} or observations)[:5]
    raise MbrError(
        f"{path}: found {'events of ' + ', '.join(found) if found else 'no event'}, expected events of "
        f"{', '.join(videos)}. Export that observation; if it has none, give a table of zeros with a row per frame."
    )


def _check_no_offset(path: Path, rows: Sequence[Row]) -> None:
    offset = next((row["time offset (s)"] for row in rows if row.get("time offset (s)", "").strip(" 0.")), None)
    if offset:
        raise MbrError(
            f"{path}: the observation has a time offset of {offset} s. Set it to 0 in BORIS and export again."
        )


def _check_times_begin(path: Path, rows: Sequence[Row], videos: Sequence[str], when: str) -> None:
    """MbrError where an observation begins with another video than the recording: its times count through all of its
    videos. Which these are it says itself or, in older exports, its events do as far as there are some.
    """
    said = next((stems for row in rows if (stems := _stems(_FIRST_PLAYER.sub("", row.get("source", ""))))), [])
    played = said or [stem for row in sorted(rows, key=lambda row: _time_ns(path, row, when)) for stem in _media(row)]
    found = list(dict.fromkeys(map(plain, played)))
    expected = [name for name in map(plain, videos) if said or name in found]
    if found[: len(expected)] != expected[: len(found)]:
        raise MbrError(
            f"{path}: the observation goes through {', '.join(dict.fromkeys(played))}, and its times count from the "
            f"start of {played[0]}; the recording is {', '.join(videos)}. Make all of these videos, in that order, one "
            "recording (video = [...]), or observe each of them by itself."
        )


def _media(row: Row) -> list[str]:
    """The names of the video files that an event is of, without their endings; none of a live observation."""
    return _stems(row.get("media file name") or row.get("media file path") or "")


def _stems(files: str) -> list[str]:
    stems = [re.split(r"[/\\:]", file.strip())[-1].rsplit(".", 1)[0] for file in files.split(";")]
    return [stem for stem in stems if plain(stem) not in _NO_MEDIA]


def _time_ns(path: Path, row: Row, column: str) -> int:
    try:
        seconds = float(row[column])
    except ValueError:
        seconds = float("inf")
    if not abs(seconds) <= LARGEST:
        raise MbrError(
            f"{path}: {row[column]!r} in column {column!r} is no time. Expected seconds; decimals have a point."
        )
    return round(seconds * 1e9)


def _paired(path: Path, events: Sequence[Row], kind: str, end_ns: int) -> tuple[list[_Bout], list[Finding]]:
    """Bouts of the events of one behaviour in order; where a start or stop is missing, nothing is known."""
    bouts: list[_Bout] = []
    findings: list[Finding] = []
    opened: int | None = None
    before_ns = 0
    for row in events:
        time_ns, status, code = _time_ns(path, row, "time"), row[kind].strip().upper(), row["behavior"]
        if status == "POINT":
            bouts.append(_Bout(code, time_ns, time_ns))
            continue
        if status not in ("START", "STOP"):
            raise MbrError(f"{path}: {row[kind]!r} in column {kind!r}. Expected START, STOP or POINT. Export it again.")
        if (status == "START") == (opened is None):
            bouts += [_Bout(code, opened, time_ns)] if opened is not None else []
        else:
            missing = "STOP" if status == "START" else "START"
            findings.append(Finding("unpaired", f"{path.name}: {code} has no {missing} before {time_ns / 1e9:.3f} s"))
            bouts.append(_Bout(code, before_ns, time_ns, UNKNOWN))
        opened = time_ns if status == "START" else None
        before_ns = time_ns
    if opened is not None:
        findings.append(Finding("unpaired", f"{path.name}: {code} has no STOP after {opened / 1e9:.3f} s"))
        bouts.append(_Bout(code, opened, end_ns + 2 * TOLERANCE_NS, UNKNOWN))
    return bouts, findings


def _table(
    path: Path,
    bouts: Sequence[_Bout],
    times_ns: TimesNs,
    findings: Sequence[Finding],
    wanted: Collection[str],
) -> LabelTable:
    """Marks of every source frame: a frame belongs to a bout from its onset on, until before its offset.

    A bout that is shorter than a frame has the frame at its onset, or the next one.
    """
    names = tuple(sorted({bout.code for bout in bouts}))
    marks: Marks = np.zeros((len(times_ns), len(names)), np.int8)
    for bout in sorted(bouts, key=lambda bout: bout.mark):
        first, stop = np.searchsorted(times_ns, np.array((bout.start_ns, bout.stop_ns)) - TOLERANCE_NS)
        if bout.start_ns >= times_ns[0] - TOLERANCE_NS:
            stop = max(stop, first + 1)
        marks[first:stop, names.index(bout.code)] = bout.mark
    found = list(findings)
    for name in (name for name in names if plain(name) in wanted):
        of_name = sorted(
            (bout for bout in bouts if bout.code == name and bout.mark == 1), key=lambda bout: bout.start_ns
        )
        overlaps = sum(later.start_ns < earlier.stop_ns for earlier, later in pairwise(of_name))
        points = sum(bout.start_ns == bout.stop_ns for bout in of_name)
        if overlaps:
            found.append(Finding("overlap", f"{path.name}: {overlaps} bouts of {name} begin before the last one ends"))
        if points:
            text = f"{path.name}: {points} events of {name} are points: one source frame each, which 10 fps may miss"
            found.append(Finding("point_events", text))
    at_ns = np.array(sorted(time_ns for bout in bouts for time_ns in (bout.start_ns, bout.stop_ns)), np.int64)
    return LabelTable(names, marks, 0, findings=(*found, *outside(path, at_ns, times_ns)))
