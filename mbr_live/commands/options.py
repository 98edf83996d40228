"""Arguments and options that several commands share, and what a command says where an extra is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mbr_live.types import EngineWish, MbrError

Out = Annotated[Path, typer.Option("--out", help="Folder for the results.")]
BundleOption = Annotated[Path, typer.Option("--bundle", help="Model bundle.")]
Videos = Annotated[list[Path], typer.Argument(help="Video files.")]
ConfigFile = Annotated[Path, typer.Argument(help="Configuration file (TOML).")]
DatasetFile = Annotated[Path, typer.Argument(help="Dataset file (TOML).")]
KeysOption = Annotated[Path | None, typer.Option("--keys", help="Folder of keys, where the system has them.")]
WindowPx = Annotated[
    int | None, typer.Option("--window-px", min=16, max=4096, help="Side of the crop window; else found.")
]
EngineOption = Annotated[EngineWish | None, typer.Option("--engine", help="What computes the networks.")]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights", help="File that the extractor starts from (.pth, .safetensors), for what the dataset says."
    ),
]
Plain = Annotated[bool, typer.Option("--plain", help="Lines of text instead of a dashboard.")]
Seconds = Annotated[float | None, typer.Option("--seconds", min=0.1, help="Stop after this time.")]


@contextmanager
def extra(name: str, command: str) -> Iterator[None]:
    """Around the import of a program that needs an extra of the installation."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MbrError(f"{command}: {error.name} is not installed. Run: pip install 'mbr-live[{name}]'") from error
