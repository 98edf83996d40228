"""Commands that make, hold against the truth and run models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mbr_live.commands.options import (
    DatasetFile,
    Out,
    Weights,
    extra,
)
from mbr_live.config import DEMO_BUNDLE, load_config
from mbr_live.engines.plans import GpuPrecision
from mbr_live.types import MbrError

app = typer.Typer()
calibrate_app = typer.Typer(help="Fit what was trained, or a camera, to a lab.", no_args_is_help=True)
app.add_typer(calibrate_app, name="calibrate")
dataset_app = typer.Typer(help="Annotated recordings to train on.", no_args_is_help=True)
app.add_typer(dataset_app, name="dataset")
engine_app = typer.Typer(help="What computes the networks on this machine.", no_args_is_help=True)
app.add_typer(engine_app, name="engine")


@app.command()
def train(
    dataset: DatasetFile,
    out: Annotated[Path, typer.Option("--out", help="Folder of the bundle.")],
    logs: Annotated[Path | None, typer.Option("--logs", help="Folder for learning curves (TensorBoard).")] = None,
    weights: Weights = None,
) -> None:
    """Train a model bundle (needs the extra `train`)."""
    with extra("train", "train"):
        from mbr_live.training.train import train_program
    train_program(dataset, out, logs, weights)


@app.command()
def evaluate(
    labels: Annotated[list[Path], typer.Option("--labels", help="Folder of label logs; once for each model.")],
    truth: Annotated[Path, typer.Option("--truth", help="Dataset file (TOML) of the marked recordings.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for report.html and metrics.json.")],
    name: Annotated[list[str] | None, typer.Option("--name", help="Name of each folder of labels, in order.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Recordings to score, or all; else those of test, or of validation.")
    ] = None,
) -> None:
    """Hold label logs against the truth (needs the extra `train`)."""
    with extra("train", "evaluate"):
        from mbr_live.evaluation.program import evaluate_program
    evaluate_program(labels, name or [], truth, out, split=split)


@app.command()
def crossvalidate(
    dataset: DatasetFile,
    out: Out,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Number of folds; else one group of each condition is left out at a time.")
    ] = None,
    weights: Weights = None,
) -> None:
    """Train without some groups, label them, and score all that was left out (needs the extra `train`)."""
    with extra("train", "crossvalidate"):
        from mbr_live.training.crossvalidate import crossvalidate_program
    crossvalidate_program(dataset, out, folds, weights)


@app.command()
def ensemble(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles of the same behaviours.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the bundle.")],
    weights: Annotated[str, typer.Option(help="mean, or learnt from the validation recordings of --dataset.")] = "mean",
    dataset: Annotated[
        Path | None, typer.Option(help="Dataset file (TOML) whose validation recordings thresholds are fitted to.")
    ] = None,
) -> None:
    """Make one bundle of several (needs the extra `train`)."""
    with extra("train", "ensemble"):
        from mbr_live.training.ensemble import ensemble_program
    if weights not in ("mean", "learnt"):
        raise MbrError(f"ensemble: --weights {weights}: expected mean or learnt.")
    ensemble_program(bundles, out, "learnt" if weights == "learnt" else "mean", dataset)


@app.command()
def tune(
    dataset: DatasetFile,
    out: Annotated[Path, typer.Option("--out", help="Folder of the study; one that was interrupted goes on.")],
) -> None:
    """Search for the settings of the best model, as the dataset file says under `tune` (needs the extra `train`)."""
    with extra("train", "tune"):
        from mbr_live.training.tune import tune_program
    tune_program(dataset, out)


@dataset_app.command()
def check(
    dataset: DatasetFile,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for plots (needs the extra `train`).")] = None,
) -> None:
    """Report what a dataset holds and every problem of its labels; exit code 1 where one is an error."""
    from mbr_live.datasets.program import check_program

    raise SystemExit(check_program(dataset, out))


@engine_app.callback()
def _engine() -> None:
    pass


@engine_app.command("check")
def engine_check(
    bundle: Annotated[Path, typer.Argument(help="Model bundle.")] = DEMO_BUNDLE,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
    anew: Annotated[bool, typer.Option("--anew", help="Measure again for `auto`.")] = False,
) -> None:
    """What computes a bundle here: versions, precision, parity, speed; exit code 1 where an engine differs."""
    from mbr_live.engines.program import check_program

    raise SystemExit(check_program(bundle, as_json=as_json, anew=anew))


@engine_app.command("build")
def engine_build(
    bundle: Annotated[Path, typer.Argument(help="Model bundle.")] = DEMO_BUNDLE,
    precision: Annotated[GpuPrecision, typer.Option(help="Of the feature network.")] = "f16",
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Lanes at a time.")] = 1,
) -> None:
    """Build the GPU plan of a bundle for this machine (needs the extra `gpu`)."""
    from mbr_live.engines.plan_program import build_program

    build_program(bundle, precision, batch)


@engine_app.command("list")
def engine_list() -> None:
    """The GPU plans of this machine; exit code 1 where one can not be used."""
    from mbr_live.engines.plan_program import list_program

    raise SystemExit(list_program())


@engine_app.command("remove")
def engine_remove(
    plans: Annotated[list[str] | None, typer.Argument(help="File names, as `engine list` shows them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
) -> None:
    """Delete GPU plans."""
    from mbr_live.engines.plan_program import remove_program

    remove_program(plans or [], every=every)


@calibrate_app.callback()
def _calibrate() -> None:
    pass


@calibrate_app.command("camera")
def calibrate_camera(
    name: Annotated[str, typer.Argument(help="Name of the camera in the configuration.")],
    config: Annotated[Path, typer.Option("--config", help="Configuration file (TOML).")],
    arena: Annotated[
        str | None, typer.Option(help="x,y,radius or left,top,right,bottom or x,y of corners, in px; else found.")
    ] = None,
    arena_cm: Annotated[float | None, typer.Option(min=0.1, help="Diameter or longest side of the arena.")] = None,
    px_per_cm: Annotated[float | None, typer.Option(min=0.01, help="Scale; else from --arena-cm.")] = None,
    seconds: Annotated[float, typer.Option(min=4, max=600, help="How long to look.")] = 30.0,
) -> None:
    """Find a camera's arena, scale and crop window, and keep a reference picture."""
    from mbr_live.cameras.calibrate import calibrate_camera_program

    calibrate_camera_program(
        load_config(config), name, arena=arena, arena_cm=arena_cm, px_per_cm=px_per_cm, seconds=seconds
    )


@calibrate_app.command("int8")
def calibrate_int8(
    bundle: Annotated[Path, typer.Argument(help="Model bundle; it gets the int8 features, unless --out is given.")],
    more: Annotated[list[Path] | None, typer.Argument(metavar="[VIDEO]...", help="More video files.")] = None,
    videos: Annotated[list[Path] | None, typer.Option("--videos", help="Video files to calibrate on.")] = None,
    dataset: Annotated[
        Path | None, typer.Option("--dataset", help="Dataset file with the truth; alone: its validation recordings.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of another bundle to write.")] = None,
    folder: Annotated[Path, typer.Option("--lists", help="Folder for the list of frames.")] = Path("calibration"),
    frames: Annotated[Path | None, typer.Option("--frames", help="Take the frames of this list again.")] = None,
) -> None:
    """Give a bundle 8-bit integer features (needs the extra `train`); refused where they label worse."""
    with extra("train", "calibrate"):
        from mbr_live.quantisation.program import calibrate_int8_program
    calibrate_int8_program(bundle, [*(videos or []), *(more or [])], dataset, out=out, folder=folder, frames=frames)
