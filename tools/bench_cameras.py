"""How many cameras can this machine carry, and how late is a label? Rendering is not what is measured.

    python tools/bench_cameras.py [--cameras 1 2 4 8 16 32 40 48] [--seconds 60] [--bundle engines/demo]
        [--set KEY=VALUE ...] [--size 640x480]

The pictures of a simulated camera are rendered once and kept in memory; every camera is a process of its own that
sends them, 10 a second, through the FrameSender over ZeroMQ to a real `mbr-live infer`, with a random phase, as
independent cameras have. `--set` puts any key of the configuration (such as an engine) into that of the inference.

Capture to label is from the instant at which a picture is due, so that a sender which the machine wakes up late counts
as late, to the row in the label log. Of each run the first seconds, in which the window of the crop settles, are
not measured; a frame lost in them is shown apart. A count of cameras *holds* when no frame is lost and p99 <= 100 ms;
the first count that does not ends the table.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mbr_live.config import DEMO_BUNDLE, Config, load_config
from mbr_live.live.lane import TIMINGS_SUFFIX
from mbr_live.simulation.camera import Simulation
from mbr_live.sinks.label_log import LABELS_SUFFIX, read_labels
from mbr_live.types import RATE_FPS, TICK_NS, Frame, Status
from mbr_live.wire.frames import FrameSender
from mbr_live.wire.messages import CaptureCounts
from mbr_live.wire.sockets import free_endpoints
from mbr_live.wire.status import StatusSubscriber

SETTLE_S = 12.0  # until every crop window has settled
START_S = 1.0  # for all senders to be waiting for their first tick
READY_WITHIN_S = 120.0
P99_MS = 100.0
FORK = multiprocessing.get_context("fork")  # the pictures are shared, and a sender starts at once
Pictures = NDArray[np.uint8]
"""uint8 [T, H, W, 3]."""


@dataclass(frozen=True)
class Sent:
    """What one sender says in the end."""

    counts: CaptureCounts
    origin_ns: int
    cpu_s: float
    late_ms: list[float]  # of every frame: from the instant at which it was due to its way into the socket


@dataclass(frozen=True)
class Result:
    """One row of the table."""

    cameras: int
    labelled: int
    lost: int
    lost_at_start: int
    latencies_ms: NDArray[np.float64] = field(repr=False)
    inference_cores: float
    senders_cores: float
    inference_mib: float
    sender_late_ms: float  # p99

    @property
    def holds(self) -> bool:
        return not self.lost and self.quantile_ms(0.99) <= P99_MS

    def quantile_ms(self, share: float) -> float:
        return float(np.quantile(self.latencies_ms, share, method="higher"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cameras", type=int, nargs="+", default=[1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the configuration")
    parser.add_argument("--size", default="640x480", help="of the pictures, WIDTHxHEIGHT")
    parser.add_argument("--pictures", type=int, default=240, help="rendered; shown forwards and backwards, in turn")
    parser.add_argument("--all", action="store_true", help="go on after a count that does not hold")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    table = _table(f"{arguments.seconds:.0f} s, {arguments.size} at {RATE_FPS} fps, bundle {arguments.bundle.name}")
    settings = dict(item.split("=", 1) for item in arguments.set)
    pictures = rendered(arguments.pictures, width, height)
    for count in arguments.cameras:
        result = measured(count, arguments.seconds, arguments.bundle, settings, pictures)
        table.add_row(*_cells(result))
        print(" | ".join(_cells(result)), flush=True)
        if not result.holds and not arguments.all:
            break
    Console(width=140).print(table)


def rendered(count: int, width: int, height: int) -> Pictures:
    """`count` consecutive pictures of the simulated box."""
    simulation = Simulation("box", 77)
    pictures = np.empty((count, height, width, 3), np.uint8)
    for n in track(range(count), "rendering", console=Console(stderr=True)):
        simulation.advance()
        cv2.resize(simulation.render(), (width, height), dst=pictures[n], interpolation=cv2.INTER_LINEAR)
    return pictures


def measured(count: int, seconds: float, bundle: Path, settings: dict[str, str], pictures: Pictures) -> Result:
    """Run `count` cameras to the end."""
    names = [f"cage{n:03}" for n in range(count)]
    ticks = round((SETTLE_S + seconds) * RATE_FPS)
    with tempfile.TemporaryDirectory() as folder:
        config_path = _written(Path(folder), names, bundle, settings)
        config = load_config(config_path)
        with senders(config, ticks, pictures) as (start, replies):
            process = _inference(config_path, config)
            start(time.monotonic_ns() + int(START_S * 1e9))
            sent = [reply.recv() for reply in replies]
            peak_mib = _peak_mib(process.pid)
        process.send_signal(signal.SIGTERM)
        cpu_s, status = _waited(process)
        if status:
            raise SystemExit(f"inference failed: {Path(folder, 'inference.log').read_text()[-2000:]}")
        return _result(config, sent, (cpu_s, peak_mib), ticks)


@contextmanager
def senders(config: Config, ticks: int, pictures: Pictures) -> Iterator[tuple[Callable[[int], None], list[Connection]]]:
    """One process per camera, forked before this one has any socket; a function that tells all of them when to begin
    (CLOCK_MONOTONIC, ns), and what they say in the end."""
    begin, start_ns = FORK.Event(), FORK.Value("q", 0)

    def start(instant_ns: int) -> None:
        start_ns.value = instant_ns
        begin.set()

    phases = random.Random(len(config.camera))
    processes, replies = [], []
    for camera in config.camera:
        reply, end = FORK.Pipe(duplex=False)
        phase_ns = phases.randrange(TICK_NS)
        at = (config.wire.frames, camera.name, phase_ns, phases.randrange(len(pictures)))
        process = FORK.Process(target=_send, args=(*at, ticks, pictures, (begin, start_ns), end), daemon=True)
        process.start()
        processes.append(process)
        replies.append(reply)
    try:
        yield start, replies
        for process in processes:
            process.join(10)
    finally:
        for process in processes:
            process.kill()


def _send(
    endpoint: str,
    camera: str,
    phase_ns: int,
    first: int,
    ticks: int,
    pictures: Pictures,
    start: tuple[Event, Synchronized[int]],
    end: Connection,
) -> None:
    """The life of one sender."""
    begin, instant_ns = start
    begin.wait()
    start_ns = instant_ns.value + phase_ns
    epoch_ns = time.time_ns() - time.monotonic_ns()
    sender = FrameSender(endpoint, camera, f"session-{camera}")
    sent, refused, late_ms = 0, 0, []
    loop = np.r_[0 : len(pictures), len(pictures) - 2 : 0 : -1]  # forwards and backwards: the animal never jumps
    origin_ns = start_ns + epoch_ns
    for tick in range(ticks):
        due_ns = start_ns + tick * TICK_NS
        time.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)
        picture = pictures[loop[(first + tick) % len(loop)]]
        taken = sender.send(Frame(camera, tick, tick, due_ns + epoch_ns, origin_ns, picture), due_ns)
        late_ms.append((time.monotonic_ns() - due_ns) / 1e6)
        sent, refused = sent + taken, refused + (not taken)
        if tick % RATE_FPS == 0:
            sender.heartbeat(_counts(tick, sent, refused))
    counts = _counts(ticks, sent, refused)
    sender.end(ticks - 1, origin_ns, counts)
    sender.close()
    end.send(Sent(counts, origin_ns, time.process_time(), late_ms))


def _counts(sampled: int, sent: int, refused: int) -> CaptureCounts:
    return CaptureCounts(source_frames=sampled, sampled=sampled, sent=sent, dropped_queue_full=refused)


def _written(folder: Path, names: Sequence[str], bundle: Path, settings: dict[str, str]) -> Path:
    """The configuration as a file; the sources in it are never opened, since no capture process is started."""
    cameras = [{"name": name, "source": {"kind": "simulated"}} for name in names]
    wire = dict(zip(("frames", "status"), free_endpoints(2), strict=True))
    document = {"out": str(folder), "bundle": str(bundle.resolve()), "wire": wire, "camera": cameras, **settings}
    path = folder / "system.json"
    path.write_text(json.dumps(document))
    return path


def _inference(config_path: Path, config: Config) -> subprocess.Popen[bytes]:
    """Start inference and wait until it is ready."""
    with (config.out / "inference.log").open("wb") as log:
        command = [sys.executable, "-m", "mbr_live", "infer", str(config_path)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    with closing(StatusSubscriber(config.wire.status)) as subscriber:
        for _ in subscriber.messages(READY_WITHIN_S):
            return process
    process.kill()
    raise SystemExit(f"inference is not ready: {(config.out / 'inference.log').read_text()[-2000:]}")


def _peak_mib(pid: int) -> float:
    """Largest resident memory so far. The operating system's account at the end includes what was forked."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith("VmHWM"))) / 1024


def _waited(process: subprocess.Popen[bytes]) -> tuple[float, int]:
    """CPU seconds of a process that ends, and its exit code."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime, process.returncode


def _result(config: Config, sent: Sequence[Sent], usage: tuple[float, float], ticks: int) -> Result:
    settled = round(SETTLE_S * RATE_FPS)
    labelled, lost, lost_at_start, latencies_ms = 0, 0, 0, []
    for camera in config.camera:
        rows = list(read_labels(config.out / f"{camera.name}{LABELS_SUFFIX}"))
        if [row.index for row in rows] != list(range(ticks)):
            raise SystemExit(
                f"{camera.name}: {len(rows)} rows in the label log, expected one for each of {ticks} ticks"
            )
        gaps = [row.index for row in rows if row.status == Status.GAP]
        lost += sum(index >= settled for index in gaps)
        lost_at_start += sum(index < settled for index in gaps)
        labelled += ticks - settled - sum(index >= settled for index in gaps)
        timings = (line.split(",") for line in (config.out / f"{camera.name}{TIMINGS_SUFFIX}").read_text().split()[1:])
        latencies_ms += [float(row[2]) for row in timings if int(row[0]) >= settled]
    wall_s = ticks / RATE_FPS
    late_ms = np.concatenate([of_camera.late_ms[settled:] for of_camera in sent])
    return Result(
        len(sent), labelled, lost, lost_at_start, np.array(latencies_ms), usage[0] / wall_s,
        sum(of_camera.cpu_s for of_camera in sent) / wall_s, usage[1], float(np.quantile(late_ms, 0.99)),
    )  # fmt: skip


def _table(title: str) -> Table:
    table = Table(title=title)
    columns = ("cameras", "labelled", "lost", "(at start)", "p50 ms", "p95 ms", "p99 ms", "max ms")
    for column in (*columns, "inference cores", "senders cores", "inference MiB", "sent late p99 ms", "holds"):
        table.add_column(column, justify="right")
    return table


def _cells(result: Result) -> tuple[str, ...]:
    quantiles = (f"{result.quantile_ms(share):.1f}" for share in (0.5, 0.95, 0.99, 1.0))
    return (
        str(result.cameras), str(result.labelled), str(result.lost), str(result.lost_at_start), *quantiles,
        f"{result.inference_cores:.2f}", f"{result.senders_cores:.2f}", f"{result.inference_mib:.0f}",
        f"{result.sender_late_ms:.1f}", "yes" if result.holds else "no",
    )  # fmt: skip


if __name__ == "__main__":
    main()
