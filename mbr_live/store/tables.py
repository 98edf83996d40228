"""The tables of the store: sessions, and what came of them. SQLite (with a write-ahead log) or PostgreSQL."""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL, BigInteger, Engine, ForeignKey, Integer, create_engine, event, inspect, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import NullPool

from mbr_live.types import MbrError

_Frame = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """All tables. Frames are ticks of the 10 fps grid; a stretch includes its first and its last."""


class SessionRow(Base):
    """One recording by one bundle: a camera's session, or a file that was labelled."""

    __tablename__ = "sessions"

    id: Mapped[int] = mapped_column(primary_key=True)
    recording: Mapped[str]
    started: Mapped[str]  # UTC, ISO 8601; with `recording` and `bundle_sha256` it names the session
    finished: Mapped[str | None]
    mode: Mapped[str]  # live, batch
    exit_status: Mapped[str]  # running, complete, stopped
    bundle: Mapped[str]
    bundle_sha256: Mapped[str]
    engine: Mapped[str]
    origin_ns: Mapped[int | None] = mapped_column(BigInteger)  # capture time of frame 0; of a file: 0
    frames: Mapped[int] = mapped_column(_Frame, default=0)  # rows of the label log that are in the store
    bouts_bytes: Mapped[int] = mapped_column(_Frame, default=0)  # of the bout log that is in the store
    bouts_sha256: Mapped[str] = mapped_column(default="")
    camera_bytes: Mapped[int] = mapped_column(_Frame, default=0)  # of the camera's log that is in the store
    triggers_bytes: Mapped[int] = mapped_column(_Frame, default=0)  # of the receipts


class BoutRow(Base):
    """A row of the bout log."""

    __tablename__ = "bouts"

    session_id: Mapped[int] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True)
    behaviour: Mapped[str] = mapped_column(primary_key=True)
    start_frame: Mapped[int] = mapped_column(_Frame, primary_key=True)
    stop_frame: Mapped[int] = mapped_column(_Frame)
    start_s: Mapped[float]
    stop_s: Mapped[float]
    duration_s: Mapped[float]
    mean_p: Mapped[float]
    complete: Mapped[bool]


class UnknownRow(Base):
    """A stretch of one status other than `ok`: gap, lost, blind, warmup."""

    __tablename__ = "unknown"

    session_id: Mapped[int] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True)
    start_frame: Mapped[int] = mapped_column(_Frame, primary_key=True)
    stop_frame: Mapped[int] = mapped_column(_Frame)
    status: Mapped[str]


class TotalRow(Base):
    """How many frames are labelled 1, 0, or not known, by behaviour."""

    __tablename__ = "totals"

    session_id: Mapped[int] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True)
    behaviour: Mapped[str] = mapped_column(primary_key=True)
    on_frames: Mapped[int] = mapped_column(_Frame, default=0)
    off_frames: Mapped[int] = mapped_column(_Frame, default=0)
    unknown_frames: Mapped[int] = mapped_column(_Frame, default=0)


class OutageRow(Base):
    """A stretch without frames from the camera."""

    __tablename__ = "outages"

    session_id: Mapped[int] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)  # in order, from 0
    cause: Mapped[str]
    start_frame: Mapped[int] = mapped_column(_Frame)
    stop_frame: Mapped[int | None] = mapped_column(_Frame)  # None while it lasts
    duration_s: Mapped[float | None]


class AlarmRow(Base):
    """A time in which something was wrong with the pictures of the camera."""

    __tablename__ = "alarms"

    session_id: Mapped[int] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]  # blind, blurred, moved, slow
    raised_frame: Mapped[int] = mapped_column(_Frame)
    raised_ns: Mapped[int] = mapped_column(BigInteger)
    cleared_frame: Mapped[int | None] = mapped_column(_Frame)  # None while it is raised
    cleared_ns: Mapped[int | None] = mapped_column(BigInteger)
    detail: Mapped[str]


class ReceiptRow(Base):
    """A row of the receipts of triggers: what was decided or skipped, and what became of it at an output."""

    __tablename__ = "receipts"

    session_id: Mapped[int] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    what: Mapped[str]  # decided, skipped; sent, confirmed, failed
    trigger: Mapped[str]
    trial: Mapped[int]
    edge: Mapped[str]  # on, off; empty where it was skipped
    frame: Mapped[int] = mapped_column(_Frame)
    sham: Mapped[bool]
    dry_run: Mapped[bool | None]  # None: of a delivery, which has that of its decision
    why: Mapped[str]
    on_s: Mapped[float | None]
    decided_ns: Mapped[int] = mapped_column(BigInteger)
    output: Mapped[str]  # of a decision: all that are told, with spaces between
    sent_ns: Mapped[int | None] = mapped_column(BigInteger)
    confirmed_ns: Mapped[int | None] = mapped_column(BigInteger)
    attempts: Mapped[int | None]


class LatencyRow(Base):
    """How long a stage took in a session, in ms."""

    __tablename__ = "latencies"

    session_id: Mapped[int] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True)
    stage: Mapped[str] = mapped_column(primary_key=True)  # capture_to_label, capture_to_sent, ...
    quantile: Mapped[str] = mapped_column(primary_key=True)  # p50, p95, p99, max
    ms: Mapped[float]


class StoreAway(MbrError):
    """A database that does not answer, or cannot be written to: trying again may help."""


def open_store(url: str) -> Engine:
    """The database at `url`, with its tables. MbrError says why it cannot be used; passwords are never shown."""
    database = store_at(url)
    make_ready(database)
    return database


def store_at(url: str) -> Engine:
    """The database at `url`, to which nothing is said yet; MbrError where that is no address of one."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise MbrError(
            f"store: {url!r} is no address of a database. Expected sqlite:///folder/mbr.sqlite or "
            "postgresql+psycopg://user@host/database."
        ) from error
    if parsed.password is not None:
        raise MbrError(
            f"store: {_shown(parsed)} holds a password, which configurations and logs would show. Put it into "
            "~/.pgpass, or into the variable PGPASSWORD."
        )
    try:
        # A connection for each call: one that is kept goes on with a file that somebody has deleted or replaced.
        database = create_engine(parsed, poolclass=NullPool)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise MbrError(f"store: {_shown(parsed)} cannot be used ({error}). Check its kind and driver.") from error
    if parsed.get_backend_name() == "sqlite":
        event.listen(database, "connect", _safe_sqlite)
    return database


def make_ready(database: Engine) -> None:
    """Make the tables that are missing. StoreAway where the database does not do it, MbrError where it has others."""
    try:
        Base.metadata.create_all(database)
        found = inspect(database)
        old = [
            name
            for name, table in Base.metadata.tables.items()
            if {column.name for column in table.columns} - {column["name"] for column in found.get_columns(name)}
        ]
    except SQLAlchemyError as error:
        reason = str(error).splitlines()[0]
        raise StoreAway(
            f"store: {_shown(database.url)} cannot be used ({reason}). Is it running, and may this user write to it?"
        ) from error
    if old:
        raise MbrError(
            f"store: {_shown(database.url)} was made by an earlier version (columns of {', '.join(old)} are missing). "
            "Give an empty database: it is filled from the logs."
        )


def _shown(url: URL) -> str:
    return url.render_as_string(hide_password=True)


def _safe_sqlite(connection: Any, _record: object) -> None:
    """Readers do not wait for the writer, and a crash costs the last transaction at most."""
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}")
