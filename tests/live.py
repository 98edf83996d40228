"""How the system tests run the real thing: whole processes, real sockets, real files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

from mbr_live.config import DEMO_BUNDLE, Camera, Config, Simulated, VideoSource, Wire
from mbr_live.label_log import LabelRow
from mbr_live.manifest import Manifest
from mbr_live.sinks import BOUTS_HEADER, BoutFollower, bout_row
from mbr_live.stages.decide import Bout
from mbr_live.wire import free_endpoint


def mbr_live(
    *arguments: str | Path, timeout_s: float = 120, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `mbr-live` to its end."""
    command = [sys.executable, "-m", "mbr_live", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=cwd)


def system_config(out: Path, *cameras: Camera) -> Config:
    """A configuration with free addresses."""
    return Config(
        out=out, bundle=DEMO_BUNDLE, wire=Wire(frames=free_endpoint(), status=free_endpoint()), camera=cameras
    )


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
