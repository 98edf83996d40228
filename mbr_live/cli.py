"""The command line: all commands, what they have in common, and how an error ends one."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.console import Console

from mbr_live import __version__
from mbr_live.commands import live, models, recorded
from mbr_live.logs import LOG_VARIABLE, LogFormat, begin_logging
from mbr_live.processes import EXIT_FAILED, EXIT_USER_ERROR
from mbr_live.types import MbrError

# The programs import what they need when they are called: `mbr-live --help` must not wait for an inference engine.
app = typer.Typer(
    help="Behaviour labels for a mouse, live from a camera and the same from a file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for commands in (live, recorded, models):
    app.add_typer(commands.app)


def main() -> None:
    """Run the command line; an error that the user can mend is one paragraph and exit code 2, a file or folder that
    cannot be had one paragraph and exit code 1: trying again may help."""
    # Several processes share the cores: OpenCV's threads would cost more CPU than they save time on small pictures.
    os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")
    try:
        app()
    except MbrError as error:
        _say(str(error))
        raise SystemExit(EXIT_USER_ERROR) from error
    except OSError as error:
        if error.filename is None:
            raise
        _say(f"{error.filename}: {error.strerror}. Check the name, the room on the disk and what you may write there.")
        raise SystemExit(EXIT_FAILED) from error


def _say(words: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"mbr-live: {words}")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mbr-live {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    log: Annotated[LogFormat, typer.Option("--log", envvar=LOG_VARIABLE, help="How log lines look.")] = LogFormat.TEXT,
) -> None:
    begin_logging(log)
