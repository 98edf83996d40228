"""Compiled GPU networks ("plans") on disk: made once per machine, kept under a key of all that they depend on.

A plan file is one line of JSON (the header), a line feed, and the plan. It is written whole or not at all, and what is
damaged, or of another key, is never given to a runtime, which would believe it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mbr_live.types import MbrError

PLAN_SUFFIX = ".plan"
_MAX_HEADER_BYTES = 65536

GpuPrecision = Literal["f32", "f16", "int8"]


class PlanKey(BaseModel):
    """Everything that a plan depends on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    tensorrt: str  # full version: plans of one are nothing to another
    gpu: str
    compute_capability: str
    driver: str
    bundle: str  # its name, for people
    graph_sha256: str  # of the ONNX file
    precision: GpuPrecision
    converter: str  # versions of what makes the graph of that precision; "" where it is the ONNX file itself
    batch: int  # lanes at a time

    @property
    def file_name(self) -> str:
        """Name of the plan's file."""
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()
        return f"{self.bundle}-{self.precision}-b{self.batch}-{digest[:16]}{PLAN_SUFFIX}"


class PlanHeader(BaseModel):
    """First line of a plan file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: PlanKey
    plan_sha256: str
    plan_bytes: int
    built: str  # UTC, ISO 8601
    build_s: float
    layers: dict[str, int] = {}  # of the built engine, by precision, as its inspector reports them


@dataclass(frozen=True, slots=True)
class Kept:
    """A file of the cache."""

    path: Path
    header: PlanHeader | None  # None: it can not be used
    problem: str | None = None


def plan_folder() -> Path:
    """Where plans are kept: they are of this machine, and never part of a bundle."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mbr-live" / "plans"


def timings_file(folder: Path, key: PlanKey) -> Path:
    """Where what one build has measured is kept for the next, which need not measure it: of one GPU and one TensorRT,
    since elsewhere another kernel is the fastest, or computes something else.
    """
    measured_on = (key.tensorrt, key.gpu, key.compute_capability, key.driver)
    return folder / f"timing-{hashlib.sha256(' '.join(measured_on).encode()).hexdigest()[:16]}.cache"


def write_plan(folder: Path, header: PlanHeader, plan: bytes) -> Path:
    """Keep a plan, in place of one with the same key. MbrError where the disk does not take it."""
    path = folder / header.key.file_name
    write_whole(path, header.model_dump_json().encode() + b"\n" + plan)
    return path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there only when all of it is; another of that name stays until then. MbrError where the disk
    does not take it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.stem}.", suffix=".part") as beside:
            part = Path(beside, path.name)
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
    except OSError as error:
        raise MbrError(f"{path} cannot be written ({error.strerror}). Make room, or set XDG_CACHE_HOME.") from error


def read_plan(folder: Path, key: PlanKey) -> tuple[PlanHeader, bytes] | None:
    """The plan of a key; None where there is none that is whole and of exactly this key."""
    path = folder / key.file_name
    try:
        header, plan = _parts(path.read_bytes())
    except (OSError, ValueError):
        return None
    return (header, plan) if header.key == key else None


def kept_plans(folder: Path) -> list[Kept]:
    """All plan files of a folder, with what is wrong with them."""
    found = []
    for path in sorted(folder.glob(f"*{PLAN_SUFFIX}")):
        try:
            header, _ = _parts(path.read_bytes())
        except (OSError, ValueError) as error:
            found.append(Kept(path, None, str(error)))
        else:
            renamed = None if path.name == header.key.file_name else "its name is that of another plan"
            found.append(Kept(path, None if renamed else header, renamed))
    return found


def _parts(content: bytes) -> tuple[PlanHeader, bytes]:
    """ValueError says what is wrong."""
    line, feed, plan = content[:_MAX_HEADER_BYTES].partition(b"\n")
    if not feed:
        raise ValueError("no header")
    plan = content[len(line) + 1 :]
    try:
        header = PlanHeader.model_validate_json(line)
    except ValidationError as error:
        raise ValueError("a header of another version, or damaged") from error
    if len(plan) != header.plan_bytes:
        raise ValueError(f"cut off: {len(plan)} of {header.plan_bytes} bytes")
    if hashlib.sha256(plan).hexdigest() != header.plan_sha256:
        raise ValueError("damaged: its bytes are not those of its hash")
    return header, plan
