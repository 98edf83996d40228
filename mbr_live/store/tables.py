"""The tables of the store: sessions, and what came of them. SQLite (with a write-ahead log) or PostgreSQL."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Engine, ForeignKey, Integer, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

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


def open_store(url: str) -> Engine:
    """The database at `url`, with its tables. MbrError says why it cannot be used; passwords are never shown."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise MbrError(
            f"store: {url!r} is no address of a database. Expected sqlite:///folder/mbr.sqlite or "
            "postgresql+psycopg://user@host/database."
        ) from error
    shown = parsed.render_as_string(hide_password=True)
    if parsed.password is not None:
        raise MbrError(
            f"store: {shown} holds a password, which configurations and logs would show. Put it into ~/.pgpass, or "
            "into the variable PGPASSWORD."
        )
    try:
        engine = create_engine(parsed)
        if parsed.get_backend_name() == "sqlite":
            event.listen(engine, "connect", _safe_sqlite)
        Base.metadata.create_all(engine)
    except (SQLAlchemyError, NoSuchModuleError, ModuleNotFoundError) as error:
        reason = str(error).splitlines()[0]
        raise MbrError(
            f"store: {shown} cannot be used ({reason}). Is it running, and may this user write to it?"
        ) from error
    return engine


def _safe_sqlite(connection: Any, _record: object) -> None:
    """Readers do not wait for the writer, and a crash costs the last transaction at most."""
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}")
