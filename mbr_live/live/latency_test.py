"""How long from a frame in memory to a pulse: a whole live system with a trigger that fires like a metronome.

Frames, labels, decision, receipt and port are those of any session; only the reason to fire is another: a yoked trigger
that repeats a made-up session of a pulse every 0.3 s. Without hardware the camera is simulated and the box is at the
other end of a pseudo-terminal, where the arrival of every command is timed apart from what the system says of itself.
"""

from __future__ import annotations

import json
import time
from bisect import bisect
from contextlib import ExitStack, closing
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mbr_live.config import Camera, Config, Simulated
from mbr_live.latency import LatencyHistogram
from mbr_live.live.run import System, free_wire
from mbr_live.processes import stop_signal
from mbr_live.status import LabelMessage, parse_status
from mbr_live.trigger_config import Line, SerialOutput, Trigger, Yoked
from mbr_live.triggers.log import HEADER, STAGES, SUMMARY_SUFFIX, TRIGGERS_SUFFIX, read_receipts
from mbr_live.triggers.outputs.simulated_box import SimulatedBox
from mbr_live.types import RATE_FPS, TICK_NS, MbrError, Status
from mbr_live.wire.status import StatusSubscriber

EVERY_FRAMES = 3
PULSE_S = 0.02
REPORT = "latency.json"
_TRIGGER = "metronome"
_METRONOME = "metronome.csv"


def latency_test(
    out: Path, bundle: Path, seconds: float, *, config: Config | None = None, output: str | None = None
) -> dict[str, dict[str, float]]:
    """Measure for `seconds`, write `latency.json` into the empty folder `out`, and return it: ms by stage.

    With `config`, on its first camera and its line `output`; without, simulated. MbrError where nothing was measured.
    """
    out = out.resolve()  # the processes read it from their own configuration
    if out.exists() and any(out.iterdir()):
        raise MbrError(f"{out}: is not empty. A latency test keeps its logs there; give a new folder with --out.")
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        box = None
        if config is None:
            box = stack.enter_context(SimulatedBox())
            config = _simulated(out, bundle, box)
            output = config.output[0].name
        system_config = _with_metronome(config, out, _line_of(config, output), seconds)
        captured_ns = _run(system_config, seconds)
    camera = system_config.camera[0].name
    report: dict[str, dict[str, float]] = json.loads((out / f"{camera}{SUMMARY_SUFFIX}").read_text())["latency"]
    if box is not None:
        report["capture_to_port"] = _at_port(out, camera, captured_ns, box)
    if "capture_to_sent" not in report:
        raise MbrError(f"latency test: no pulse went out in {seconds:g} s. See {out / 'logs'}, or measure for longer.")
    (out / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    return report


def latency_program(
    out: Path, bundle: Path, seconds: float, *, config: Config | None = None, output: str | None = None
) -> None:
    """`mbr-live latency-test`: measure and print."""
    report = latency_test(out, bundle, seconds, config=config, output=output)
    table = Table(title=f"ms, {seconds:g} s at {RATE_FPS} fps, one pulse every {EVERY_FRAMES / RATE_FPS:g} s")
    for column in ("stage", "p50", "p95", "p99", "max"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in (*STAGES, "capture_to_port"):
        if stage in report:
            values = (f"{report[stage][key]:.2f}" for key in ("p50_ms", "p95_ms", "p99_ms", "max_ms"))
            table.add_row(stage.replace("_", " "), *values)
    console = Console()
    console.print(table)
    console.print(
        "Counted from the moment a frame is in memory. Before that lie exposure and transfer of the camera, and up to "
        "100 ms until the next frame is sampled; behind it, the minimum bout of the model. None of it is in the table."
    )
    console.print(f"{out / REPORT}")


def _simulated(out: Path, bundle: Path, box: SimulatedBox) -> Config:
    return Config(
        out=out,
        bundle=bundle,
        camera=(Camera(name="cage", source=Simulated(kind="simulated", seed=1)),),
        output=(SerialOutput(kind="serial", name="box", port=box.port, line=0),),
    )


def _line_of(config: Config, output: str | None) -> Line:
    lines = [entry for entry in config.output if isinstance(entry, Line)]
    for line in lines:
        if output in (None, line.name):
            return line
    names = ", ".join(line.name for line in lines) or "none"
    raise MbrError(f"latency test: no line is named {output}; there are: {names}. Add one, or choose with --output.")


def _with_metronome(config: Config, out: Path, line: Line, seconds: float) -> Config:
    """The first camera of `config`, and a trigger that repeats a session which never was."""
    log = out / _METRONOME
    rows = [HEADER]
    for trial, frame in enumerate(range(0, int((seconds + 60) * RATE_FPS), EVERY_FRAMES), 1):
        rows.append(f"decided,{_TRIGGER},{trial},on,{frame},0,0,onset,{PULSE_S},0,0,,,,")
        rows.append(f"decided,{_TRIGGER},{trial},off,{frame},0,0,done,,0,0,,,,")
    log.write_text("\n".join(rows) + "\n")
    camera = config.camera[0]
    trigger = Trigger(
        name=_TRIGGER, camera=camera.name, when="yoked", max_on_s=1.0, max_per_hour=36000,
        yoked=Yoked(log=log, trigger=_TRIGGER), outputs=(line.name,),
    )  # fmt: skip
    wire = free_wire()
    update = {"out": out, "wire": wire, "camera": (camera,), "trigger": (trigger,), "output": (line,)}
    return config.model_copy(update=update)


def _run(config: Config, seconds: float) -> dict[int, int]:
    """Run until labels were known for `seconds`; when each frame was in memory (CLOCK_MONOTONIC, ns), by tick."""
    captured_ns: dict[int, int] = {}
    with (
        stop_signal() as stop,
        closing(StatusSubscriber(config.wire.status)) as subscriber,
        Progress(transient=True, console=Console(stderr=True)) as progress,
        System(config) as system,
    ):
        task = progress.add_task("measuring", total=seconds)
        end_s = None
        while not stop.requested and not system.ended:
            system.look_after()
            for data in subscriber.messages(0.2):
                if _note(data, captured_ns) and end_s is None:  # warmed up
                    end_s = time.monotonic() + seconds
            if end_s is not None:
                progress.update(task, completed=seconds - (end_s - time.monotonic()))
                if time.monotonic() > end_s:
                    break
    if failures := system.failures():
        raise MbrError("\n".join(failures))
    return captured_ns


def _note(data: bytes, captured_ns: dict[int, int]) -> bool:
    """Keep when the frame of a label was in memory; whether the message is a label that is known."""
    try:
        message = parse_status(data)
    except ValidationError:
        return False
    if not isinstance(message, LabelMessage):
        return False
    if message.captured_ns is not None:
        captured_ns[message.index] = message.captured_ns
    return message.status == Status.OK


def _at_port(out: Path, camera: str, captured_ns: dict[int, int], box: SimulatedBox) -> dict[str, float]:
    """From a frame in memory to the command at the far end of the port, of the pulses that it decided.

    Also of those whose answer came too late to confirm them. A pulse is of the last frame before it, since none comes
    later than labels may be old, which is less than from one pulse to the next.
    """
    decided = (
        captured_ns.get(int(row["frame"]))
        for row in read_receipts(out / f"{camera}{TRIGGERS_SUFFIX}")
        if (row["what"], row["edge"]) == ("decided", "on")
    )
    begun = sorted(at_ns for at_ns in decided if at_ns is not None)
    histogram = LatencyHistogram()
    for arrival_ns, _ in box.highs(0):
        before = bisect(begun, arrival_ns)
        if before and arrival_ns - begun[before - 1] < EVERY_FRAMES * TICK_NS:  # else no label of its frame was heard
            histogram.add((arrival_ns - begun[before - 1]) / 1e6)
    return histogram.summary()
