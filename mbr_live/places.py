"""Where results are to go: what is wrong with a place is said before the work, not after it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mbr_live.types import MbrError


def check_writable(folder: Path) -> None:
    """Raises MbrError where nothing can be written into `folder`, which need not be there yet. Leaves nothing."""
    there = folder.resolve()
    while not there.exists():
        there = there.parent
    try:
        # Tried, since permissions do not tell of file systems that are read only.
        tempfile.TemporaryDirectory(prefix=".mbr-live.", dir=there).cleanup()
    except OSError as error:
        raise MbrError(
            f"{folder}: nothing can be written there ({error.strerror}). Give another folder, or see to what you may "
            "write."
        ) from error
