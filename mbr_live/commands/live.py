"""Commands of live systems: their processes, what looks at them, what prepares them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mbr_live.commands.options import (
    BundleOption,
    ConfigFile,
    EngineOption,
    KeysOption,
    Out,
    Plain,
    Seconds,
    Videos,
    WindowPx,
    extra,
)
from mbr_live.config import DEMO_BUNDLE, Config, Loss, load_config
from mbr_live.processes import stop_signal
from mbr_live.types import EngineWish

app = typer.Typer()


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
def monitor(config: ConfigFile) -> None:
    """The monitor process: metrics for Prometheus, and the alarm command (needs the extra `service`)."""
    with extra("service", "monitor"):
        from mbr_live.monitoring.monitor import monitor as program
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
    speed: Annotated[float, typer.Option(min=0.01, max=1000, help="Times real time.")] = 1.0,
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
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the results; emptied first.")] = Path("demo-run"),
    seconds: Annotated[float, typer.Option(min=10, help="Length of the live part.")] = 30.0,
    plain: Plain = False,
) -> None:
    """Simulated cameras live for 30 s, then the same offline, compared byte by byte."""
    from mbr_live.demo import demo as program

    raise SystemExit(program(out, seconds=seconds, plain=plain))
