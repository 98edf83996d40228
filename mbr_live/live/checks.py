"""What must be so before a live system can start, and what had better be. `run` refuses what `doctor` calls an error.

A camera that does not open is an error where its session would begin, most often a mistake in the configuration; where
the session goes on, it is a warning, since the system starts and waits for it: after a power cut the cameras may need
longer than the computer.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import stat
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from mbr_live.bundle import Bundle, check_live, load_bundle
from mbr_live.cameras.calibration import load_calibration, load_reference
from mbr_live.cameras.live_camera import LiveCamera
from mbr_live.cameras.log import CameraLog
from mbr_live.config import Camera, Config, NetworkCamera
from mbr_live.engines.choice import kind_of, open_engine
from mbr_live.engines.parity import one_frame, timed_s
from mbr_live.holding import INFERENCE, OUTPUT, capture_of, refuse_held
from mbr_live.keys import load_keys
from mbr_live.places import writable
from mbr_live.sinks.label_log import LABELS_SUFFIX, last_frame
from mbr_live.sinks.run_manifest import RUN_SUFFIX, left_run
from mbr_live.triggers.output import check_outputs
from mbr_live.types import RATE_FPS, EngineKind, MbrError
from mbr_live.video.journal import JOURNAL_SUFFIX
from mbr_live.wire.frames import FrameReceiver
from mbr_live.wire.status import StatusPublisher

LEAST_FREE_MB, FEW_FREE_MB = 100.0, 5000.0
SLOW_DISK_MB_PER_S = 20.0
_SPEED_PROBE_MB = 16
_ENGINE_PROBE_S = 0.2
_TIME_ERROR = 5  # of adjtimex(2): nobody sets the clock

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    subject: str
    text: str  # what was found and, where it is not ok, what to do


def start_checks(config: Config) -> Iterator[Finding]:
    """What `run` looks at before it starts, and `doctor` too."""
    yield from _bundle(config)
    yield from _engine(config)
    yield from _folder(config)
    yield from _ports(config)
    yield from _monitor(config)
    yield from _outputs(config)
    yield from _calibrations(config)
    yield from _cameras(config, watch_s=0.0)


def refuse_errors(findings: Iterable[Finding]) -> None:
    """MbrError where anything is an error."""
    errors = [finding.text for finding in findings if finding.level == "error"]
    if errors:
        raise MbrError("\n".join(errors))


def doctor_checks(config: Config, watch_s: float) -> Iterator[Finding]:
    """All checks. Cameras are watched for `watch_s` seconds, to see their true frame rate."""
    yield from _bundle(config)
    yield from _engine(config)
    yield from _folder(config)
    yield from _disk_speed(config.out)
    yield from _ports(config)
    yield from _monitor(config)
    yield from _outputs(config)
    yield _clock()
    yield from _calibrations(config)
    yield from _secrets(config)
    yield from _cameras(config, watch_s=watch_s)


def _bundle(config: Config) -> Iterator[Finding]:
    try:
        bundle = live_bundle(config)
    except MbrError as error:
        yield Finding("error", "bundle", str(error))
    else:
        yield Finding("ok", "bundle", f"{bundle.manifest.name}, {bundle.sha256[:12]}")


def live_bundle(config: Config) -> Bundle:
    """The bundle of a configuration; MbrError where it looks ahead, or cannot go on with the labels that are there."""
    bundle = load_bundle(config.bundle)
    check_live(bundle)
    _refuse_other_labels(config, bundle)
    return bundle


def _refuse_other_labels(config: Config, bundle: Bundle) -> None:
    """MbrError where labels that would be gone on with are of no live session, or of one with another bundle."""
    for camera in config.camera:
        labels, path = (config.out / f"{camera.name}{suffix}" for suffix in (LABELS_SUFFIX, RUN_SUFFIX))
        run = left_run(path) if last_frame(labels) >= 0 else None
        if run is not None and run.mode != "live":
            raise MbrError(
                f"{labels}: these are the labels of a recording, with which no live session goes on. Set another `out`."
            )
        if run is not None and run.bundle_sha256 != bundle.sha256:
            raise MbrError(
                f"{labels}: its labels are of the bundle {run.bundle} ({run.bundle_sha256[:12]}), {bundle.path} is "
                f"{bundle.manifest.name} ({bundle.sha256[:12]}), and a log is of one model. Use the bundle that the "
                "session began with, or another folder."
            )


def recorded_engine(config: Config) -> EngineKind | None:
    """The engine of the labels that are there and will be gone on with; None where there are none."""
    runs = [config.out / f"{camera.name}{RUN_SUFFIX}" for camera in config.camera]
    kinds = {path: kind_of(run.engine) for path in runs if (run := left_run(path)) is not None}
    if len(set(kinds.values())) > 1:
        raise MbrError(
            f"{config.out}: its sessions were labelled with several engines "
            f"({', '.join(f'{path.name}: {kind}' for path, kind in kinds.items())}), and one process has one. "
            "Give another folder."
        )
    return next(iter(kinds.values()), None)


def _engine(config: Config) -> Iterator[Finding]:
    """Whether the engine that will serve can be opened, and how long it takes for a frame: in a process of its own, so
    that a runtime that crashes is told like any other trouble, and none stays in the supervisor.
    """
    try:
        live_bundle(config)
    except MbrError:
        return  # `bundle` has said so
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            yield pool.submit(_opened_engine, config).result()
        except BrokenProcessPool:
            text = f"engine {config.engine}: the process that opened it crashed. Use another: mbr-live engine check."
            yield Finding("error", "engine", text)


def _opened_engine(config: Config) -> Finding:
    bundle = load_bundle(config.bundle)
    try:
        engine = open_engine(bundle, config.engine, recorded=recorded_engine(config))
    except MbrError as error:
        # A session of the GPU's can begin on the CPU, but not go on there.
        begins = config.engine.startswith("tensorrt-") and not _goes_on(config)
        return Finding("warning" if begins else "error", "engine", str(error))
    times_ms = [1000 * seconds for seconds in timed_s(lambda: one_frame(engine, bundle.manifest), _ENGINE_PROBE_S)]
    return Finding("ok", "engine", f"{engine.name}, {statistics.median(times_ms):.1f} ms a frame")


def _goes_on(config: Config) -> bool:
    return any((config.out / f"{camera.name}{RUN_SUFFIX}").exists() for camera in config.camera)


def _folder(config: Config) -> Iterator[Finding]:
    """Whether results can be written, by nobody else meanwhile, and whether there is room. Leaves nothing behind."""
    try:
        there = writable(config.out)
    except OSError as error:
        text = (
            f"{config.out}: results cannot be written ({error.strerror}). Check its permissions, or set another `out`."
        )
        yield Finding("error", "out", text)
        return
    outputs = (OUTPUT,) if config.trigger else ()
    for work in (INFERENCE, *outputs, *(capture_of(camera.name) for camera in config.camera)):
        try:
            refuse_held(config.out, work)
        except MbrError as error:
            yield Finding("error", "out", str(error))
    yield free_space(config.out, shutil.disk_usage(there).free / 1e6)


def free_space(out: Path, free_mb: float) -> Finding:
    """What to say of so much free space."""
    if free_mb < LEAST_FREE_MB:
        text = f"{out}: {free_mb:.0f} MB are free, at least {LEAST_FREE_MB:.0f} MB are needed. Make room on the disk."
        return Finding("error", "disk", text)
    if free_mb < FEW_FREE_MB:
        text = f"{out}: {free_mb / 1000:.1f} GB are free, which recordings fill soon. Make room, or record less."
        return Finding("warning", "disk", text)
    return Finding("ok", "disk", f"{free_mb / 1000:.0f} GB free in {out}")


def _disk_speed(out: Path) -> Iterator[Finding]:
    try:
        with tempfile.TemporaryFile(dir=writable(out)) as file:
            data = os.urandom(1_000_000)
            start_s = time.perf_counter()
            for _ in range(_SPEED_PROBE_MB):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
            speed = _SPEED_PROBE_MB / (time.perf_counter() - start_s)
    except OSError:
        return  # `out` has said so
    if speed < SLOW_DISK_MB_PER_S:
        text = f"{out}: the disk writes {speed:.0f} MB/s, {SLOW_DISK_MB_PER_S:.0f} are little. Use a local disk."
        yield Finding("warning", "disk speed", text)
    else:
        yield Finding("ok", "disk speed", f"{speed:.0f} MB/s")


def _ports(config: Config) -> Iterator[Finding]:
    try:
        keys = load_keys(config.wire.keys)
        FrameReceiver(config.wire.frames, keys).close()
        StatusPublisher(config.wire.status, keys).close()
    except MbrError as error:
        yield Finding("error", "ports", str(error))
    else:
        yield Finding("ok", "ports", f"{config.wire.frames} and {config.wire.status} are free")


def _monitor(config: Config) -> Iterator[Finding]:
    settings = config.monitor
    if settings is None:
        return
    if settings.metrics_port is not None:
        try:
            socket.create_server(("127.0.0.1", settings.metrics_port)).close()
        except OSError as error:
            text = f"monitor.metrics_port {settings.metrics_port} cannot be had ({error.strerror}). Set another."
            yield Finding("error", "monitor", text)
            return
    if settings.alarm_command and shutil.which(settings.alarm_command[0]) is None:
        text = f"monitor.alarm_command: {settings.alarm_command[0]} is no program that can be run. Check its path."
        yield Finding("error", "monitor", text)
        return
    yield Finding("ok", "monitor", "can start")


def _outputs(config: Config) -> Iterator[Finding]:
    """Whether triggers are such as the bundle has behaviours for, and every output opens; they are let go again."""
    if not config.trigger and not config.output:
        return
    try:
        check_outputs(config)
    except MbrError as error:
        yield Finding("error", "outputs", str(error))
    else:
        yield Finding("ok", "outputs", f"{len(config.trigger)} triggers, {len(config.output)} outputs that open")


def _clock() -> Finding:
    if sys.platform != "linux":
        return Finding("ok", "clock", "not looked at on this system")
    timex = ctypes.create_string_buffer(1024)  # struct timex, all zero: only ask
    if ctypes.CDLL(None).adjtimex(timex) == _TIME_ERROR:
        text = (
            "the clock is not kept by a time server, so times of several computers will not agree. Start one: "
            "timedatectl set-ntp true."
        )
        return Finding("warning", "clock", text)
    return Finding("ok", "clock", "kept by a time server")


def _calibrations(config: Config) -> Iterator[Finding]:
    for camera in config.camera:
        subject = f"calibration of {camera.name}"
        try:
            found = load_calibration(config.calibration, camera.name)
            load_reference(config.calibration, camera.name)
        except MbrError as error:
            yield Finding("error", subject, str(error))
        else:
            yield Finding("ok", subject, f"of {found.made[:10]}" if found else "none, the crop window is found")


def _secrets(config: Config) -> Iterator[Finding]:
    for camera in config.camera:
        path = camera.source.password_file if isinstance(camera.source, NetworkCamera) else None
        if path is not None and path.exists() and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            text = f"{path}: other users can read this password. Run: chmod 600 {path}"
            yield Finding("warning", f"password of {camera.name}", text)


def _cameras(config: Config, watch_s: float) -> Iterator[Finding]:
    with ThreadPoolExecutor(max_workers=len(config.camera)) as pool:
        yield from pool.map(lambda camera: _camera(config, camera, watch_s), config.camera)


def _camera(config: Config, camera: Camera, watch_s: float) -> Finding:
    subject = f"camera {camera.name}"
    try:
        size, fps = _watched(camera, watch_s)
    except MbrError as error:
        goes_on = (config.out / f"{camera.name}{JOURNAL_SUFFIX}").exists()
        return Finding("warning" if goes_on else "error", subject, str(error))
    if fps is not None and fps < 0.95 * RATE_FPS:
        text = f"{camera.name}: {fps:.1f} frames a second come, {RATE_FPS} are needed. Set the camera's rate."
        return Finding("warning", subject, text)
    rate = "" if fps is None else f", {fps:.1f} frames a second"
    return Finding("ok", subject, f"{size[0]} x {size[1]} px{rate}")


def _watched(camera: Camera, watch_s: float) -> tuple[tuple[int, int], float | None]:
    """Width and height of the pictures, and their rate where it was watched. MbrError when it does not deliver."""
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(CameraLog(Path(folder, "camera.csv"))) as log,
        closing(LiveCamera(camera, log, None)) as live,
    ):
        until_s = None
        while not live.ended and (until_s is None or time.monotonic() < until_s):
            if live.poll(0.1) is not None and until_s is None:
                until_s = time.monotonic() + watch_s
            if live.lost is not None:
                raise MbrError(live.lost.text)
        if log.began is None:
            raise MbrError(f"camera {camera.name}: it ended before a frame came. Expected a camera, or a longer video.")
        fps = live.source_fps(time.monotonic()) if watch_s else None
        return (log.began.width_px, log.began.height_px), fps
