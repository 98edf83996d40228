"""Who works in a folder: one inference process, one output process, and one capture for each camera.

Two of them would mix their rows.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from mbr_live import locks

INFERENCE, OUTPUT = "inference", "output"


def capture_of(camera: str) -> str:
    """The work of the capture process of a camera."""
    return f"capture-{camera}"


def held(out: Path, work: str) -> AbstractContextManager[None]:
    """Keep every other process from the same work in the folder, which is there. MbrError where one has it already."""
    return locks.held(
        _lock_file(out, work),
        f"{out}: another process has the {work} of this folder already, and the two would mix their rows. Stop that "
        "one, or use another folder (out).",
    )


def refuse_held(out: Path, work: str) -> None:
    """MbrError where a process has that work of the folder. Leaves nothing behind."""
    if _lock_file(out, work).exists():
        with held(out, work):
            pass


def _lock_file(out: Path, work: str) -> Path:
    return out / f".{work}.lock"
