"""`mbr-live engine check`: what this machine computes with, whether it computes the same, how fast, and what `auto`
takes.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from mbr_live.bundle import Bundle, load_bundle
from mbr_live.engines import openvino_engine
from mbr_live.engines.choice import Choice, cache_folder, choose, cores, engine_of
from mbr_live.engines.gpu_probe import Gpus, probe_gpus
from mbr_live.engines.openvino_engine import OpenVinoEngine
from mbr_live.engines.parity import Parity, limits, one_frame, parity, passes, timed_s
from mbr_live.engines.protocol import Engine
from mbr_live.engines.tensorrt_engine import TensorRtEngine
from mbr_live.types import DEFAULT_ENGINE, EngineKind, MbrError

EXIT_FAILED = 1

_LIBRARIES = ("mbr-live", "openvino", "numpy", "torch", "onnx", "onnxruntime", "tensorrt", "cuda-python")
_INSTRUCTIONS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "bf16", "i8mm"),
)
_TIMED_S = 1.0


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to compute with."""

    versions: dict[str, str]
    cpu: str
    cores: int
    instructions: tuple[str, ...]
    memory_mib: int | None
    gpus: Gpus


@dataclass(frozen=True, slots=True)
class Checked:
    """One engine on this machine, with one thread and single lanes. Errors are against `reference`."""

    kind: EngineKind
    name: str | None  # None: it can not be opened
    refused: str | None
    convolutions: dict[str, int] | None  # by the precision that the compiled network reports; None: it reports none
    reference: str | None
    found: Parity | None
    allowed: Parity | None
    p50_ms: float | None  # crop to logits, one lane
    p99_ms: float | None
    frames_per_s: float | None

    @property
    def well(self) -> bool | None:
        """Whether it computes the same; None where it is not there."""
        return None if self.found is None or self.allowed is None else passes(self.found, self.allowed)


def check_program(bundle_path: Path, *, as_json: bool, anew: bool) -> int:
    """Print what was found; 0 when every engine that is there passes."""
    bundle = load_bundle(bundle_path)
    machine = machine_facts()
    checked = [check(bundle, kind) for kind in get_args(EngineKind)]
    choice = choose(bundle, anew=anew)
    console = Console(soft_wrap=True, highlight=False)
    if as_json:
        document = {"machine": asdict(machine), "engines": [{**asdict(each), "well": each.well} for each in checked]}
        console.print_json(data={**document, "auto": choice.model_dump()})
    else:
        _show(console, bundle, machine, checked, choice)
    return EXIT_FAILED if any(each.well is False for each in checked) else 0


def machine_facts() -> Machine:
    """Versions, CPU, memory and GPUs."""
    libraries = {name: found for name in _LIBRARIES if (found := _version(name))}
    return Machine(
        versions={"python": platform.python_version(), **libraries},
        cpu=openvino_engine.cpu_name(),
        cores=cores(),
        instructions=_instructions(),
        memory_mib=_memory_mib(),
        gpus=probe_gpus(),
    )


def check(bundle: Bundle, kind: EngineKind) -> Checked:
    """Open an engine, hold it against the reference and time it.

    The reference is openvino-f32, and torch for openvino-f32 itself, where it is installed.
    """
    try:
        engine = engine_of(bundle, kind)
    except MbrError as error:
        return Checked(kind, None, str(error), None, None, None, None, None, None, None)
    reference = _reference(bundle, kind)
    times_ms = [1000 * each for each in timed_s(lambda: one_frame(engine, bundle.manifest), _TIMED_S)]
    p50_ms, p99_ms = (round(float(np.percentile(times_ms, q)), 3) for q in (50, 99))
    return Checked(
        kind=kind,
        name=engine.name,
        refused=None,
        convolutions=_convolutions(engine),
        reference=reference.name if reference else None,
        found=parity(engine, reference, bundle.manifest) if reference else None,
        allowed=_allowed(bundle, engine) if reference else None,
        p50_ms=p50_ms,
        p99_ms=p99_ms,
        frames_per_s=round(1000 / p50_ms, 1),
    )


def _allowed(bundle: Bundle, engine: Engine) -> Parity:
    runtime, *_, precision = engine.name.split()
    return limits(bundle, precision, gpu=True) if runtime == "tensorrt" else limits(bundle, precision)


def _convolutions(engine: Engine) -> dict[str, int] | None:
    if isinstance(engine, TensorRtEngine):
        return engine.header.layers
    return engine.precisions() if isinstance(engine, OpenVinoEngine) else None


def _reference(bundle: Bundle, kind: EngineKind) -> Engine | None:
    if kind != DEFAULT_ENGINE:
        return engine_of(bundle, DEFAULT_ENGINE)
    try:
        return engine_of(bundle, "torch")
    except MbrError:
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _instructions() -> tuple[str, ...]:
    """Those that matter for speed, as Linux reports them; empty elsewhere."""
    file = Path("/proc/cpuinfo")
    words = set(file.read_text().split()) if file.is_file() else set()
    return tuple(name for name in _INSTRUCTIONS if name in words)


def _memory_mib() -> int | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20


def _show(console: Console, bundle: Bundle, machine: Machine, checked: list[Checked], choice: Choice) -> None:
    facts = Table("machine", "", title=f"bundle {bundle.manifest.name}")
    for name, found in machine.versions.items():
        facts.add_row(name, found)
    facts.add_row("CPU", f"{machine.cpu}, {machine.cores} cores to use")
    facts.add_row("instructions", " ".join(machine.instructions) or "not known")
    facts.add_row("memory", f"{machine.memory_mib} MiB" if machine.memory_mib else "not known")
    gpus = [f"{each.name}, {each.memory_mib} MiB, {each.compute_capability}" for each in machine.gpus.gpus]
    facts.add_row("NVIDIA GPU", "; ".join(gpus) if gpus else str(machine.gpus.why_none))
    console.print(facts)
    columns = ("engine", "runs in", "Δ features", "Δ p", "passes", "p50 ms", "p99 ms", "frames/s")
    title = "one thread, one lane, crop to logits; Δ: against the reference"
    table = Table(*columns, title=title, padding=(0, 0, 0, 1), show_edge=False)  # so that 80 columns are enough
    table.columns[0].min_width = max(len(each.kind) for each in checked)
    for each in checked:
        table.add_row(*_row(each))
    console.print(table)
    for each in checked:
        if each.refused:
            console.print(f"{each.kind}: {each.refused}", markup=False)
    console.print(f"{choice.why}\n(kept in {cache_folder()}; used only where --engine auto asks for it)", markup=False)


def _row(each: Checked) -> tuple[str, ...]:
    if each.refused:
        return each.kind, "not here", "", "", "", "", "", ""
    runs_in = each.convolutions or {}
    return (
        each.kind,
        ", ".join(f"{precision} ({count})" for precision, count in runs_in.items()) or "-",
        f"{each.found.feature_error:.1e}" if each.found else "-",
        f"{each.found.probability_error:.1e}" if each.found else "-",
        {True: "yes", False: "NO", None: "-"}[each.well],
        f"{each.p50_ms:.2f}",
        f"{each.p99_ms:.2f}",
        f"{each.frames_per_s:.0f}",
    )
