"""`mbr-live store`: logs into a database, once for folders, or again and again for a running system."""

from __future__ import annotations

import logging
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from mbr_live.config import Config
from mbr_live.processes import repeat
from mbr_live.sinks import RUN_SUFFIX
from mbr_live.store.loading import store_folder
from mbr_live.store.tables import open_store
from mbr_live.types import MbrError

_log = logging.getLogger(__name__)


def store_program(folders: list[Path], url: str) -> None:
    """Bring the logs of folders into the store; MbrError for a folder without logs, or a store that fails."""
    for folder in folders:
        if not folder.is_dir():
            raise MbrError(f"store: {folder} is no folder. Give the folder that holds the .run.json of recordings.")
        if not any(folder.glob(f"*{RUN_SUFFIX}")):
            raise MbrError(
                f"store: {folder} holds no .run.json of a recording. Give the --out folder of a run or batch."
            )
    database = open_store(url)
    table = Table("folder", "recording", "new frames", "new bouts")
    for folder in folders:
        try:
            stored = store_folder(folder, database)
        except SQLAlchemyError as error:
            raise MbrError(f"store: {folder} was not taken ({str(error).splitlines()[0]}). Try again.") from error
        for each in stored:
            table.add_row(escape(str(folder)), escape(each.recording), str(each.frames), str(each.bouts))
    Console(soft_wrap=True).print(table)


def follow_program(config: Config) -> None:
    """Keep the store of a running system up to date until told to stop; a store that fails is tried again."""
    if config.store is None:
        raise MbrError("store: the configuration has no [store] table. Add one with url.")
    database = open_store(config.store.url)
    repeat(lambda: _try(config.out, database), config.store.every_s)


def _try(out: Path, database: Engine) -> None:
    try:
        store_folder(out, database)
    except (SQLAlchemyError, MbrError) as error:
        _log.error("store: not up to date, will be tried again: %s", str(error).splitlines()[0])
