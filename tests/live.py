"""How the system tests run the real thing: whole processes, real sockets, real files."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from mbr_live.config import DEMO_BUNDLE, Camera, Config, Simulated, VideoSource
from mbr_live.live.run import System, free_wire
from mbr_live.manifest import Manifest
from mbr_live.sinks.bouts import BOUTS_HEADER, BoutFollower, bout_row
from mbr_live.sinks.label_log import LabelRow, read_labels
from mbr_live.stages.decide import Bout
from mbr_live.wire.sockets import free_endpoints

PATIENCE_S = 120.0  # ends a wait for what never comes; how long anything takes on a busy machine is not tested


def wait_for(condition: Callable[[], object], what: str, system: System | None = None) -> None:
    """Wait until something is so, and look after a system meanwhile."""
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        if system is not None:
            system.look_after()
        if time.monotonic() > until_s:
            said = [child.last_words() for child in (system.inference, *system.captures)] if system else ""
            raise AssertionError(f"waited {PATIENCE_S:.0f} s for {what} {said}")
        time.sleep(0.02)


def labelled(out: Path, name: str, status: str = "") -> int:
    """Rows of a label log that a frame served, or those of one status; it may be about to be written."""
    path = out / f"{name}.labels.csv"
    if not path.exists() or not path.stat().st_size:
        return 0
    return sum(row.status == status if status else row.status != "gap" for row in read_labels(path, growing=True))


def mbr_live(
    *arguments: str | Path, timeout_s: float = 300, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `mbr-live` to its end."""
    command = [sys.executable, "-m", "mbr_live", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=cwd)


def free_endpoint() -> str:
    """An address that is free at the moment."""
    return free_endpoints(1)[0]


def system_config(out: Path, *cameras: Camera) -> Config:
    """A configuration with free addresses."""
    return Config(out=out, bundle=DEMO_BUNDLE, wire=free_wire(), camera=cameras)


def simulated(name: str, *, record: Literal["off", "h264", "lossless"] = "off", seed: int = 1) -> Camera:
    return Camera(name=name, source=Simulated(kind="simulated", seed=seed), record=record)


def played(video: Path, *, speed: float = 1.0, name: str | None = None) -> Camera:
    return Camera(name=name or video.stem, source=VideoSource(kind="file", path=video, speed=speed))


def bouts_of(rows: list[LabelRow], manifest: Manifest) -> str:
    """The bout log that a label log implies."""
    follower = BoutFollower(manifest)
    found: list[Bout] = []
    for row in rows:
        found += follower.follow(row.index, row.labels, row.probabilities)
    return "".join([BOUTS_HEADER + "\n", *map(bout_row, found + follower.end())])
