"""What the tests of triggers share: receipts of what a trigger did, a process that begins with them, a busy machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mbr_live.triggers.log import Summary, TriggerLog, message_id, open_log
from mbr_live.triggers.machine import Action, TriggerRule, TriggerState
from mbr_live.triggers.outputs.protocol import TriggerMessage

TEMPLATE = Summary(camera="", session="", started="", triggers=[], outputs=[], stale_after_s=0.25)


def message_of(log: TriggerLog, action: Action) -> TriggerMessage:
    session = log.summary.session
    return TriggerMessage(
        id=message_id(session, action), session=session, camera=action.camera, trigger=action.trigger,
        trial=action.trial, edge="off" if action.edge == "off" else "on", sham=action.sham, frame=action.index,
        time_ns=action.index * 100_000_000, decided_ns=time.time_ns(), why=action.why, on_s=action.on_s,
    )  # fmt: skip


def labels_up_to(folder: Path, index: int) -> None:
    (folder / "cage.labels.csv").write_text(f"frame\n{index},\n")


def restarted(rule: TriggerRule, actions: Sequence[Action]) -> tuple[list[Action], TriggerState]:
    """What a process does at first, and knows, that finds the receipts of these actions."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log, _ = open_log(folder, rule.camera, [rule], TEMPLATE)
        for action in actions:
            log.decided(message_of(log, action), action, dry_run=False, outputs=())
        log.close()
        labels_up_to(folder, 10_000)
        again, past = open_log(folder, rule.camera, [rule], TEMPLATE)
        again.close()
    return past.closing[rule.name], past.states[rule.name]


class BusyMachine:
    """Its clocks, and something else that has the machine just after somebody looked at the date for the first time."""

    EPOCH_NS, BUSY_NS = 1_800_000_000_000_000_000, 50_000_000

    def __init__(self) -> None:
        self._now_ns, self._busy = 1_000_000_000, False

    def monotonic_ns(self) -> int:
        self._now_ns += 100
        return self._now_ns

    def time_ns(self) -> int:
        read_ns = self.EPOCH_NS + self.monotonic_ns()
        self._now_ns += 0 if self._busy else self.BUSY_NS
        self._busy = True
        return read_ns
