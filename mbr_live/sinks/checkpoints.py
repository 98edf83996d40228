"""How far the rows of a label log have been followed, so that a session goes on without reading all of them again.

Bouts, counts and stretches without a frame are a function of the label log. `<camera>.labels.checkpoint/` spares the
way through its rows and nothing else: what is missing there, damaged, or does not fit the log is not used, and all is
made anew from the rows. It may be deleted whenever inference does not run.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from mbr_live.appending import Unwritable, WaitingRows
from mbr_live.manifest import Manifest
from mbr_live.sinks.label_log import LabelRow, read_labels
from mbr_live.stages.decide import BoutState
from mbr_live.types import TICK_NS, UNKNOWN, Decision

CHECKPOINT_SUFFIX = ".checkpoint"
GAPS_HEADER = "first_frame,last_frame"
_BLOCK_BYTES = 1 << 20

_log = logging.getLogger(__name__)


class Place(NamedTuple):
    """A row of the label log, as it is recognised."""

    frame: int
    source_frame: int
    time_ns: int
    status: str
    labels: tuple[int, ...]

    @classmethod
    def of(cls, row: LabelRow) -> Place:
        """Of a row that was read."""
        return cls(row.index, row.source_frame, row.time_ns, row.status, row.labels)

    @classmethod
    def of_last(cls, decision: Decision) -> Place:
        """Of the last row of a decision."""
        later = decision.ticks - 1
        time_ns = decision.time_ns + later * TICK_NS
        return cls(decision.index + later, decision.source_frame, time_ns, str(decision.status), decision.labels)


class Beginning(BaseModel):
    """The rows that a file had at some moment; more may stand behind them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = 0  # bytes
    sha256: str = hashlib.sha256().hexdigest()

    def is_of(self, path: Path) -> bool:
        """Whether the file has them."""
        return path.exists() and _hash_of_beginning(path, self.size).hexdigest() == self.sha256


class Checkpoint(BaseModel):
    """Everything that follows from the rows of a label log up to `last`, that row included."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    format: Literal[1] = 1  # another one wherever bouts, counts or gaps follow from the same rows in another way
    behaviours: tuple[str, ...]
    max_gap_frames: int
    last: Place
    bout_states: tuple[BoutState, ...]  # one per behaviour
    bout_counts: dict[str, int]  # by behaviour
    rows: dict[str, int] = {}  # by status
    open_gap: tuple[int, int] | None = None  # the newest stretch without a frame, which may go on
    bouts: Beginning = Beginning()  # the bouts that had ended
    gaps: Beginning = Beginning()  # the stretches before `open_gap`

    @classmethod
    def empty(cls, manifest: Manifest) -> Checkpoint:
        """Before the first row."""
        names = manifest.behaviour_names
        return cls(
            behaviours=names, max_gap_frames=manifest.max_gap_frames, last=Place(-1, UNKNOWN, 0, "", ()),
            bout_states=(BoutState(),) * len(names), bout_counts=dict.fromkeys(names, 0),
        )  # fmt: skip

    def is_by(self, manifest: Manifest) -> bool:
        """Whether this bundle would have come to the same."""
        return self.behaviours == manifest.behaviour_names and self.max_gap_frames == manifest.max_gap_frames


class CheckpointFolder:
    """The two newest checkpoints of a session.

    Nothing waits for the disk here. A power cut can take what the system had not written yet: of the newest checkpoint
    itself, or of the log that it goes by, which it then does not fit. The one before it is minutes old.
    """

    def __init__(self, labels: Path) -> None:
        self._folder = labels.with_suffix(CHECKPOINT_SUFFIX)
        self._newest, self._previous = self._folder / "newest.json", self._folder / "previous.json"
        self.gaps = self._folder / "gaps.csv"
        self._failed = False

    def newest_fitting(self, labels: Path, bouts: Path, manifest: Manifest) -> tuple[Checkpoint, Iterator[LabelRow]]:
        """The newest that fits the logs, and the rows behind it; where there is none, the empty one, and all rows.

        Those that do not fit are deleted: rows that are written from now on must not make them seem to.
        """
        for path in (self._newest, self._previous):
            checkpoint = _read(path)
            if checkpoint is None:
                continue
            if checkpoint.is_by(manifest) and checkpoint.bouts.is_of(bouts) and checkpoint.gaps.is_of(self.gaps):
                rows = read_labels(labels, manifest, from_frame=checkpoint.last.frame)
                row = next(rows, None)
                if row is not None and Place.of(row) == checkpoint.last:
                    return checkpoint, rows
            path.unlink()
        return Checkpoint.empty(manifest), read_labels(labels, manifest)

    def open_gaps(self, beginning: Beginning) -> RecognisedRows:
        """The stretches without a frame that have ended. Unwritable where the disk does not take the file."""
        self._folder.mkdir(exist_ok=True)
        return RecognisedRows(self.gaps, beginning, GAPS_HEADER)

    def forget(self, from_frame: int) -> None:
        """Delete those that go as far as that frame, and what is no checkpoint."""
        for path in (self._newest, self._previous):
            checkpoint = _read(path)
            if checkpoint is None or checkpoint.last.frame >= from_frame:
                path.unlink(missing_ok=True)

    def write(self, checkpoint: Checkpoint) -> None:
        """Add one. Where the disk does not take it, those before it stay: only the next start takes longer then."""
        part = self._folder / "part"
        try:
            part.write_text(checkpoint.model_dump_json() + "\n")
            if self._newest.exists():
                self._newest.replace(self._previous)
            part.replace(self._newest)
        except OSError as error:
            if not self._failed:
                _log.warning("%s: cannot be written (%s); a restart takes longer until it can", self._newest, error)
            self._failed = True
            return
        self._failed = False


def _read(path: Path) -> Checkpoint | None:
    try:
        return Checkpoint.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        _log.warning("%s: is not used (%s)", path, str(error).partition("\n")[0])
        return None


class RecognisedRows(WaitingRows):
    """Rows at the end of a file whose beginning is known; what stands behind that goes."""

    def __init__(self, path: Path, beginning: Beginning, header: str) -> None:
        """`header` is the first row. Unwritable where the file cannot be opened or a header finds no room."""
        super().__init__(path)
        try:
            self.open().truncate(beginning.size)
            self._size, self._hash = beginning.size, _hash_of_beginning(path, beginning.size)
            if not beginning.size:
                self.write(header + "\n")
        except (OSError, Unwritable):
            self.close()
            raise

    @property
    def beginning(self) -> Beginning:
        """All rows that were ever given to it."""
        return Beginning(size=self._size, sha256=self._hash.hexdigest())

    @property
    def complete(self) -> bool:
        """Whether all of them are in the file."""
        return not len(self) and os.fstat(self.open().fileno()).st_size == self._size

    def append(self, row: str) -> None:
        """As of `WaitingRows`. One that is refused counts too: the file lacks it, and is not complete any more."""
        self._note(row)
        super().append(row)

    def write(self, row: str) -> None:
        """As of `WaitingRows`."""
        super().write(row)
        self._note(row)

    def _note(self, row: str) -> None:
        data = row.encode()
        self._size += len(data)
        self._hash.update(data)


def _hash_of_beginning(path: Path, size: int) -> hashlib._Hash:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while size and (block := file.read(min(size, _BLOCK_BYTES))):
            found.update(block)
            size -= len(block)
    return found
