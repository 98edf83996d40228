"""Closed segments of label logs as Parquet, for analysis: the same rows, beside the CSV, which stays the truth.

A segment is read back and written as text again before its Parquet file gets its name: it says what the CSV says, to
the byte.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mbr_live.label_segments import SEGMENT_SUFFIX, first_frame_of
from mbr_live.types import MbrError

PARQUET_SUFFIX = ".parquet"
_WHOLE = ("frame", "source_frame", "time_ns")


def convert_folder(folder: Path) -> Iterator[Path]:
    """Every closed segment of a folder of logs that has no Parquet yet; yields the files that were made."""
    for segment in sorted(
        folder.glob(f"*.labels/*{SEGMENT_SUFFIX}"), key=lambda path: (path.parent, first_frame_of(path))
    ):
        made = segment.with_suffix(PARQUET_SUFFIX)
        if not made.exists():
            convert(segment, made)
            yield made


def convert(segment: Path, made: Path) -> None:
    """Write one segment as Parquet. MbrError, and nothing is left, where it would not say the same."""
    text = segment.read_text()
    part = made.with_name(made.name + ".part")
    try:
        pq.write_table(table_of(text), part, compression="zstd")
        if text_of(pq.read_table(part)) != text:
            raise MbrError(f"{segment}: as Parquet it would not say the same. Was the file edited? The CSV stays.")
        part.replace(made)
    finally:
        part.unlink(missing_ok=True)


def table_of(text: str) -> pa.Table:
    """A label log as a table: whole numbers are int64, labels int8, the status a dictionary, all else float64. Null is
    what is not known.
    """
    header, *rows = csv.reader(io.StringIO(text))
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(header)
    labels = header[6 + (len(header) - 6) // 2 :]
    arrays = {}
    for name, column in zip(header, columns, strict=True):
        if name == "status":
            arrays[name] = pa.array(column, pa.string()).dictionary_encode()
        elif name in _WHOLE:
            arrays[name] = pa.array([int(value) for value in column], pa.int64())
        elif name in labels:
            arrays[name] = pa.array([int(value) for value in column], pa.int8())
        else:
            arrays[name] = pa.array([float(value) if value else None for value in column], pa.float64())
    return pa.table(arrays)


def text_of(table: pa.Table) -> str:
    """The label log that a table was made from."""
    columns = []
    for name in table.column_names:
        digits = ".1f" if name in ("x_px", "y_px") else ".6f" if pa.types.is_floating(table[name].type) else ""
        columns.append(["" if value is None else format(value, digits) for value in table[name].to_pylist()])
    lines = [",".join(table.column_names), *(",".join(row) for row in zip(*columns, strict=True))]
    return "\n".join(lines) + "\n"
