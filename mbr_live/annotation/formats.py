"""Reads the label files that labs have, whatever program wrote them, as marks of every source frame.

Since every source frame has its mark, labels of a 30 fps video are reduced to 10 fps by the sampler that chooses the
frames, and by nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mbr_live.annotation.events import (
    load_mat,
    read_boris_bouts,
    read_boris_events,
    read_jaaba_labels,
    read_jaaba_scores,
)
from mbr_live.annotation.marks import Annotations, Finding, Marks
from mbr_live.annotation.tables import (
    LabelTable,
    TimesNs,
    header_of,
    plain,
    read_binary_table,
    read_deepethogram,
    read_frames,
    read_sparse,
)
from mbr_live.types import UNKNOWN, MbrError

Format = Literal[
    "auto",
    "frames",
    "sparse",
    "boris",
    "boris_aggregated",
    "boris_binary",
    "deepethogram",
    "simba",
    "jaaba_scores",
    "jaaba_labels",
]

# Names of one and the same thing, as `plain` writes them. mig and paret are Catalan: middle and wall.
ALIASES = (
    ("grooming", "groom", "g"),
    ("rearing", "rear", "r"),
    ("rearing mid", "mid rearing", "rear mid", "rearing mig", "mr"),
    ("rearing wall", "wall rearing", "rear wall", "rearing paret", "wr"),
)


def read_annotations(
    paths: Sequence[Path],
    format_: Format,
    columns: Mapping[str, Sequence[str]],
    times_ns: TimesNs,
    videos: Sequence[str],
) -> tuple[Annotations, tuple[Finding, ...]]:
    """What the label files of one recording say, and what a person should know about them.

    `columns` names the columns or codes that count as each behaviour, `times_ns` the presentation times of all source
    frames, `videos` the stems of the video files. Nothing is raised for a label file that is wrong: that is a finding.
    """
    tables: list[LabelTable] = []
    readable: list[Path] = []
    findings: list[Finding] = []
    spellings = {name: _spellings(name) for names in columns.values() for name in names}
    for path in paths:
        try:
            table = _read(path, format_, frozenset().union(*spellings.values()), times_ns, videos)
        except MbrError as error:
            findings.append(Finding("invalid_format", str(error)))
            continue
        tables.append(table)
        readable.append(path)
        findings += [*table.findings, *_count_findings(path, table, len(times_ns))]
    if not tables:
        return Annotations(tuple(columns), np.zeros((0, len(columns)), np.int8)), tuple(findings)
    findings += _laid_over(readable, tables, spellings)
    frames = max(len(table.marks) for table in tables)
    found = {name: _marks_of(tables, spelling, frames) for name, spelling in spellings.items()}
    for behaviour, names in columns.items():
        if missing := [name for name in names if found[name] is None]:
            findings.append(Finding("missing_column", _missing_column(readable, behaviour, missing)))
    marks = np.column_stack([_any_of([found[name] for name in names], frames) for names in columns.values()])
    findings += _unknown(tables, frozenset().union(*spellings.values()))
    return Annotations(tuple(columns), marks, _judged(tables, frames)), tuple(findings)


def _judged(tables: Sequence[LabelTable], frames: int) -> NDArray[np.bool_] | None:
    """Frames [N] that one of the tables judged; None where one of them judged every frame."""
    judged = [np.pad(table.judged, (0, frames - len(table.judged))) for table in tables if table.judged is not None]
    return np.logical_or.reduce(judged) if len(judged) == len(tables) else None


def recognised(path: Path, wanted: frozenset[str] = frozenset()) -> Format:
    """The format of a label file by its header; MbrError where it could be several, or none."""
    if path.suffix.lower() == ".mat":
        return "jaaba_scores" if "allScores" in load_mat(path) else "jaaba_labels"
    if _has_header(path, ("behavior", "start (s)", "stop (s)")):
        return "boris_aggregated"
    if any(_has_header(path, ("behavior", "time", kind)) for kind in ("behavior type", "status")):
        return "boris"
    header = [plain(name) for name in header_of(path)[1]]
    if "source frame" in header:
        return "sparse"
    if header[0] == "time":
        raise MbrError(
            f"{path}: a table that begins with 'time' can have a row per source frame or a row per step of time. "
            "Say which: format = 'frames', or format = 'boris_binary'."
        )
    if header[0] == "" and "background" in header:
        return "deepethogram"
    if wanted & set(header):
        return "frames"
    raise MbrError(
        f"{path}: its header ({', '.join(header[:8])}) is of no format that is known, nor names a behaviour. Give the "
        "behaviour its columns = [...], or the recording its format."
    )


def _has_header(path: Path, needed: Sequence[str]) -> bool:
    try:
        header_of(path, needed)
    except MbrError:
        return False
    return True


def _read(path: Path, format_: Format, wanted: frozenset[str], times_ns: TimesNs, videos: Sequence[str]) -> LabelTable:
    if not path.is_file():
        raise MbrError(f"{path}: there is no such label file. Check the path in the dataset file.")
    match recognised(path, wanted) if format_ == "auto" else format_:
        case "sparse":
            return read_sparse(path, wanted, len(times_ns))
        case "boris":
            return read_boris_events(path, times_ns, videos, wanted)
        case "boris_aggregated":
            return read_boris_bouts(path, times_ns, videos, wanted)
        case "boris_binary":
            return read_binary_table(path, times_ns)
        case "deepethogram":
            return read_deepethogram(path)
        case "jaaba_scores":
            return read_jaaba_scores(path)
        case "jaaba_labels":
            return read_jaaba_labels(path)
        case _:  # SimBA's table of targets is one of frames with many columns that are no behaviours
            return read_frames(path, wanted)


def _spellings(name: str) -> frozenset[str]:
    """All plain names that mean the same."""
    wanted = {plain(name)}
    return frozenset(wanted.union(*(aliases for aliases in ALIASES if wanted & set(aliases))))


def _marks_of(tables: Sequence[LabelTable], spelling: frozenset[str], frames: int) -> NDArray[np.int8] | None:
    """Marks [N] of one column or code; None where it is missing."""
    found = [
        _padded(table.marks[:, place], frames)
        for table in tables
        for place, name in enumerate(table.names)
        if plain(name) in spelling
    ]
    if found:
        return _any_of(found, frames)
    absent = [table.absent for table in tables]
    if 0 in absent:
        return _padded(np.zeros(len(tables[absent.index(0)].marks), np.int8), frames)
    return None if None in absent else np.full(frames, UNKNOWN, np.int8)


def _any_of(found: Sequence[NDArray[np.int8] | None], frames: int) -> NDArray[np.int8]:
    """Marks [N] of what is shown where one of the columns shows it; nothing is known of one that is missing."""
    columns: Marks = np.column_stack([np.full(frames, UNKNOWN, np.int8) if each is None else each for each in found])
    shown, unknown = (columns == 1).any(axis=1), (columns == UNKNOWN).any(axis=1)
    return np.where(shown, 1, np.where(unknown, UNKNOWN, 0)).astype(np.int8)


def _padded(marks: NDArray[np.int8], frames: int) -> NDArray[np.int8]:
    return np.pad(marks, (0, frames - len(marks)), constant_values=UNKNOWN)


def _count_findings(path: Path, table: LabelTable, frames: int) -> list[Finding]:
    """Whether a table fits its video; programs differ by a frame or two at the end."""
    rows, text = len(table.marks), f"{path.name} has labels of {len(table.marks)} frames, the video {frames} frames"
    if not table.names or abs(rows - frames) <= max(2, 0.002 * frames):
        return []
    if rows > frames:
        return [Finding("too_many_frames", f"{text}. Is it the label file of this video?")]
    if not table.counts_frames:
        return []
    return [
        Finding("too_few_frames", f"{text}; those without a row are not labelled. A row stands for a source frame.")
    ]


def _laid_over(
    paths: Sequence[Path], tables: Sequence[LabelTable], spellings: Mapping[str, frozenset[str]]
) -> Iterator[Finding]:
    """Several files that mark the same: often those of several videos, though each begins at the first frame of all."""
    for name, spelling in spellings.items():
        marking = [
            path.name for path, table in zip(paths, tables, strict=True) if spelling & set(map(plain, table.names))
        ]
        if len(marking) > 1:
            yield Finding(
                "invalid_format",
                f"{' and '.join(marking)} all mark {name!r} from the first frame of the recording on. Give one label "
                "file that goes on through all of its videos, or make each video a recording of its own.",
            )


def _missing_column(paths: Sequence[Path], behaviour: str, missing: Sequence[str]) -> str:
    header = [name for path in paths if path.suffix.lower() != ".mat" for name in header_of(path)[1] if name]
    known = [plain(name) for name in header]
    close = dict.fromkeys(match for name in missing for match in get_close_matches(plain(name), known, cutoff=0.5))
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    shown = ", ".join(map(repr, header[:8])) + (", ..." if len(header) > 8 else "")
    wanted = " nor ".join(map(repr, missing))
    return f"no column {wanted} for {behaviour}; the labels have {shown}.{hint} Set its columns = [...]"


def _unknown(tables: Sequence[LabelTable], wanted: frozenset[str]) -> list[Finding]:
    names = sorted({name for table in tables if not table.foreign_columns for name in table.names})
    unused = [name for name in names if plain(name) not in wanted]
    if not unused:
        return []
    return [Finding("unknown_behaviour", f"labels of {', '.join(unused)}, which is no behaviour of the dataset")]
