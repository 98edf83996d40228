"""Who works in a folder: one inference process, and one capture for each camera. Two of them would mix their rows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mbr_live.locks import locked

INFERENCE = "inference"

_log = logging.getLogger(__name__)


def capture_of(camera: str) -> str:
    """The work of the capture process of a camera."""
    return f"capture-{camera}"


@contextmanager
def held(out: Path, work: str) -> Iterator[None]:
    """Keep every other process from the same work in the folder, which is there. MbrError where one has it already."""
    path = _lock_file(out, work)
    refusal = (
        f"{out}: another process has the {work} of this folder already, and the two would mix their rows. Stop that "
        "one, or use another folder (out)."
    )
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path, refusal))
            stack.callback(_delete, path)
        except OSError as error:  # a network drive, a full disk: labels come first
            _log.warning("%s: cannot be locked (%s), so nothing keeps a second process out", path, error.strerror)
        yield


def refuse_held(out: Path, work: str) -> None:
    """MbrError where a process has that work of the folder. Leaves nothing behind."""
    if _lock_file(out, work).exists():
        with held(out, work):
            pass


def _lock_file(out: Path, work: str) -> Path:
    return out / f".{work}.lock"


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s: stays, though nobody has it (%s)", path, error.strerror)
