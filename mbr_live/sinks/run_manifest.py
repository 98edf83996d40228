"""What a run was made of and what became of its frames: `<recording>.run.json`."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mbr_live.files import is_emptied, write_atomically
from mbr_live.types import MbrError

RUN_SUFFIX = ".run.json"
_CAPTURES_KNOWN = 4  # the last words of one that has ended may arrive behind the first of the next


class RunManifest(BaseModel):
    """What a run was made of and what became of its frames: `<recording>.run.json`."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    recording: str
    mode: Literal["live", "batch"]
    exit_status: Literal["running", "complete", "stopped"]
    started: str  # UTC, ISO 8601
    finished: str | None = None
    bundle: str
    bundle_sha256: str
    causal: bool = True  # False: labels look ahead, as no live run's do
    max_gap_frames: int | None = None  # unknown frames that a bout goes on over; None in runs from before it was kept
    engine: str
    versions: dict[str, str]
    sources: list[str]
    rows: dict[str, int] = {}  # of the label log, by status
    bouts: dict[str, int] = {}  # by behaviour
    drops: list[tuple[int, int]] = []  # first and last tick of every stretch without a frame
    restarts: list[int] = []  # the last tick before each restart of inference; the lane began anew after it
    window_px: int | None = None
    clock: str = ""  # of the capture times, live: host, camera, file or simulated
    outages: dict[str, int] = {}  # how often the camera was lost, by cause; each is in the outage log
    capture: dict[str, int] = {}  # what became of frames at capture, over all capture processes of the session
    captures: dict[str, dict[str, int]] = {}  # the part in it of each of the newest capture processes
    refused: dict[str, int] = {}  # frames that came but could not be used, by reason
    drift: dict[str, float] = {}  # distance by measure of `mbr_live.drift`; empty where nothing is known
    drifted: list[str] = []  # the measures that are unlike training
    timings: dict[str, float] = {}

    def count_capture(self, process: str, counts: dict[str, int]) -> None:
        """Take what a capture process has done with its frames so far."""
        known = self.captures.pop(process, {})
        for what, number in counts.items():
            self.capture[what] = self.capture.get(what, 0) + number - known.get(what, 0)
        self.captures[process] = counts
        for old in list(self.captures)[:-_CAPTURES_KNOWN]:
            del self.captures[old]


def write_run(path: Path, run: RunManifest) -> None:
    """Write the manifest of a run."""
    write_atomically(path, run.model_dump_json(indent=2) + "\n")


def left_run(path: Path) -> RunManifest | None:
    """The manifest that an earlier process left; None where there is none, or one that a power cut emptied."""
    if not path.exists() or is_emptied(path):
        return None
    return read_run(path)


def read_run(path: Path) -> RunManifest:
    """Read the manifest of a run; MbrError when it is not one."""
    try:
        return RunManifest.model_validate_json(path.read_text())
    except OSError as error:
        raise MbrError(f"{path}: cannot be read ({error.strerror}). Expected the {RUN_SUFFIX} of a run.") from error
    except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MbrError(
            f"{path}: this is not the {RUN_SUFFIX} of a run. Give the file that a live run wrote."
        ) from error


def versions() -> dict[str, str]:
    """Versions of everything that a label depends on."""
    names = ("mbr-live", "numpy", "opencv-python-headless", "openvino", "av", "pyzmq")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
