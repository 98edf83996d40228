"""Outages, alarms, receipts of triggers and latencies of a session, from its logs into the database.

The log of the camera is short beside that of the labels: where it has grown, what is in the store of it is made anew.
Of receipts there may be thousands a day, so those that are new are added.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError
from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from mbr_live.cameras.log import CAMERA_LOG_SUFFIX, Event, read_events, read_outages
from mbr_live.sinks.run_manifest import RunManifest
from mbr_live.store.tables import AlarmRow, Base, LatencyRow, OutageRow, ReceiptRow, SessionRow
from mbr_live.triggers.log import COLUMNS, SUMMARY_SUFFIX, TRIGGERS_SUFFIX, Summary, read_receipts
from mbr_live.types import MbrError

Rows = Iterator[dict[str, Any]]
_ROWS_AT_ONCE = 5000
_LONGEST_ROW = 65536  # bytes


def take_events(session: Session, row: SessionRow, run: RunManifest, stem: Path) -> None:
    """What there is beside the labels of the recording `stem`."""
    camera, receipts = (stem.with_name(stem.name + suffix) for suffix in (CAMERA_LOG_SUFFIX, TRIGGERS_SUFFIX))
    if _size(camera) != row.camera_bytes:
        row.camera_bytes = _size(camera)
        _anew(session, row, OutageRow, lambda: _outages(camera))
        _anew(session, row, AlarmRow, lambda: _alarms(read_events(camera)))
    if receipts.exists() and _size(receipts) != row.triggers_bytes:
        _take_receipts(session, row, receipts)
    _anew(session, row, LatencyRow, lambda: _latencies(run, stem.with_name(stem.name + SUMMARY_SUFFIX)))


def _size(path: Path) -> int:
    """Of the whole rows of a log."""
    if not path.exists():
        return 0
    with path.open("rb") as log:
        start = max(0, log.seek(0, os.SEEK_END) - _LONGEST_ROW)
        log.seek(start)
        return start + log.read().rfind(b"\n") + 1


def _take_receipts(session: Session, row: SessionRow, receipts: Path) -> None:
    """Receipts that are new. Where the log is not one that has grown, as after a power cut, all of them are."""
    size = _size(receipts)
    next(read_receipts(receipts), None)  # whether it is such a log
    with receipts.open("rb") as log:
        number = _known_receipts(session, row, log, size, receipts)
        if number:
            log.seek(row.triggers_bytes)
        else:
            session.execute(delete(ReceiptRow).where(ReceiptRow.session_id == row.id))
            log.seek(0)
            log.readline()
        lines = iter(lambda: log.readline(size - log.tell()), b"")
        while block := list(islice(lines, _ROWS_AT_ONCE)):
            found = [_receipt(receipts, line) for line in block]
            rows = [{"session_id": row.id, "number": number + k, **each} for k, each in enumerate(found)]
            session.execute(insert(ReceiptRow), rows)
            number += len(rows)
    row.triggers_bytes = size


def _known_receipts(session: Session, row: SessionRow, log: BinaryIO, size: int, receipts: Path) -> int:
    """How many receipts are in the store; 0 where the last of them is not in its place in the log."""
    last = select(ReceiptRow).where(ReceiptRow.session_id == row.id).order_by(ReceiptRow.number.desc()).limit(1)
    newest = session.scalar(last)
    if newest is None or row.triggers_bytes > size:
        return 0
    log.seek(max(0, row.triggers_bytes - _LONGEST_ROW))
    line = log.read(row.triggers_bytes - log.tell()).splitlines(keepends=True)[-1]
    is_last = line.endswith(b"\n") and all(
        getattr(newest, name) == value for name, value in _receipt(receipts, line).items()
    )
    return newest.number + 1 if is_last else 0


def _anew(session: Session, row: SessionRow, table: type[Base], rows: Callable[[], Rows]) -> None:
    session.execute(delete(table).where(table.session_id == row.id))  # type: ignore[attr-defined]
    found = [{"session_id": row.id, **each} for each in rows()]
    if table is not LatencyRow:
        found = [{**each, "number": number} for number, each in enumerate(found)]
    if found:
        session.execute(insert(table), found)


def _outages(camera: Path) -> Rows:
    for outage in read_outages(camera):
        yield {
            "cause": outage.cause, "start_frame": outage.first_frame, "stop_frame": outage.last_frame,
            "duration_s": outage.duration_s,
        }  # fmt: skip


def _alarms(events: Iterator[Event]) -> Rows:
    """Every alarm with its end; one that a restart raised again without an end lasts on."""
    raised: dict[str, dict[str, Any]] = {}
    for event in events:
        if event.event == "alarm" and event.cause not in raised:
            raised[event.cause] = {
                "name": event.cause, "raised_frame": event.frame, "raised_ns": event.time_ns,
                "cleared_frame": None, "cleared_ns": None, "detail": event.detail,
            }  # fmt: skip
        elif event.event == "cleared" and event.cause in raised:
            yield raised.pop(event.cause) | {"cleared_frame": event.frame, "cleared_ns": event.time_ns}
    yield from raised.values()


def _receipt(receipts: Path, line: bytes) -> dict[str, Any]:
    text = line.decode(errors="replace")
    try:
        row = dict(zip(COLUMNS, next(csv.reader([text])), strict=True))
        whole = {key: int(row[key]) if row[key] else None for key in ("sent_ns", "confirmed_ns", "attempts")}
        return {
            **{key: row[key] for key in ("what", "trigger", "edge", "why", "output")},
            **{key: int(row[key]) for key in ("trial", "frame", "decided_ns")},
            **whole,
            "sham": row["sham"] == "1",
            "dry_run": row["dry_run"] == "1" if row["dry_run"] else None,
            "on_s": float(row["on_s"]) if row["on_s"] else None,
        }
    except ValueError as error:
        raise MbrError(f"{receipts}: the row {text.strip()!r} is damaged ({error}). Was the file edited?") from error


def _latencies(run: RunManifest, summary: Path) -> Rows:
    """Of the manifest, which has them when the session has ended, and of the triggers of the process that ran last."""
    stages = {}
    for key, ms in run.timings.items():
        stage, _, quantile = key.removesuffix("_ms").rpartition("_")
        if quantile in ("p50", "p95", "p99", "max"):
            stages[stage, quantile] = ms
    try:
        of_triggers = Summary.model_validate_json(summary.read_text()).latency
    except (OSError, ValidationError):
        of_triggers = {}
    for stage, figures in of_triggers.items():
        for key, ms in figures.items():
            stages.setdefault((stage, key.removesuffix("_ms")), ms)
    for (stage, quantile), ms in stages.items():
        yield {"stage": stage, "quantile": quantile, "ms": ms}
