"""Commands on recordings and on the logs of sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mbr_live.commands.options import (
    BundleOption,
    EngineOption,
    Out,
    WindowPx,
    extra,
)
from mbr_live.config import DEMO_BUNDLE, load_config
from mbr_live.types import MbrError

app = typer.Typer()


@app.command()
def batch(
    videos: Annotated[list[Path], typer.Argument(help="Video files, or the .frames.csv of recorded live sessions.")],
    out: Out,
    bundle: BundleOption = DEMO_BUNDLE,
    join: Annotated[str | None, typer.Option(help="Treat the files as one recording of this name.")] = None,
    drops: Annotated[Path | None, typer.Option(help="Lose the frames that this live run (.run.json) lost.")] = None,
    window_px: WindowPx = None,
    engine: EngineOption = None,
    at_once: Annotated[int | None, typer.Option(min=1, help="Files at the same time; as many as cores.")] = None,
    skip_done: Annotated[
        bool, typer.Option("--skip-done", help="Leave out files whose labels are there, made in the same way.")
    ] = False,
) -> None:
    """Label recorded files; with --drops, with the engine of that run."""
    from mbr_live.batch.program import batch_program

    if skip_done and drops is not None:
        raise MbrError("batch: --drops labels one recording in another way, which --skip-done cannot tell. Give one.")
    raise SystemExit(
        batch_program(
            videos, out, bundle, join=join, drops=drops, window_px=window_px, wish=engine, at_once=at_once,
            skip_done=skip_done,
        )
    )  # fmt: skip


@app.command()
def locate(
    source: Annotated[Path, typer.Argument(help="A video, or a folder of pictures with --stills.")],
    out: Annotated[Path, typer.Option("--out", help="CSV file of positions.")],
    stills: Annotated[bool, typer.Option("--stills", help="The source is a folder of unrelated pictures.")] = False,
) -> None:
    """Find the animal in a recording, or in single pictures."""
    from mbr_live.locate_program import locate_program

    locate_program(source, out, stills=stills)


@app.command()
def simulate(
    out: Out,
    condition: Annotated[str, typer.Option(help="box, clutter or dark.")] = "box",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    minutes: Annotated[float, typer.Option(min=0.01, help="Length of the recording.")] = 5.0,
) -> None:
    """Write a recording of the simulated camera, with the truth beside it."""
    from mbr_live.simulation.program import simulate_program

    simulate_program(condition, seed, minutes, out)


@app.command()
def store(
    sources: Annotated[list[Path], typer.Argument(help="Folders of logs; or the configuration of a running system.")],
    url: Annotated[str | None, typer.Option(help="sqlite:///PATH or postgresql+psycopg://USER@HOST/DATABASE.")] = None,
) -> None:
    """Bring logs into a database: once for folders, until stopped for a running system (needs the extra `store`)."""
    with extra("store", "store"):
        from mbr_live.store.program import follow_program, store_program
    if url is not None:
        store_program(sources, url)
    elif len(sources) == 1 and sources[0].is_file():
        follow_program(load_config(sources[0]))
    else:
        raise MbrError("store: folders need --url, the address of the database, such as sqlite:///mbr.sqlite.")


@app.command()
def parquet(
    sources: Annotated[list[Path], typer.Argument(help="Folders of logs; or the configuration of a running system.")],
) -> None:
    """Closed label files as Parquet too: once for folders, until stopped for a running system (extra `store`)."""
    with extra("store", "parquet"):
        from mbr_live.store.parquet_program import follow_parquet, parquet_program
    if len(sources) == 1 and sources[0].is_file():
        follow_parquet(load_config(sources[0]))
    else:
        parquet_program(sources)


@app.command()
def clips(
    source: Annotated[Path, typer.Argument(help="Folder of logs; or the configuration of a running system.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the clips; else clips/ in the folder of logs.")] = None,
    behaviour: Annotated[list[str] | None, typer.Option(help="Only of this; may be given again.")] = None,
    pre_s: Annotated[float, typer.Option(min=0, help="Seconds before the bout.")] = 3.0,
    post_s: Annotated[float, typer.Option(min=0, help="Seconds after it.")] = 3.0,
) -> None:
    """Cut a clip of every bout: once for a folder, until stopped for a running system."""
    from mbr_live.video.clips import CLIPS_FOLDER
    from mbr_live.video.clips_program import clips_program, follow_clips_program

    if source.is_file():
        follow_clips_program(load_config(source))
    else:
        clips_program(source, out or source / CLIPS_FOLDER, behaviour or [], pre_s=pre_s, post_s=post_s)
