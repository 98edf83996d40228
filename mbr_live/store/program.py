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
from mbr_live.logs import Trouble
from mbr_live.processes import repeat
from mbr_live.sinks.run_manifest import RUN_SUFFIX
from mbr_live.store.loading import store_folder
from mbr_live.store.tables import StoreAway, make_ready, open_store, store_at
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
    damaged = []
    for folder in folders:
        try:
            stored = store_folder(folder, database)
        except SQLAlchemyError as error:
            raise MbrError(f"store: {folder} was not taken ({str(error).splitlines()[0]}). Try again.") from error
        except MbrError as error:
            damaged.append(str(error))
            continue
        for each in stored:
            table.add_row(escape(str(folder)), escape(each.recording), str(each.frames), str(each.bouts))
    Console(soft_wrap=True).print(table)
    if damaged:
        raise MbrError("\n".join(damaged))


def follow_program(config: Config) -> None:
    """Keep the store of a running system up to date until told to stop; one that fails, or is not there yet, as after a
    power cut, is tried again.
    """
    if config.store is None:
        raise MbrError("store: the configuration has no [store] table. Add one with url.")
    repeat(_Following(config.out, store_at(config.store.url)).catch_up, config.store.every_s)


class _Following:
    """A database that is kept up to date with the logs of a folder."""

    def __init__(self, out: Path, database: Engine) -> None:
        self._out, self._database = out, database
        self._trouble = Trouble(_log, "store")

    def catch_up(self) -> None:
        """Bring in what is new, of all logs if the database is another now; MbrError for one that no waiting mends."""
        try:
            make_ready(self._database)
        except StoreAway as error:
            self._trouble.is_now(str(error))
            return
        self._trouble.is_now(self._brought())

    def _brought(self) -> str:
        """Bring in what is new; what is wrong, if anything."""
        try:
            store_folder(self._out, self._database)
        except SQLAlchemyError as error:
            return str(error).splitlines()[0]
        except (MbrError, OSError) as error:
            return str(error)
        return ""
