"""What a scenario found, from what lies on the disk: every frame, label and trigger is looked for."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mbr_live.cameras.log import CAMERA_LOG_SUFFIX, read_outages
from mbr_live.config import Config
from mbr_live.sinks.label_log import LABELS_SUFFIX, LabelRow, read_labels
from mbr_live.status import LabelMessage
from mbr_live.types import Status
from mbr_live.video.journal import JOURNAL_SUFFIX, read_journal

Sent = Mapping[int, int]
"""Source frame by tick: what one camera took, or a scenario sent in its stead."""


@dataclass
class Outcome:
    """The counts of one scenario. What must be 0 and is not stands in `wrong` too, in words."""

    name: str
    seed: int
    seconds: float = 0.0
    harm: str = ""  # what was done, and how often
    captured: int = 0  # frames that were taken for a tick
    labelled: int = 0  # of these, in the label log with their own row
    lost_between: int = 0  # of these, a gap row stands in their place: lost on the way, and accounted for
    no_frame: int = 0  # gap rows of ticks that no frame served
    unaccounted: int = 0  # captured frames, or ticks, without a row; rows without a frame: must be 0
    told: int = 0  # labels that were published
    labels_lost: int = 0  # of these, not in the log as they were told: must be 0
    triggers: int = 0  # edges that were decided and had to reach a receiver
    triggers_lost: int = 0  # of these, never received; and events without a receipt: must be 0
    triggers_false: int = 0  # received or decided without cause: must be 0
    skips: Counter[str] = field(
        default_factory=Counter
    )  # events that were not acted upon, by the reason in the receipt
    leaked: int = 0  # processes that were there afterwards: must be 0
    growth_mib: float | None = None  # of the resident memory of inference, after its first tenth
    memory_mib: list[tuple[float, float]] = field(default_factory=list)  # seconds, MiB
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    skipped: str = ""  # why it was not run

    @property
    def good(self) -> bool:
        return not self.wrong

    def expect(self, holds: bool, otherwise: str) -> None:
        """Note what is wrong."""
        if not holds:
            self.wrong.append(otherwise)

    def must_be_zero(self) -> None:
        """Turn every count that is off into words."""
        for name in ("unaccounted", "labels_lost", "triggers_lost", "triggers_false", "leaked"):
            self.expect(not getattr(self, name), f"{name.replace('_', ' ')}: {getattr(self, name)}")
        balance = self.labelled + self.lost_between
        self.expect(self.captured == balance, f"captured {self.captured}, labelled and accounted for {balance}")

    def as_json(self) -> dict[str, Any]:
        return {**self.__dict__, "good": self.good}


def count_frames(outcome: Outcome, config: Config, sent: Mapping[str, Sent] | None = None) -> None:
    """Hold the label logs of all cameras against the frame journals, or against what was `sent`."""
    for camera in config.camera:
        rows = labels_of(config, camera.name)
        frames = journalled(config, camera.name) if sent is None else sent[camera.name]
        _count_camera(outcome, camera.name, rows, frames)


def _count_camera(outcome: Outcome, name: str, rows: Sequence[LabelRow], frames: Sent) -> None:
    by_tick = {row.index: row for row in rows}
    outcome.expect(
        [row.index for row in rows] == list(range(len(rows))), f"{name}: its ticks are not each there once, in order"
    )
    outcome.captured += len(frames)
    for tick, source_frame in frames.items():
        row = by_tick.get(tick)
        if row is None:
            outcome.unaccounted += 1
        elif row.status == Status.GAP:
            outcome.lost_between += 1
        elif row.source_frame == source_frame:
            outcome.labelled += 1
        else:
            outcome.unaccounted += 1
    for row in rows:
        if row.index not in frames:
            outcome.no_frame += row.status == Status.GAP
            outcome.unaccounted += row.status != Status.GAP


def count_told(outcome: Outcome, config: Config, told: Iterable[LabelMessage]) -> None:
    """Every label that was published must stand in the log as it was told."""
    rows = {camera.name: {row.index: row for row in labels_of(config, camera.name)} for camera in config.camera}
    for message in told:
        outcome.told += 1
        for tick in range(message.index, message.index + message.ticks):
            row = rows[message.camera].get(tick)
            same = row is not None and (row.status, list(row.labels)) == (message.status, message.labels)
            if not same or (row is not None and list(row.probabilities) != message.probabilities):
                outcome.labels_lost += 1
                break


def labels_of(config: Config, camera: str) -> list[LabelRow]:
    """All rows of a label log."""
    path = config.out / f"{camera}{LABELS_SUFFIX}"
    return list(read_labels(path)) if path.exists() else []


def journalled(config: Config, camera: str) -> dict[int, int]:
    """What the capture process took, by its own journal."""
    path = config.out / f"{camera}{JOURNAL_SUFFIX}"
    return {tick: source_frame for tick, source_frame, _ in read_journal(path)} if path.exists() else {}


def outages_of(config: Config, camera: str) -> list[str]:
    """Causes of the outages in the camera's log, in order."""
    path = config.out / f"{camera}{CAMERA_LOG_SUFFIX}"
    return [outage.cause for outage in read_outages(path)] if path.exists() else []


def as_csv(outcomes: Sequence[Outcome], path: Path) -> None:
    """The memory of every scenario over time, for a plot."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["scenario", "seconds", "mib"])
        writer.writerows((o.name, f"{s:.1f}", f"{mib:.1f}") for o in outcomes for s, mib in o.memory_mib)
