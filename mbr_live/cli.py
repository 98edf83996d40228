"""The command line: every program of mbr-live, and nothing that a program does itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mbr_live import __version__
from mbr_live.config import DEMO_BUNDLE, Config, Loss, load_config
from mbr_live.engines.plans import GpuPrecision
from mbr_live.logs import LOG_VARIABLE, LogFormat, begin_logging
from mbr_live.processes import EXIT_USER_ERROR, stop_signal
from mbr_live.types import EngineWish, MbrError

# The programs import what they need when they are called: `mbr-live --help` must not wait for an inference engine.
app = typer.Typer(
    help="Behaviour labels for a mouse, live from a camera and the same from a file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
calibrate_app = typer.Typer(help="Fit what was trained, or a camera, to a lab.", no_args_is_help=True)
app.add_typer(calibrate_app, name="calibrate")
dataset_app = typer.Typer(help="Annotated recordings to train on.", no_args_is_help=True)
app.add_typer(dataset_app, name="dataset")
engine_app = typer.Typer(help="What computes the networks on this machine.", no_args_is_help=True)
app.add_typer(engine_app, name="engine")

Out = Annotated[Path, typer.Option("--out", help="Folder for the results.")]
BundleOption = Annotated[Path, typer.Option("--bundle", help="Model bundle.")]
Videos = Annotated[list[Path], typer.Argument(help="Video files.")]
ConfigFile = Annotated[Path, typer.Argument(help="Configuration file (TOML).")]
DatasetFile = Annotated[Path, typer.Argument(help="Dataset file (TOML).")]
KeysOption = Annotated[Path | None, typer.Option("--keys", help="Folder of keys, where the system has them.")]
WindowPx = Annotated[int | None, typer.Option("--window-px", min=16, help="Side of the crop window; else found.")]
EngineOption = Annotated[EngineWish | None, typer.Option("--engine", help="What computes the networks.")]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights", help="File that the extractor starts from (.pth, .safetensors), for what the dataset says."
    ),
]
Plain = Annotated[bool, typer.Option("--plain", help="Lines of text instead of a dashboard.")]
Seconds = Annotated[float | None, typer.Option("--seconds", min=0.1, help="Stop after this time.")]


def main() -> None:
    """Run the command line; an error that the user can mend is one paragraph and exit code 2."""
    # Several processes share the cores: OpenCV's threads would cost more CPU than they save time on small pictures.
    os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")
    try:
        app()
    except MbrError as error:
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"mbr-live: {error}")
        raise SystemExit(EXIT_USER_ERROR) from error


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


@app.command()
def run(config: ConfigFile, engine: EngineOption = None, seconds: Seconds = None, plain: Plain = False) -> None:
    """Run all processes of one configuration, with a dashboard."""
    _run_system(_with_engine(load_config(config), engine), seconds, plain)


@app.command()
def doctor(config: ConfigFile) -> None:
    """Check cameras, bundle, disk, clock, ports and permissions; exit code 1 where `run` would refuse to start."""
    from mbr_live.live.doctor import doctor_program

    raise SystemExit(doctor_program(load_config(config)))


@app.command()
def capture(
    config: ConfigFile, camera: Annotated[str, typer.Argument(help="Name of the camera in the configuration.")]
) -> None:
    """The capture process of one camera: frames at 10 fps to inference."""
    from mbr_live.live import capture as program

    loaded = load_config(config)
    program.capture(loaded, loaded.camera_named(camera))


@app.command()
def infer(config: ConfigFile, engine: EngineOption = None) -> None:
    """The inference process of all cameras: labels to the logs and to whoever watches."""
    from mbr_live.live import infer as program

    program.infer(_with_engine(load_config(config), engine))


def _with_engine(config: Config, engine: EngineWish | None) -> Config:
    """What the command line says goes before what the configuration says."""
    return config.model_copy(update={"engine": engine}) if engine else config


@app.command()
def output(config: ConfigFile) -> None:
    """The output process: triggers on the labels of inference."""
    from mbr_live.triggers import output as program

    program.output(load_config(config))


@app.command("latency-test")
def latency_test(
    out: Out,
    config: Annotated[
        Path | None, typer.Option("--config", help="Measure its first camera; else a simulated one.")
    ] = None,
    output: Annotated[str | None, typer.Option(help="Line of the configuration to pulse; else its first.")] = None,
    seconds: Annotated[float, typer.Option(min=5, help="How long to measure.")] = 60.0,
    bundle: BundleOption = DEMO_BUNDLE,
) -> None:
    """Measure from a frame in memory to a pulse, by stage: a trigger fires every 0.3 s."""
    from mbr_live.live.latency_test import latency_program

    loaded = load_config(config) if config else None
    latency_program(out, bundle, seconds, config=loaded, output=output)


@app.command()
def watch(
    endpoint: Annotated[str, typer.Option(help="Status address of the system.")] = "tcp://127.0.0.1:5602",
    minutes: Annotated[float, typer.Option(min=0.2, max=60, help="Length of the ethogram.")] = 3.0,
    keys: KeysOption = None,
    plain: Plain = False,
    seconds: Seconds = None,
) -> None:
    """The dashboard of a running system."""
    from mbr_live.keys import load_keys
    from mbr_live.monitoring import watch as program

    known = load_keys(keys)
    with stop_signal() as stop:
        program.watch(endpoint, minutes=minutes, plain=plain, seconds=seconds, stop=lambda: stop.requested, keys=known)


@app.command()
def status(
    config: ConfigFile,
    as_json: Annotated[bool, typer.Option("--json", help="What inference says, as JSON.")] = False,
) -> None:
    """How a running system is; exit code 1 where a camera is not live, 2 where inference says nothing."""
    from mbr_live.monitoring.status_program import status_program

    raise SystemExit(status_program(load_config(config), as_json=as_json))


@app.command()
def store(
    sources: Annotated[list[Path], typer.Argument(help="Folders of logs; or the configuration of a running system.")],
    url: Annotated[str | None, typer.Option(help="sqlite:///PATH or postgresql+psycopg://USER@HOST/DATABASE.")] = None,
) -> None:
    """Bring logs into a database: once for folders, until stopped for a running system (needs the extra `store`)."""
    try:
        from mbr_live.store.program import follow_program, store_program
    except ModuleNotFoundError as error:
        raise MbrError(f"store: {error.name} is not installed. Run: pip install 'mbr-live[store]'") from error
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
    try:
        from mbr_live.store.parquet_program import follow_parquet, parquet_program
    except ModuleNotFoundError as error:
        raise MbrError(f"parquet: {error.name} is not installed. Run: pip install 'mbr-live[store]'") from error
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


@app.command()
def monitor(config: ConfigFile) -> None:
    """The monitor process: metrics for Prometheus, and the alarm command (needs the extra `service`)."""
    try:
        from mbr_live.monitoring.monitor import monitor as program
    except ModuleNotFoundError as error:
        raise MbrError(f"monitor: {error.name} is not installed. Run: pip install 'mbr-live[service]'") from error
    program(load_config(config))


@app.command()
def service(
    config: ConfigFile,
    user: Annotated[str, typer.Option(help="Whom the services run as.")] = "mbr",
    root: Annotated[Path, typer.Option(help="File system to write to, for preparing another machine.")] = Path("/"),
    install: Annotated[bool, typer.Option("--install", help="Do it, instead of showing it.")] = False,
) -> None:
    """Show what makes a system services of systemd, or do it."""
    from mbr_live.live.service import service_program

    service_program(config, load_config(config), user=user, root=root, install=install)


@app.command()
def keys(
    folder: Annotated[Path, typer.Argument(help="Folder for the keys of this machine.")],
    inference: Annotated[
        Path | None, typer.Option(help="`own.key` of the machine that inference runs on; else it is this one.")
    ] = None,
) -> None:
    """Make the keys of this machine, for sockets that cross a network."""
    from mbr_live.keys import AUTHORIZED, make_keys

    public = make_keys(folder, inference)
    print(f"made the keys of this machine in {folder}; set wire.keys in the configuration to this folder")
    if inference is None:
        print(
            f"other machines: give them {public}, and put their own.key under another name into {folder / AUTHORIZED}"
        )
    else:
        print(f"put {public} under another name into the folder {AUTHORIZED} of the machine that inference runs on")


@app.command()
def replay(
    videos: Videos,
    out: Out,
    bundle: BundleOption = DEMO_BUNDLE,
    speed: Annotated[float, typer.Option(help="Times real time.")] = 1.0,
    drop: Annotated[float, typer.Option(min=0.0, max=0.99, help="Fraction of the frames to lose on the way.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Which frames are lost.")] = 0,
    window_px: WindowPx = None,
    engine: EngineOption = None,
    plain: Plain = False,
) -> None:
    """Play video files as live cameras through the real processes."""
    from mbr_live.live.run import replay_config

    loss = Loss(fraction=drop, seed=seed) if drop else None
    config = replay_config(videos, out, bundle, speed=speed, loss=loss, window_px=window_px)
    _run_system(_with_engine(config, engine), None, plain)


def _run_system(config: Config, seconds: float | None, plain: bool) -> None:
    from mbr_live.keys import load_keys
    from mbr_live.live.run import run as run_system
    from mbr_live.monitoring.watch import watch as show

    known = load_keys(config.wire.keys)
    run_system(config, seconds=seconds, show=lambda over: show(config.wire.status, plain=plain, stop=over, keys=known))
    print(f"labels, bouts and manifests: {config.out}")


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
) -> None:
    """Label recorded files; with --drops, with the engine of that run."""
    from mbr_live.batch.program import batch_program

    raise SystemExit(
        batch_program(videos, out, bundle, join=join, drops=drops, window_px=window_px, wish=engine, at_once=at_once)
    )


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
    try:
        from mbr_live.quantisation.program import calibrate_int8_program
    except ModuleNotFoundError as error:
        raise MbrError(f"calibrate: {error.name} is not installed. Run: pip install 'mbr-live[train]'") from error
    calibrate_int8_program(bundle, [*(videos or []), *(more or [])], dataset, out=out, folder=folder, frames=frames)


@app.command()
def train(
    dataset: DatasetFile,
    out: Annotated[Path, typer.Option("--out", help="Folder of the bundle.")],
    logs: Annotated[Path | None, typer.Option("--logs", help="Folder for learning curves (TensorBoard).")] = None,
    weights: Weights = None,
) -> None:
    """Train a model bundle (needs the extra `train`)."""
    try:
        from mbr_live.training.train import train_program
    except ModuleNotFoundError as error:
        raise MbrError(f"train: {error.name} is not installed. Run: pip install 'mbr-live[train]'") from error
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
    try:
        from mbr_live.evaluation.program import evaluate_program
    except ModuleNotFoundError as error:
        raise MbrError(f"evaluate: {error.name} is not installed. Run: pip install 'mbr-live[train]'") from error
    evaluate_program(labels, name or [], truth, out, split=split)


@app.command()
def crossvalidate(
    dataset: DatasetFile,
    out: Out,
    folds: Annotated[
        int | None, typer.Option(min=3, help="Number of folds; else one group of each condition is left out at a time.")
    ] = None,
    weights: Weights = None,
) -> None:
    """Train without some groups, label them, and score all that was left out (needs the extra `train`)."""
    try:
        from mbr_live.training.crossvalidate import crossvalidate_program
    except ModuleNotFoundError as error:
        raise MbrError(f"crossvalidate: {error.name} is not installed. Run: pip install 'mbr-live[train]'") from error
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
    try:
        from mbr_live.training.ensemble import ensemble_program
    except ModuleNotFoundError as error:
        raise MbrError(f"ensemble: {error.name} is not installed. Run: pip install 'mbr-live[train]'") from error
    if weights not in ("mean", "learnt"):
        raise MbrError(f"ensemble: --weights {weights}: expected mean or learnt.")
    ensemble_program(bundles, out, "learnt" if weights == "learnt" else "mean", dataset)


@app.command()
def tune(
    dataset: DatasetFile,
    out: Annotated[Path, typer.Option("--out", help="Folder of the study; one that was interrupted goes on.")],
) -> None:
    """Search for the settings of the best model, as [tune] in the dataset file says (needs the extra `train`)."""
    try:
        from mbr_live.training.tune import tune_program
    except ModuleNotFoundError as error:
        raise MbrError(f"tune: {error.name} is not installed. Run: pip install 'mbr-live[train]'") from error
    tune_program(dataset, out)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; emptied first.")] = Path("demo-run"),
    seconds: Annotated[float, typer.Option(min=10, help="Length of the live part.")] = 30.0,
    plain: Plain = False,
) -> None:
    """Simulated cameras live for 30 s, then the same offline, compared byte by byte."""
    from mbr_live.demo import demo as program

    raise SystemExit(program(out, seconds=seconds, plain=plain))
