"""Closed segments of label logs as Parquet, for analysis: the same rows, beside the CSV, which stays the truth.

A segment is read back and written as text again before its Parquet file gets its name: it says what the CSV says, to
the byte. All of it is done an hour at a time, so that a day of a camera takes no more memory.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import chain, islice, zip_longest
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mbr_live.sinks.label_segments import segments_in
from mbr_live.types import MbrError

PARQUET_SUFFIX = ".parquet"
ROWS_AT_ONCE = 36_000  # an hour
_WHOLE = ("frame", "source_frame", "time_ns")


def convert_folder(folder: Path) -> Iterator[Path]:
    """Every closed segment of a folder of logs that has no Parquet yet; yields the files that were made. MbrError for
    segments that are damaged, when all others are made.
    """
    damaged = []
    for labels in sorted(folder.glob("*.labels")):
        for segment in segments_in(labels):
            made = segment.with_suffix(PARQUET_SUFFIX)
            if made.exists():
                continue
            try:
                convert(segment, made)
            except MbrError as error:
                damaged.append(str(error))
            else:
                yield made
    if damaged:
        raise MbrError("\n".join(damaged))


def convert(segment: Path, made: Path) -> None:
    """Write one segment as Parquet. MbrError, and nothing is left, where it is damaged or would not say the same."""
    part = made.with_name(made.name + ".part")
    try:
        _write(segment, part)
        if not _says_the_same(part, segment):
            raise MbrError(f"{segment}: as Parquet it would not say the same. Was the file edited? The CSV stays.")
        part.replace(made)
    except ValueError as error:
        raise MbrError(f"{segment}: it is damaged ({error}), and no Parquet is made. Was the file edited?") from error
    finally:
        part.unlink(missing_ok=True)


def _blocks(segment: Path) -> Iterator[str]:
    """The rows of a label log, some at a time, below its header; of a log without rows the header."""
    with segment.open() as lines:
        header, block = next(lines, ""), list(islice(lines, ROWS_AT_ONCE))
        yield header + "".join(block)
        while block := list(islice(lines, ROWS_AT_ONCE)):
            yield header + "".join(block)


def _write(segment: Path, part: Path) -> None:
    tables = map(table_of, _blocks(segment))
    first = next(tables)
    with pq.ParquetWriter(part, first.schema, compression="zstd") as writer:
        for table in chain((first,), tables):
            writer.write_table(table, row_group_size=ROWS_AT_ONCE)


def _says_the_same(part: Path, segment: Path) -> bool:
    with pq.ParquetFile(part) as file:
        # A file without rows may have no group of them.
        tables = map(file.read_row_group, range(file.num_row_groups)) if file.num_row_groups else iter([file.read()])
        texts = map(text_of, tables)
        return all(text == block for text, block in zip_longest(texts, _blocks(segment)))


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
