"""What the tests of triggers share: a script of labels as inference would publish it, and a running output process."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from live import PATIENCE_S, system_config, wait_for

from mbr_live.config import Camera, Config, Simulated
from mbr_live.processes import Child
from mbr_live.sinks.label_log import LABELS_SUFFIX
from mbr_live.status import LabelMessage, read_output_status
from mbr_live.trigger_config import AnyOutput, Trigger, Watchdog
from mbr_live.triggers.log import TRIGGERS_SUFFIX, read_receipts
from mbr_live.wire.messages import own_clock
from mbr_live.wire.status import StatusPublisher

NO_ROW = 9  # in a script: nothing comes for one tick
CAMERA = Camera(name="cage", source=Simulated(kind="simulated"))
HEADER = "frame,source_frame,time_ns,status,x_px,y_px,p_grooming,p_rearing,grooming,rearing"


def trigger(outputs: Sequence[AnyOutput], **keys: Any) -> Trigger:
    """A trigger on the onset of grooming, unless `keys` say otherwise."""
    settings: dict[str, Any] = {"name": "stim", "camera": "cage", "when": "onset", "all": ("grooming",)} | keys
    if settings["when"] in ("onset", "offset", "lasting"):
        settings.setdefault("on_s", 0.05)
    return Trigger(**settings, outputs=tuple(output.name for output in outputs))


def rig_config(
    out: Path, triggers: Sequence[Trigger], outputs: Sequence[AnyOutput], stale_after_s: float = 2.0
) -> Config:
    """A system of one camera; labels may be as old as can be, since the machine may be busy."""
    update = {"trigger": tuple(triggers), "output": tuple(outputs), "watchdog": Watchdog(stale_after_s=stale_after_s)}
    config = system_config(out, CAMERA).model_copy(update=update)
    config = Config.model_validate(config.model_dump())
    out.mkdir(parents=True, exist_ok=True)
    (out / "system.json").write_text(config.model_dump_json())
    return config


class Labels:
    """Inference as the output process sees it: rows written, then published, ten a second."""

    def __init__(self, config: Config) -> None:
        self._publisher = StatusPublisher(config.wire.status)
        self._log = config.out / f"cage{LABELS_SUFFIX}"
        if not self._log.exists():
            self._log.write_text(HEADER + "\n")
        self.index = len(self._log.read_text().splitlines()) - 1
        self.captured_ns: list[int] = []  # of every row, in order

    def row(self, grooming: int, *, age_s: float = 0.0, told: bool = True, timed: bool = True) -> None:
        """One row, captured `age_s` ago; -1: the animal is lost.

        Not `told`: it is in the log, and nobody hears it. Not `timed`: it does not say when it was made.
        """
        now_ns = time.monotonic_ns()
        captured_ns = now_ns - int(age_s * 1e9)
        status = "lost" if grooming < 0 else "ok"
        with self._log.open("a") as log:
            log.write(f"{self.index},{self.index},{time.time_ns()},{status},,,,,{grooming},{min(grooming, 0)}\n")
        message = LabelMessage(
            camera="cage", index=self.index, status=status, labels=[grooming, min(grooming, 0)],
            time_ns=time.time_ns(), captured_ns=captured_ns, received_ns=now_ns, labelled_ns=now_ns,
            clock=own_clock(),
        )  # fmt: skip
        untimed = {"clock": "", "captured_ns": None, "received_ns": None, "labelled_ns": None}
        if told:
            self._publisher.publish(message if timed else message.model_copy(update=untimed))
        self.captured_ns.append(captured_ns)
        self.index += 1

    def play(self, script: Sequence[int]) -> None:
        for grooming in script:
            if grooming != NO_ROW:
                self.row(grooming)
            time.sleep(0.1)

    def close(self) -> None:
        self._publisher.close()


@contextmanager
def output_process(config: Config) -> Iterator[Child]:
    """A running output process that has heard the labels of `config` begin."""
    child = Child("output", ("output", str(config.out / "system.json")), config.out / "logs" / "output.log")
    child.start()
    try:
        wait_for(lambda: ready(config, child) or child.exit_code is not None, "the output process")
        yield child
    finally:
        child.ask_to_stop()
        child.wait(PATIENCE_S)


def ready(config: Config, child: Child) -> bool:
    status = read_output_status(config.out)
    return status is not None and status.pid == child.pid


def listening(config: Config, labels: Labels, grooming: int = 0) -> None:
    """Send rows, all alike, until the output process hears them: PUB loses what nobody is connected for."""

    def heard() -> bool:
        labels.row(grooming)
        time.sleep(0.1)
        summary = json.loads((config.out / "cage.triggers.json").read_text())
        return bool(summary["latency"])

    wait_for(heard, "labels to be heard")


def receipts(config: Config) -> list[dict[str, str]]:
    return list(read_receipts(config.out / f"cage{TRIGGERS_SUFFIX}"))


def outcomes(config: Config) -> list[tuple[str, str, str, str]]:
    """What, edge, output or nothing, why; of every receipt."""
    return [(row["what"], row["edge"], row["output"], row["why"]) for row in receipts(config)]
