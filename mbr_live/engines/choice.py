"""Which engine computes: one that was named, or the fastest of this machine that computes the same.

`auto` measures once and writes down what it found: $XDG_CACHE_HOME/mbr-live/engines/<key>.json, where the key is of the
CPU, the number of cores, the version of OpenVINO and the bundle. It is never chosen unasked: its precision, and with it
the labels, are those of one machine.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from mbr_live.bundle import Bundle
from mbr_live.engines import openvino_engine
from mbr_live.engines.openvino_engine import OpenVinoEngine, Precision
from mbr_live.engines.parity import limits, parity, passes, probe, timed_s
from mbr_live.engines.plans import GpuPrecision, plan_folder
from mbr_live.engines.protocol import Engine
from mbr_live.engines.tensorrt_build import build_in_background
from mbr_live.engines.tensorrt_engine import NoPlan, TensorRtEngine
from mbr_live.types import DEFAULT_ENGINE, EngineKind, EngineWish, MbrError

LANES = 8  # that are given at once when engines are timed
WORTH_IT = 1.1  # times the speed of float32, for which its exactness is given up

_THREADS = (1, 2, 4, 8)
_BATCHES = (1, LANES)
_ROUNDS = 3
_ROUND_S = 0.15

_log = logging.getLogger(__name__)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measured(_Record):
    """One way to compute a bundle on this machine."""

    kind: EngineKind
    threads: int
    batch: int
    frames_per_s: float  # of the feature network, eight lanes at a time; 0 where it was refused
    feature_error: float | None = None  # against openvino-f32, on the probe
    probability_error: float | None = None
    refused: str | None = None


class Choice(_Record):
    """What `auto` found on a machine, and what it took."""

    format: Literal[1] = 1
    cpu: str
    cores: int
    openvino: str
    bundle: str
    bundle_sha256: str
    measured: tuple[Measured, ...]
    chosen: Measured
    why: str


def open_engine(
    bundle: Bundle,
    wish: EngineWish,
    *,
    recorded: EngineKind | None = None,
    processes: int = 1,
    live: bool = False,
) -> Engine:
    """The engine that was asked for, or, for `auto`, the best of this machine; `processes` of them share its cores.

    `recorded` is what the session that goes on was labelled with; MbrError where another one is named.
    """
    if wish != "auto":
        if recorded not in (None, wish):
            raise MbrError(
                f"engine {wish}: the labels that are there were made with {recorded}, and others would not be the "
                f'same. Use --engine {recorded} (engine = "{recorded}" in a configuration), or another folder.'
            )
        return engine_of(bundle, wish, threads=_share(processes), live=live)
    best = fastest(choose(bundle).measured, recorded)
    return engine_of(bundle, best.kind, threads=min(best.threads, _share(processes)), batch=best.batch, live=live)


def _share(processes: int) -> int:
    """Threads for one of so many processes; more than there are lanes at a time have nothing to do."""
    return min(max(1, cores() // processes), LANES)


def engine_of(bundle: Bundle, kind: EngineKind, *, threads: int = 1, batch: int = 1, live: bool = False) -> Engine:
    """An engine by its kind; torch and the GPU take no `threads`, and are the same whether `live` or not.

    Raises MbrError where the machine, the bundle or the installation does not have it.
    """
    if kind.startswith("tensorrt-"):
        return _gpu_engine(bundle, kind, batch)
    if kind != "torch":
        return OpenVinoEngine(bundle, precision=_precision(kind), threads=threads, batch=batch, live=live)
    try:
        from mbr_live.engines.torch_engine import TorchEngine
    except ModuleNotFoundError as error:
        raise MbrError(f"engine torch: {error.name} is not installed. Run: pip install 'mbr-live[train]'") from error
    return TorchEngine(bundle)


def open_live_engine(
    bundle: Bundle, wish: EngineWish, *, recorded: EngineKind | None = None
) -> tuple[Engine, str | None]:
    """As `open_engine`, for a session that must begin now: where a GPU engine has no plan yet, or fails, the CPU serves
    the whole session, and the note says so. A plan that is missing is built meanwhile, for the next one.
    """
    if not wish.startswith("tensorrt-"):
        return open_engine(bundle, wish, recorded=recorded, live=True), None
    if recorded == DEFAULT_ENGINE:
        return open_engine(bundle, DEFAULT_ENGINE, live=True), f"this session began with it; {wish} serves the next"
    try:
        return open_engine(bundle, wish, recorded=recorded), None
    except NoPlan:
        if recorded is not None:
            raise  # labels that are there were made with a plan that is gone: others would not be the same
        build_in_background(bundle.path, gpu_precision(wish), 1, plan_folder())
        note = f"the plan of {wish} is being built and serves the next session"
    except MbrError as error:
        if recorded is not None:
            raise
        note = f"{wish} cannot serve: {error}"
    _log.warning("%s serves this session: %s", DEFAULT_ENGINE, note)
    return open_engine(bundle, DEFAULT_ENGINE, live=True), note


def gpu_precision(kind: str) -> GpuPrecision:
    """Of an engine's kind."""
    precision = kind.removeprefix("tensorrt-")
    if precision not in get_args(GpuPrecision):
        raise ValueError(kind)
    found: GpuPrecision = precision  # type: ignore[assignment]
    return found


def _gpu_engine(bundle: Bundle, kind: EngineKind, batch: int) -> Engine:
    """TensorRT, held against float32 on the CPU before anything believes it."""
    precision = gpu_precision(kind)
    engine = TensorRtEngine(bundle, precision=precision, batch=batch)
    found = parity(engine, OpenVinoEngine(bundle), bundle.manifest)
    allowed = limits(bundle, precision, gpu=True)
    if not passes(found, allowed):
        raise MbrError(
            f"engine {kind}: differs from {DEFAULT_ENGINE} by more than allowed ({found}, allowed {allowed}). Build "
            f"its plan anew (mbr-live engine remove --all; mbr-live engine build {bundle.path}), or use another engine."
        )
    return engine


def kind_of(name: str) -> EngineKind:
    """The kind of an engine from its name, as the manifest of a run has it."""
    runtime, precision = name.split(" ", 1)[0], name.rsplit(" ", 1)[-1]
    for kind in get_args(EngineKind):
        if kind in (runtime, f"{runtime}-{precision}"):
            found: EngineKind = kind
            return found
    raise MbrError(f"engine {name!r}: this program has no such engine, only {', '.join(get_args(EngineKind))}.")


def choose(bundle: Bundle, *, anew: bool = False) -> Choice:
    """What `auto` takes for a bundle on this machine: as written down, else, or `anew`, measured now."""
    file = cache_folder() / f"{_key(bundle)}.json"
    known = None if anew else _known(file)
    if known is not None:
        return known
    choice = measure(bundle)
    _keep(file, choice)
    _log.info("%s (%s)", choice.why, file)
    return choice


def measure(bundle: Bundle) -> Choice:
    """Measure every candidate anew; takes some seconds, and says so in the log."""
    _log.info("measuring the engines of this machine for bundle %s, once", bundle.manifest.name)
    measured = tuple(_measured(bundle, list(candidates(bundle))))
    best = fastest(measured)
    return Choice(
        cpu=openvino_engine.cpu_name(),
        cores=cores(),
        openvino=openvino_engine.version(),
        bundle=bundle.manifest.name,
        bundle_sha256=bundle.sha256,
        measured=measured,
        chosen=best,
        why=_why(best, measured),
    )


def candidates(bundle: Bundle) -> Iterator[tuple[Precision, int, int]]:
    """Precision, threads and batch of what may be tried."""
    manifest = bundle.manifest
    if not manifest.feature_dim:
        yield "f32", 1, 1
        return
    precisions: list[Precision] = ["f32", *(["bf16"] if openvino_engine.has_bf16() else [])]  # type: ignore[list-item]
    if manifest.int8:
        precisions.append("int8")
    for precision in precisions:
        for threads in _THREADS:
            for batch in _BATCHES:
                if threads <= cores():
                    yield precision, threads, batch


def fastest(measured: Iterable[Measured], kind: EngineKind | None = None) -> Measured:
    """The best of those that passed, or of one kind. Float32 unless another precision is clearly faster."""
    passed = [each for each in measured if each.refused is None and kind in (None, each.kind)]
    if not passed:
        which = kind or "engine"
        raise MbrError(f"engine auto: no {which} passed on this machine. See why: mbr-live engine check.")
    return max(passed, key=lambda each: each.frames_per_s * (WORTH_IT if each.kind == "openvino-f32" else 1.0))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder() -> Path:
    """Where choices are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mbr-live" / "engines"


def _measured(bundle: Bundle, wanted: list[tuple[Precision, int, int]]) -> Iterator[Measured]:
    """Parity and speed of every candidate. All are timed in turn, several times: the speed of a machine drifts."""
    reference = OpenVinoEngine(bundle)
    opened: dict[int, OpenVinoEngine] = {}
    results: dict[int, Measured] = {}
    for number, (precision, threads, batch) in enumerate(wanted):
        kind = kind_of(f"openvino {precision}")
        row = Measured(kind=kind, threads=threads, batch=batch, frames_per_s=0.0)
        try:
            engine = OpenVinoEngine(bundle, precision=precision, threads=threads, batch=batch)
        except MbrError as error:
            results[number] = row.model_copy(update={"refused": str(error)})
            continue
        found = parity(engine, reference, bundle.manifest)
        row = row.model_copy(
            update={"feature_error": found.feature_error, "probability_error": found.probability_error}
        )
        if passes(found, limits(bundle, precision)):
            opened[number] = engine
        else:
            row = row.model_copy(update={"refused": f"differs from openvino-f32 by more than allowed: {found}"})
        results[number] = row
    speeds = _speeds(bundle, opened)
    for number, row in results.items():
        yield row.model_copy(update={"frames_per_s": round(speeds.get(number, 0.0), 1)})


def _speeds(bundle: Bundle, engines: dict[int, OpenVinoEngine]) -> dict[int, float]:
    """Frames per second of the feature network, the best of several rounds."""
    if not bundle.manifest.feature_dim:
        return dict.fromkeys(engines, 0.0)
    crops, best_s = probe()[:LANES], dict.fromkeys(engines, float("inf"))
    for turn in range(_ROUNDS):
        for number, engine in engines.items():
            times_s = timed_s(lambda engine=engine: engine.features(crops), _ROUND_S)  # type: ignore[misc]
            best_s[number] = min(best_s[number], *times_s)
        _log.info("measured the engines: round %d of %d", turn + 1, _ROUNDS)
    return {number: LANES / best for number, best in best_s.items()}


def _why(best: Measured, measured: Iterable[Measured]) -> str:
    exact = fastest(measured, "openvino-f32")
    said = f"auto takes {best.kind} on {best.threads} thread(s), {best.batch} lane(s) at a time"
    if not best.frames_per_s:
        return f"{said}: the bundle has no feature network"
    if best.kind == "openvino-f32":
        return f"{said}: {best.frames_per_s:.0f} frames/s, and no other precision is {WORTH_IT} times as fast"
    ratio = best.frames_per_s / exact.frames_per_s
    return f"{said}: {best.frames_per_s:.0f} frames/s, {ratio:.1f} times as fast as openvino-f32 at its best"


def _precision(kind: EngineKind) -> Precision:
    for precision in get_args(Precision):
        if kind == f"openvino-{precision}":
            found: Precision = precision
            return found
    raise ValueError(kind)


def _key(bundle: Bundle) -> str:
    parts = (openvino_engine.cpu_name(), str(cores()), openvino_engine.version(), version("mbr-live"), bundle.sha256)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _known(file: Path) -> Choice | None:
    """What was written down; None where there is nothing, or something that can not be read: then it is made anew."""
    try:
        return Choice.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        _log.warning("%s can not be used (%s); the engines are measured anew", file, type(error).__name__)
        return None


def _keep(file: Path, choice: Choice) -> None:
    """Write a choice whole or not at all; several processes may do so at once. A service may have no place to keep it:
    it then measures at every start, and a session goes on with the engine that it began with all the same.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=file.stem, suffix=".part", delete=False) as part:
            part.write(choice.model_dump_json(indent=2) + "\n")
        Path(part.name).replace(file)
    except OSError as error:
        _log.warning("%s cannot be written (%s): the engines will be measured again next time", file, error.strerror)
