"""The receipts of triggers, `<camera>.triggers.csv`: what was decided, and what became of it at every output.

The log is the truth and the outbox: a decision stands in it before anything is sent, and what a durable output has not
confirmed in it is sent again by the next process. A row is one write.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mbr_live.appending import WaitingRows
from mbr_live.clock_offset import offset_ns
from mbr_live.files import cut_torn_row, is_emptied, write_atomically
from mbr_live.latency import LatencyHistogram
from mbr_live.sinks.label_log import LABELS_SUFFIX, last_frame, read_labels
from mbr_live.triggers.machine import Action, TriggerRule, TriggerState, finish, recall
from mbr_live.triggers.outputs.protocol import TriggerMessage
from mbr_live.triggers.outputs.workers import Delivery
from mbr_live.types import RATE_FPS, TICK_NS, MbrError

TRIGGERS_SUFFIX = ".triggers.csv"
SUMMARY_SUFFIX = ".triggers.json"
COLUMNS = (
    "what", "trigger", "trial", "edge", "frame", "sham", "dry_run", "why", "on_s", "time_ns", "decided_ns",
    "output", "sent_ns", "confirmed_ns", "attempts",
)  # fmt: skip
HEADER = ",".join(COLUMNS)
_GRID_NS = 2_000_000_000  # frames of one session are captured within some ticks of its grid
_KEPT = ("session", "started", "unwritten", "late_labels", "accounted")  # of a session that goes on
_KINDS = ("trials", "shams", "skipped", "deliveries")
STAGES = (
    "capture_to_receive", "receive_to_label", "label_to_decision", "decision_to_sent", "sent_to_confirmed",
    "capture_to_label", "capture_to_decision", "capture_to_sent",
)  # fmt: skip

_log = logging.getLogger(__name__)


class Summary(BaseModel):
    """What the triggers of one camera were and did: `<camera>.triggers.json`."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    camera: str
    session: str  # begins the id of every message
    started: str
    finished: str | None = None  # None: running, or killed
    triggers: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    stale_after_s: float
    restarts: int = 0
    trials: dict[str, int] = {}  # by trigger, shams included
    shams: dict[str, int] = {}  # by trigger
    skipped: dict[str, int] = {}  # by reason
    deliveries: dict[str, int] = {}  # by output and outcome
    undelivered: int = 0  # messages that the next process has to send
    unwritten: int = 0  # trials that were not begun because the log could not be written
    late_labels: int = 0  # rows that were stale when they came
    accounted: int = -1  # the last frame of the label log whose events all have their receipts
    latency: dict[str, dict[str, float]] = {}  # ms, by stage; of this process


@dataclass(frozen=True, slots=True)
class Moments:
    """When a frame passed the stages; CLOCK_MONOTONIC in ns."""

    captured_ns: int
    received_ns: int
    labelled_ns: int
    decided_ns: int


class TriggerLog:
    """The receipts of one camera, the summary beside them, and the figures."""

    def __init__(
        self, rows: WaitingRows, summary_path: Path, summary: Summary, counts: Counter[tuple[str, str]]
    ) -> None:
        self._rows, self._summary_path = rows, summary_path
        self.summary = summary
        self.taken = summary.accounted  # the last frame that was decided upon; its receipts may wait for room
        self._latency = {stage: LatencyHistogram() for stage in STAGES}
        self._counts = counts

    def begin(self) -> None:
        """Open the file, and give it its header where it is empty. Unwritable where that cannot be."""
        self._rows.write("")

    def decided(self, message: TriggerMessage, action: Action, *, dry_run: bool, outputs: Sequence[str]) -> None:
        """Write a decision, and the `outputs` that are told.

        MbrError when the disk does not take that of a beginning: then nothing of it may be sent. An end is an end; what
        is written of it, and of what was skipped, waits for room.
        """
        what = "skipped" if action.edge == "skip" else "decided"
        self._row(what, message, now=action.edge == "on", dry_run=dry_run, output=" ".join(outputs))

    def delivered(self, delivery: Delivery, moments: Moments | None) -> None:
        """Write what became of an edge at an output; `moments` of its frame, where they are known, give the latency."""
        ahead_ns = offset_ns(time.time_ns, time.monotonic_ns)
        sent, confirmed = (at + ahead_ns if at else "" for at in (delivery.sent_ns, delivery.confirmed_ns))
        self._row(
            delivery.outcome, delivery.message, why=delivery.detail, output=delivery.output,
            sent_ns=sent, confirmed_ns=confirmed, attempts=delivery.attempts,
        )  # fmt: skip
        if moments is not None and delivery.sent_ns:
            self._latency["decision_to_sent"].add((delivery.sent_ns - moments.decided_ns) / 1e6)
            self._latency["capture_to_sent"].add((delivery.sent_ns - moments.captured_ns) / 1e6)
            if delivery.confirmed_ns:
                self._latency["sent_to_confirmed"].add((delivery.confirmed_ns - delivery.sent_ns) / 1e6)

    def labelled(self, moments: Moments) -> None:
        """Count how long a label took to come here; for every label, whether a trigger fires or not."""
        captured, received, labelled, decided = (
            moments.captured_ns, moments.received_ns, moments.labelled_ns, moments.decided_ns,
        )  # fmt: skip
        for stage, duration_ns in (
            ("capture_to_receive", received - captured), ("receive_to_label", labelled - received),
            ("label_to_decision", decided - labelled), ("capture_to_label", labelled - captured),
            ("capture_to_decision", decided - captured),
        ):  # fmt: skip
            self._latency[stage].add(duration_ns / 1e6)

    def _row(
        self,
        what: str,
        message: TriggerMessage,
        *,
        now: bool = False,
        dry_run: bool = False,
        why: str = "",
        **more: Any,
    ) -> None:
        decision = what in ("decided", "skipped")
        row: dict[str, Any] = {
            "what": what, "trigger": message.trigger, "trial": message.trial,
            "edge": "" if what == "skipped" else message.edge, "frame": message.frame, "sham": int(message.sham),
            "dry_run": int(dry_run) if decision else "", "why": why or (message.why if decision else ""),
            "on_s": f"{message.on_s:g}" if decision and message.on_s else "", "time_ns": message.time_ns,
            "decided_ns": message.decided_ns, **more,
        }  # fmt: skip
        text = io.StringIO()
        cells = (str(row.get(column, "")).replace("\n", " ").replace("\r", " ") for column in COLUMNS)
        csv.writer(text, lineterminator="\n").writerow(cells)
        (self._rows.write if now else self._rows.append)(text.getvalue())
        self._counts.update(_counted({column: str(row.get(column, "")) for column in COLUMNS}))

    def save(self, *, undelivered: int, finished: bool = False, durable: bool = False) -> None:
        """Write the summary as it is now, and the rows that had to wait for room.

        `durable`: wait for the disk, as no trigger may while it works.
        """
        if self._rows.flush():
            self.summary.accounted = self.taken
        by_kind = {kind: {name: n for (of, name), n in self._counts.items() if of == kind} for kind in _KINDS}
        for kind, counts in by_kind.items():
            setattr(self.summary, kind, counts)
        self.summary.undelivered = undelivered
        self.summary.latency = {stage: figures.summary() for stage, figures in self._latency.items() if figures.count}
        self.summary.finished = datetime.now(UTC).isoformat() if finished else None
        write_atomically(self._summary_path, self.summary.model_dump_json(indent=2) + "\n", durable=durable)

    def close(self) -> None:
        """Close the file of receipts."""
        self._rows.close()


@dataclass(frozen=True, slots=True)
class Past:
    """What the log of a camera tells a new process."""

    states: dict[str, TriggerState]  # by trigger
    counts: Counter[tuple[str, str]]  # of rows, as in the summary: ("trials", trigger), ("skipped", why), ...
    last_time_ns: int  # capture time of the last row
    latest: tuple[int, int]  # the latest frame that a row is of, and its capture time
    closing: dict[str, list[Action]]  # trials that were left open, ended now
    unfinished: list[tuple[TriggerMessage, str]]  # edges that were decided and of which an output has no receipt


def open_log(out: Path, camera: str, rules: Sequence[TriggerRule], template: Summary) -> tuple[TriggerLog, Past]:
    """Begin the receipts of a camera, or go on with those of a session that was interrupted.

    MbrError when the folder holds the receipts of another session.
    """
    path, summary_path = out / f"{camera}{TRIGGERS_SUFFIX}", out / f"{camera}{SUMMARY_SUFFIX}"
    summary = template.model_copy(update={"camera": camera, "session": secrets.token_hex(6)})
    if path.exists():
        cut_torn_row(path)
    resumed = _was_begun(path, summary_path)
    if resumed:
        before = _read_summary(summary_path) or summary
        kept = {name: getattr(before, name) for name in _KEPT}
        summary = summary.model_copy(update={**kept, "restarts": before.restarts + 1})
    else:
        # What was labelled before there were triggers is not their business.
        summary.accounted = last_frame(out / f"{camera}{LABELS_SUFFIX}")
    past = _past(path, summary, rules) if resumed else _nothing(rules)
    _check_same_session(out, camera, past)
    log = TriggerLog(WaitingRows(path, HEADER + "\n"), summary_path, summary, past.counts)
    try:
        log.begin()
        log.save(undelivered=0, durable=True)
    except BaseException:
        log.close()
        raise
    return log, past


def _was_begun(path: Path, summary_path: Path) -> bool:
    """Whether there are receipts to go on with.

    A process that was killed as it began leaves a header, or a part of one, and no summary: nothing was decided yet.
    """
    is_there = path.exists() and path.stat().st_size > 0
    return is_there and (summary_path.exists() or any(read_receipts(path)))


def _nothing(rules: Sequence[TriggerRule]) -> Past:
    return Past({rule.name: TriggerState() for rule in rules}, Counter(), 0, (-1, 0), {}, [])


def _counted(row: Mapping[str, str]) -> list[tuple[str, str]]:
    """What a row adds to the counts of the summary."""
    if row["what"] == "skipped":
        return [("skipped", row["why"])]
    if row["what"] != "decided":
        return [("deliveries", f"{row['output']} {row['what']}")]
    if row["edge"] != "on" or row["why"] == "resumed":
        return []
    shams = [("shams", row["trigger"])] if row["sham"] == "1" else []
    return [("trials", row["trigger"]), *shams]


def _past(path: Path, summary: Summary, rules: Sequence[TriggerRule]) -> Past:
    by_name = {rule.name: rule for rule in rules}
    states = {rule.name: TriggerState() for rule in rules}
    counts: Counter[tuple[str, str]] = Counter()
    last_time_ns, latest = 0, (-1, 0)
    open_: dict[tuple[str, str], tuple[TriggerMessage, str]] = {}
    for row in read_receipts(path):
        last_time_ns = int(row["time_ns"])
        # Of several, the first: an end that a later process wrote has the frame of the beginning, and a later time.
        latest = max(latest, (int(row["frame"]), last_time_ns), key=lambda known: known[0])
        counts.update(_counted(row))
        message, rule = _message(row, summary), by_name.get(row["trigger"])
        if row["what"] in ("decided", "skipped"):
            # As it was configured then: what is configured now was not told of it.
            open_.update({(message.id, output): (message, output) for output in row["output"].split()})
        else:
            open_.pop((message.id, row["output"]), None)
        if rule is not None and row["what"] in ("decided", "skipped"):
            states[rule.name] = recall(rule, states[rule.name], _action_of(row, rule))
    closing = {}
    for rule in rules:
        closing[rule.name], states[rule.name] = finish(rule, states[rule.name], "restart")
    return Past(states, counts, last_time_ns, latest, closing, list(open_.values()))


def message_id(session: str, action: Action) -> str:
    """Names one edge for ever."""
    return f"{session}/{action.camera}/{action.trigger}/{action.trial}/{action.edge}/{action.index}"


def read_receipts(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a log of receipts; MbrError when it is not one. A torn last row does not count."""
    with path.open(newline="") as lines:
        reader = csv.DictReader(line for line in lines if line.endswith("\n"))
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise MbrError(f"{path}: this is not a log of triggers. Expected the {TRIGGERS_SUFFIX} of a live run.")
        yield from reader


def read_yoked(path: Path, trigger: str) -> tuple[tuple[int, float], ...]:
    """Tick and length in s of the trials, shams aside, that `trigger` had in the session of the log at `path`."""
    trials: list[tuple[int, float]] = []
    start: int | None = None
    found = False
    try:
        for row in read_receipts(path):
            if row["trigger"] != trigger or row["what"] != "decided":
                continue
            found = True
            if row["edge"] == "on" and row["sham"] == "0":
                start, longest_s = int(row["frame"]), float(row["on_s"])
            elif row["edge"] == "off" and start is not None:
                whole = row["why"] in ("done", "limit")  # ended by the clock; any other end is known to the tick
                lasted_s = max(1, int(row["frame"]) - start) / RATE_FPS
                trials.append((start, longest_s if whole else min(longest_s, lasted_s)))
                start = None
    except OSError as error:
        raise MbrError(f"{path}: cannot be read ({error.strerror}). Check `yoked.log`.") from error
    if not found:
        raise MbrError(f"{path}: holds no trials of a trigger {trigger}. Check `yoked.trigger`.")
    return tuple(trials)


def _message(row: dict[str, str], summary: Summary) -> TriggerMessage:
    edge: Literal["on", "off"] = "off" if row["edge"] == "off" else "on"
    action = Action(row["trigger"], summary.camera, edge, int(row["trial"]), int(row["frame"]))
    return TriggerMessage(
        id=message_id(summary.session, action), session=summary.session, camera=summary.camera,
        trigger=action.trigger, trial=action.trial, edge=edge, sham=row["sham"] == "1", frame=action.index,
        time_ns=int(row["time_ns"]), decided_ns=int(row["decided_ns"]), why=row["why"], on_s=float(row["on_s"] or 0),
    )  # fmt: skip


def _action_of(row: dict[str, str], rule: TriggerRule) -> Action:
    edge: Literal["on", "off", "skip"] = "on" if row["edge"] == "on" else "off" if row["edge"] == "off" else "skip"
    return Action(
        rule.name, rule.camera, edge, int(row["trial"]), int(row["frame"]), row["sham"] == "1", row["why"],
        float(row["on_s"] or 0),
    )  # fmt: skip


def _read_summary(path: Path) -> Summary | None:
    """The summary of an earlier process; None where a power cut emptied it."""
    try:
        if is_emptied(path):
            _log.warning("%s: is empty, as after a power cut; messages have another session from now on", path)
            return None
        return Summary.model_validate_json(path.read_text())
    except (OSError, ValidationError, json.JSONDecodeError) as error:
        raise MbrError(
            f"{path}: cannot be read, but {TRIGGERS_SUFFIX} is there. Bring it back, or use another folder (out)."
        ) from error


def _check_same_session(out: Path, camera: str, past: Past) -> None:
    last_known = max((state.last_index for state in past.states.values()), default=-1)
    labels = out / f"{camera}{LABELS_SUFFIX}"
    last_label = last_frame(labels)
    if last_known <= last_label:
        return
    if not _is_of_grid(labels, last_label, *past.latest):
        raise MbrError(
            f"{labels}: ends at frame {last_label}, but {camera}{TRIGGERS_SUFFIX} knows of frame {last_known}: they "
            "are not of the same session. Use another folder (out), or put the old files aside together."
        )
    _log.warning(
        "%s: ends at frame %d, but receipts know of frame %d: a power cut took labels that were told already",
        labels, last_label, last_known,
    )  # fmt: skip


def _is_of_grid(labels: Path, last_label: int, frame: int, time_ns: int) -> bool:
    """Whether a frame that is not in the label log was captured when its last row says that it should have been."""
    rows = read_labels(labels, from_frame=last_label, growing=True) if last_label >= 0 else iter(())
    row = next(rows, None)
    return row is not None and abs(time_ns - row.time_ns - (frame - row.index) * TICK_NS) <= _GRID_NS
