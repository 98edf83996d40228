"""Brings the logs of a folder into a database. The logs are the truth: what is in the store can be made anew from them.

A call takes what has come since the last one, in one transaction for each recording, so it can be repeated at any time
and broken off at any moment.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, delete, insert, select
from sqlalchemy.orm import Session

from mbr_live.sinks.bouts import BOUTS_HEADER, BOUTS_SUFFIX
from mbr_live.sinks.label_log import LABELS_SUFFIX, LabelRow, logged_behaviours, read_labels
from mbr_live.sinks.run_manifest import RUN_SUFFIX, RunManifest, read_run
from mbr_live.store.events import take_events
from mbr_live.store.tables import BoutRow, SessionRow, TotalRow, UnknownRow
from mbr_live.types import UNKNOWN, MbrError, Status


@dataclass(frozen=True, slots=True)
class Stored:
    """What a call brought in, of one recording."""

    recording: str
    frames: int
    bouts: int


def store_folder(folder: Path, database: Engine) -> list[Stored]:
    """Bring in what is new of every recording of a folder. MbrError for damaged logs, when all others are in."""
    stored, damaged = [], []
    for path in sorted(folder.glob(f"*{RUN_SUFFIX}")):
        try:
            stored.append(_store(path, database))
        except MbrError as error:
            damaged.append(str(error))
    if damaged:
        raise MbrError("\n".join(damaged))
    return stored


def _store(run_path: Path, database: Engine) -> Stored:
    run, stem = read_run(run_path), run_path.name.removesuffix(RUN_SUFFIX)
    labels, bouts = (run_path.with_name(stem + suffix) for suffix in (LABELS_SUFFIX, BOUTS_SUFFIX))
    with Session(database) as session, session.begin():
        row = _session_row(session, run)
        frames = _take_labels(session, row, labels) if labels.exists() else 0
        take_events(session, row, run, run_path.with_name(stem))
        return Stored(run.recording, frames, _take_bouts(session, row, bouts) if bouts.exists() else 0)


def _session_row(session: Session, run: RunManifest) -> SessionRow:
    row = session.scalar(
        select(SessionRow).where(
            SessionRow.recording == run.recording,
            SessionRow.started == run.started,
            SessionRow.bundle_sha256 == run.bundle_sha256,
        )
    )
    if row is None:
        row = SessionRow(recording=run.recording, started=run.started, bundle_sha256=run.bundle_sha256)
        row.frames, row.bouts_bytes, row.bouts_sha256 = 0, 0, hashlib.sha256(b"").hexdigest()
        session.add(row)
    row.finished, row.mode, row.exit_status = run.finished, run.mode, run.exit_status
    row.bundle, row.engine = run.bundle, run.engine
    session.flush()
    return row


def _take_labels(session: Session, row: SessionRow, labels: Path) -> int:
    """Totals and unknown stretches of the rows that are new; the number of these.

    A stretch that goes on grows, so that none is ever cut in two, and no row is read twice.
    """
    if row.frames and next(read_labels(labels, from_frame=row.frames - 1, growing=True), None) is None:
        _forget_labels(session, row)  # a power cut took rows that were in the store: take the log anew
    totals = _totals(session, row, logged_behaviours(labels))
    before, last = row.frames, _last_stretch(session, row)
    stretches: list[dict[str, object]] = []
    for part in _parts(read_labels(labels, from_frame=row.frames, growing=True), len(totals)):
        row.origin_ns = part.first.time_ns if row.origin_ns is None else row.origin_ns
        row.frames += part.frames
        for total, counts in zip(totals, part.counts, strict=True):
            total.on_frames += counts[1]
            total.off_frames += counts[0]
            total.unknown_frames += counts[UNKNOWN]
        if last is not None and last.status == part.first.status:
            last.stop_frame += part.frames
        elif part.first.status != Status.OK:
            stretches.append(_stretch(row.id, part))
        last = None
    if stretches:
        session.execute(insert(UnknownRow), stretches)
    return row.frames - before


@dataclass(slots=True)
class _Part:
    """Rows on end of one status."""

    first: LabelRow
    counts: list[Counter[int]]  # of the labels, by behaviour
    frames: int = 0

    def take(self, row: LabelRow) -> None:
        self.frames += 1
        for counts, label in zip(self.counts, row.labels, strict=True):
            counts[label] += 1


def _parts(rows: Iterable[LabelRow], behaviours: int) -> Iterator[_Part]:
    """The rows as stretches of one status."""
    part: _Part | None = None
    for row in rows:
        if part is not None and row.status != part.first.status:
            yield part
            part = None
        part = part or _Part(row, [Counter() for _ in range(behaviours)])
        part.take(row)
    if part is not None:
        yield part


def _forget_labels(session: Session, row: SessionRow) -> None:
    for table in (UnknownRow, TotalRow):
        session.execute(delete(table).where(table.session_id == row.id))
    row.frames = 0


def _totals(session: Session, row: SessionRow, behaviours: Iterable[str]) -> list[TotalRow]:
    totals = []
    for name in behaviours:
        total = session.get(TotalRow, (row.id, name))
        if total is None:
            total = TotalRow(session_id=row.id, behaviour=name, on_frames=0, off_frames=0, unknown_frames=0)
            session.add(total)
        totals.append(total)
    return totals


def _last_stretch(session: Session, row: SessionRow) -> UnknownRow | None:
    """The stretch that the rows in the store end with; None where the last one is known."""
    at_end = UnknownRow.session_id == row.id, UnknownRow.stop_frame == row.frames - 1
    return session.scalar(select(UnknownRow).where(*at_end))


def _stretch(session_id: int, part: _Part) -> dict[str, object]:
    start_frame, stop_frame = part.first.index, part.first.index + part.frames - 1
    return {"session_id": session_id, "start_frame": start_frame, "stop_frame": stop_frame, "status": part.first.status}


def _take_bouts(session: Session, row: SessionRow, bouts: Path) -> int:
    """Bouts that are new. A log that was made anew, after a crash, replaces what is there where it differs."""
    content = bouts.read_bytes()
    content = content[: content.rfind(b"\n") + 1]
    known = content[: row.bouts_bytes]
    if len(known) != row.bouts_bytes or hashlib.sha256(known).hexdigest() != row.bouts_sha256:
        session.execute(delete(BoutRow).where(BoutRow.session_id == row.id))
        known = b""
    lines = content[len(known) :].decode(errors="replace").splitlines()
    fresh = [_bout(bouts, row.id, cells) for cells in csv.reader(line for line in lines if line != BOUTS_HEADER)]
    if fresh:
        session.execute(insert(BoutRow), fresh)
    row.bouts_bytes, row.bouts_sha256 = len(content), hashlib.sha256(content).hexdigest()
    return len(fresh)


def _bout(bouts: Path, session_id: int, cells: list[str]) -> dict[str, object]:
    try:
        behaviour, start_frame, stop_frame, start_s, stop_s, duration_s, mean_p, complete = cells
        return {
            "session_id": session_id, "behaviour": behaviour, "start_frame": int(start_frame),
            "stop_frame": int(stop_frame), "start_s": float(start_s), "stop_s": float(stop_s),
            "duration_s": float(duration_s), "mean_p": float(mean_p), "complete": complete == "1",
        }  # fmt: skip
    except ValueError as error:
        raise MbrError(f"{bouts}: the row {','.join(cells)!r} is damaged ({error}). Was the file edited?") from error
