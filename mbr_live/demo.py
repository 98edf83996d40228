"""`mbr-live demo`: the whole system on simulated cameras, and the proof that live and offline say the same.

Three simulated cameras run live through real processes and ZeroMQ while a recording is made; the recording is then
labelled offline, the two label logs are compared byte by byte, and the simulator's own truth says what was found.
"""

from __future__ import annotations

import filecmp
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mbr_live.batch.batch import Job, Replayed, run_job
from mbr_live.bundle import load_bundle
from mbr_live.config import DEMO_BUNDLE, Camera, ConditionName, Config, Simulated, load_config
from mbr_live.engines.openvino_engine import OpenVinoEngine
from mbr_live.live.run import SYSTEM_FILE, free_wire, run
from mbr_live.monitoring.watch import watch
from mbr_live.simulation.camera import Simulation
from mbr_live.sinks.label_log import LABELS_SUFFIX, LabelRow, read_labels
from mbr_live.sinks.run_manifest import RUN_SUFFIX, read_run
from mbr_live.types import RATE_FPS, UNKNOWN, MbrError
from mbr_live.video.journal import JOURNAL_SUFFIX

# Seeds whose first half minute shows both behaviours; the model was not trained on them.
SCENES: tuple[tuple[ConditionName, int], ...] = (("box", 9219), ("clutter", 9318), ("dark", 9372))
EXIT_DIFFERENT = 1


@dataclass(frozen=True, slots=True)
class Found:
    """How one behaviour of one camera was found, against the simulator's truth."""

    true_s: float  # time that the behaviour lasted, on the ticks whose label is known
    agreed: float  # share of the known ticks on which label and truth agree
    onsets: int  # onsets in the truth, on known ticks
    delays_s: tuple[float, ...]  # from those onsets that were found to the first label


def demo(out: Path, *, seconds: float, plain: bool) -> int:
    """Run it all; 0 when the label logs of every camera are the same live and offline."""
    config = _config(out)
    _say(f"live: {len(SCENES)} simulated cameras for {seconds:.0f} s, through capture, ZeroMQ and inference")
    run(config, seconds=seconds, show=lambda over: watch(config.wire.status, minutes=1, plain=plain, stop=over))
    _say("offline: the recordings that were made on the way")
    offline = config.out / "offline"
    bundle = load_bundle(config.bundle)
    engine = OpenVinoEngine(bundle)
    same: dict[str, bool] = {}
    for camera in config.camera:
        name = camera.name
        live = read_run(config.out / f"{name}{RUN_SUFFIX}")
        job = Job(name, (config.out / f"{name}{JOURNAL_SUFFIX}",))
        run_job(job, offline, bundle, engine, replayed=Replayed(live.drops, live.restarts))
        log = f"{name}{LABELS_SUFFIX}"
        same[name] = filecmp.cmp(config.out / log, offline / log, shallow=False)
    Console().print(_detected(config, bundle.manifest.behaviour_names), _cameras(config, same))
    _say(f"label logs, bouts, recordings, manifests: {config.out}\nthe same offline: {offline}")
    if not all(same.values()):
        different = ", ".join(name for name, equal in same.items() if not equal)
        _say(f"live and offline DIFFER for {different}: this must not happen, please report it with {config.out}")
        return EXIT_DIFFERENT
    _say("the label logs are the same, byte by byte, live and offline")
    return 0


def _config(out: Path) -> Config:
    """An empty output folder and three cameras; only a folder that an earlier demo made is emptied."""
    out = out.resolve()
    cameras = tuple(
        Camera(name=condition, source=Simulated(kind="simulated", condition=condition, seed=seed), record="lossless")
        for condition, seed in SCENES
    )
    if out.exists() and any(out.iterdir()):
        made_by = out / SYSTEM_FILE
        if not made_by.exists() or load_config(made_by).camera != cameras:
            raise MbrError(f"{out}: holds something that is not of a demo. Give an empty folder with --out.")
        shutil.rmtree(out)
    wire = free_wire()
    return Config(out=out, bundle=DEMO_BUNDLE, wire=wire, camera=cameras)


def found(rows: list[LabelRow], truth: dict[int, bool], behaviour: int) -> Found:
    """Hold the labels of one behaviour against its truth, which is given per source frame."""
    known = [(row.index, row.labels[behaviour], truth[row.source_frame]) for row in rows if row.labels[0] != UNKNOWN]
    agreed = sum(label == true for _, label, true in known)
    onsets = [at for at, (_, _, true) in enumerate(known) if true and at and not known[at - 1][2]]
    delays: list[float] = []
    for onset in onsets:
        bout = known[onset:]
        length = next((n for n, (_, _, true) in enumerate(bout) if not true), len(bout))
        first = next((index for index, label, _ in bout[:length] if label), None)
        if first is not None:
            delays.append((first - known[onset][0]) / RATE_FPS)
    true_s = sum(true for _, _, true in known) / RATE_FPS
    return Found(true_s, agreed / max(len(known), 1), len(onsets), tuple(delays))


def _truth(condition: str, seed: int, frames: int) -> dict[str, dict[int, bool]]:
    """Per behaviour and source frame of a simulated recording, whether it is shown."""
    simulation = Simulation(condition, seed)
    moments = [simulation.advance() for _ in range(frames)]
    return {
        "grooming": {number: moment.grooming for number, moment in enumerate(moments)},
        "rearing": {number: moment.rearing for number, moment in enumerate(moments)},
    }


def _cameras(config: Config, same: dict[str, bool]) -> Table:
    table = Table(title="frames, and how late their labels came")
    for column in ("camera", "ticks", "without a frame", "latency p50", "p99", "live = offline"):
        table.add_column(column, justify="left" if column == "camera" else "right")
    for camera in config.camera:
        run_ = read_run(config.out / f"{camera.name}{RUN_SUFFIX}")
        latencies = (run_.timings.get(f"capture_to_label_{key}_ms", math.nan) for key in ("p50", "p99"))
        table.add_row(
            camera.name,
            str(sum(run_.rows.values())),
            str(run_.rows.get("gap", 0)),
            *(f"{latency:.0f} ms" for latency in latencies),
            "yes" if same[camera.name] else "NO",
        )
    return table


def _detected(config: Config, behaviours: tuple[str, ...]) -> Table:
    table = Table(title="what was detected, against the simulator's truth")
    for column in ("camera", "behaviour", "shown", "agreement", "onsets found", "after (s)"):
        table.add_column(column, justify="left" if column in ("camera", "behaviour", "after (s)") else "right")
    for (condition, seed), camera in zip(SCENES, config.camera, strict=True):
        rows = list(read_labels(config.out / f"{camera.name}{LABELS_SUFFIX}"))
        truth = _truth(condition, seed, max((row.source_frame for row in rows), default=-1) + 1)
        for k, behaviour in enumerate(behaviours):
            result = found(rows, truth[behaviour], k)
            table.add_row(
                camera.name if k == 0 else "",
                behaviour,
                f"{result.true_s:.1f} s",
                f"{result.agreed:.0%}",
                f"{len(result.delays_s)} of {result.onsets}",
                " ".join(f"{delay:.1f}" for delay in result.delays_s),
            )
    return table


def _say(text: str) -> None:
    Console(highlight=False, soft_wrap=True).print(text)
