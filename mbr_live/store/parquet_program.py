"""`mbr-live parquet`: closed segments of label logs as Parquet, once for folders, or again and again as they close."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from mbr_live.config import Config
from mbr_live.logs import Trouble
from mbr_live.processes import repeat
from mbr_live.store.parquet import convert_folder
from mbr_live.types import MbrError

EVERY_S = 30.0

_log = logging.getLogger(__name__)


def parquet_program(folders: Sequence[Path]) -> None:
    """Convert what is there; MbrError for a folder without closed segments."""
    for folder in folders:
        if not folder.is_dir():
            raise MbrError(f"parquet: {folder} is no folder. Give the folder that holds the label logs of a live run.")
        if not any(folder.glob("*.labels/*.csv")):
            raise MbrError(
                f'parquet: {folder} has no closed label files. They are made by a live run with labels.rotate = "hour" '
                'or "day"; what is not closed yet is not converted.'
            )
        for made in convert_folder(folder):
            print(made, flush=True)


def follow_parquet(config: Config) -> None:
    """Convert what closes until told to stop; what fails is tried again."""
    if not config.labels.parquet:
        raise MbrError("parquet: the configuration does not ask for it. Set labels.parquet = true and labels.rotate.")

    trouble = Trouble(_log, "parquet")

    def convert() -> None:
        try:
            for made in convert_folder(config.out):
                _log.info("%s", made)
        except (OSError, MbrError) as error:
            trouble.is_now(str(error))
        else:
            trouble.is_now("")

    repeat(convert, EVERY_S)
