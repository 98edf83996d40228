"""The output process: labels in, triggers out, apart from inference so that nothing here can hold up a label.

It acts upon fresh labels alone. Whatever is on stands on a lease that each fresh label prolongs, so it ends by itself
when labels stop coming, for whatever reason, and also when this process stops.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from itertools import takewhile
from typing import Literal, get_args

from pydantic import ValidationError

from mbr_live.appending import once_there_is_room
from mbr_live.bundle import load_bundle
from mbr_live.config import Config
from mbr_live.files import write_atomically
from mbr_live.holding import OUTPUT, held
from mbr_live.keys import load_keys
from mbr_live.manifest import Manifest
from mbr_live.processes import Stop, notify, stop_signal
from mbr_live.sinks.label_log import LABELS_SUFFIX, last_frame, read_labels
from mbr_live.status import (
    OUTPUT_STATUS_FILE,
    LabelMessage,
    OutputState,
    OutputStatus,
    TriggerFigures,
    parse_status,
    read_output_status,
)
from mbr_live.trigger_config import Line
from mbr_live.triggers.log import Moments, Past, Summary, TriggerLog, message_id, open_log
from mbr_live.triggers.machine import Action, TriggerRule, TriggerState, condition, finish, lapse, remind, step
from mbr_live.triggers.outputs.pool import Pool
from mbr_live.triggers.outputs.protocol import TriggerMessage
from mbr_live.triggers.outputs.workers import Delivery, Outcome
from mbr_live.triggers.rules import trigger_rules
from mbr_live.types import RATE_FPS, MbrError, Status
from mbr_live.wire.messages import own_clock
from mbr_live.wire.status import StatusSubscriber

LOOK_EVERY_S = 0.05  # at least so often staleness and the ends of trials are looked at
SAVE_EVERY_S = 1.0
MOST_UNHEARD = 3600 * RATE_FPS  # rows of a camera: a second's work, in which no trigger of any camera can fire
FAILING_FOR_NS = 60_000_000_000  # after a failure an output is said to fail for a minute
DRAIN_S = 5.0  # at the end: how long messages may still take
_MOMENTS_KEPT = 1000
_NS = 1_000_000_000

_log = logging.getLogger(__name__)


def output(config: Config) -> None:
    """Watch the labels of `config` and fire its triggers, until told to stop.

    MbrError when a trigger or an output cannot work. Where an output process has run before in this folder and was not
    ended, the session goes on: what cannot be reached now is tried again and again.
    """
    manifest = load_bundle(config.bundle).manifest
    rules = trigger_rules(config, manifest.behaviour_names)
    if not rules:
        raise MbrError("output: the configuration has no [[trigger]]. Add one; docs/triggers.md shows how.")
    config.out.mkdir(parents=True, exist_ok=True)
    strict = read_output_status(config.out) is None
    with ExitStack() as stack:
        stack.enter_context(held(config.out, OUTPUT))
        keys = load_keys(config.wire.keys)
        subscriber = stack.enter_context(closing(StatusSubscriber(config.wire.status, keys)))
        pool = stack.enter_context(closing(Pool(config.output)))
        stop = stack.enter_context(stop_signal())
        lanes = once_there_is_room(lambda: _lanes(config, rules, stack), lambda: stop.requested)
        if lanes is None:
            return
        pool.start(strict=strict)
        service = _Service(config, lanes, pool, manifest)
        service.take_up()
        notify("READY=1")
        service.serve(stop, subscriber)
        service.end()


def check_outputs(config: Config) -> None:
    """Whether the triggers and outputs of `config` could start now: opens every output, and lets go of it.

    MbrError, naming all that is wrong, where they could not. Not while a system of this configuration runs.
    """
    trigger_rules(config, load_bundle(config.bundle).manifest.behaviour_names)
    with closing(Pool(config.output)) as pool:
        pool.start(strict=True)


class _Lane:
    """One camera: its triggers, their states and their receipts."""

    def __init__(self, camera: str, rules: list[TriggerRule], log: TriggerLog, past: Past) -> None:
        self.camera, self.rules, self.log, self.past = camera, rules, log, past
        self.states = dict(past.states)
        self.ends_ns: dict[str, int] = {}  # by trigger: when its trial is over by the clock (monotonic)
        self.captured_ns = 0  # of the last fresh label
        self.time_ns = past.last_time_ns  # of the last row
        self.unread = False  # its label log could not be read
        self.stale = True
        self.moments: OrderedDict[str, Moments] = OrderedDict()  # by id of a message


def _lanes(config: Config, rules: Sequence[TriggerRule], stack: ExitStack) -> dict[str, _Lane]:
    template = Summary(
        camera="", session="", started=datetime.now(UTC).isoformat(), triggers=[],
        outputs=[entry.model_dump(mode="json") for entry in config.output],
        stale_after_s=config.watchdog.stale_after_s,
    )  # fmt: skip
    lanes = {}
    for camera in dict.fromkeys(rule.camera for rule in rules):
        own = [rule for rule in rules if rule.camera == camera]
        tables = [entry.model_dump(mode="json") for entry in config.trigger if entry.camera == camera]
        log, past = open_log(config.out, camera, own, template.model_copy(update={"triggers": tables}))
        stack.callback(log.close)
        lanes[camera] = _Lane(camera, own, log, past)
    return lanes


def routes(rule: TriggerRule, message: TriggerMessage, shams_to: frozenset[str]) -> list[str]:
    """The outputs that an edge goes to."""
    if rule.dry_run:
        return []
    return [output for output in rule.outputs if not message.sham or output in shams_to]


def shams_are_told_to(config: Config) -> frozenset[str]:
    """The outputs that want to hear of shams; a line never does."""
    return frozenset(entry.name for entry in config.output if not isinstance(entry, Line) and entry.shams)


class _Service:
    """The loop: a label, what the triggers make of it, receipts; and the clock."""

    def __init__(self, config: Config, lanes: dict[str, _Lane], pool: Pool, manifest: Manifest) -> None:
        self._out, self._lanes, self._pool, self._manifest = config.out, lanes, pool, manifest
        self._stale_ns = int(config.watchdog.stale_after_s * _NS)
        self._shams_to = shams_are_told_to(config)
        self._next_save_s = 0.0
        self._refused: set[str] = set()
        self._failed_ns: dict[str, int] = {}  # by output: when something last could not be delivered (monotonic)
        self._last = ""  # the last receipt

    def take_up(self) -> None:
        """Finish what an earlier process left: end its open trials, send what was not confirmed."""
        for lane in self._lanes.values():
            for message, name in lane.past.unfinished:
                if not self._pool.send_again(message, name):
                    why = "the output process ended, and whether it was told is not known"
                    lane.log.delivered(Delivery(message, name, "failed", attempts=0, detail=why), None)
            for rule in lane.rules:
                for action in lane.past.closing.get(rule.name, []):
                    self._act(lane, rule, action)

    def serve(self, stop: Stop, subscriber: StatusSubscriber) -> None:
        """Until a stop is asked for."""
        while not stop.requested:
            self._save_if_due()
            message = next(subscriber.messages(self._wait_s()), None)
            if message is not None:
                self._take(message)
            self._look()
            self._note_deliveries()

    def end(self) -> None:
        """End every trial, send what can be sent, keep the figures."""
        for lane in self._lanes.values():
            for rule in lane.rules:
                self._apply(lane, rule, finish(rule, lane.states[rule.name], "stop"))
            self._account_for(lane, sys.maxsize)
        self._pool.stop(DRAIN_S)
        self._note_deliveries()
        waiting = self._pool.waiting()
        if any(waiting.values()):
            _log.warning("not delivered, and left to the next start in this folder: %s", waiting)
        for lane in self._lanes.values():
            try:
                lane.log.save(undelivered=sum(waiting.values()), finished=True, durable=True)
            except OSError as error:
                _log.error("%s: the summary cannot be written (%s)", self._out, error.strerror)
        (self._out / OUTPUT_STATUS_FILE).unlink(missing_ok=True)

    def _wait_s(self) -> float:
        """How long to wait for a label: until the next trial is over, or the next look at the clock."""
        ends_ns = [end_ns for lane in self._lanes.values() for end_ns in lane.ends_ns.values()]
        left_s = (min(ends_ns) - time.monotonic_ns()) / _NS if ends_ns else LOOK_EVERY_S
        return min(max(left_s, 0.0005), LOOK_EVERY_S)

    def _take(self, data: bytes) -> None:
        try:
            message = parse_status(data)
        except ValidationError:
            self._refuse("what came from the status address is not a message of this version")
            return
        lane = self._lanes.get(message.camera) if isinstance(message, LabelMessage) else None
        if lane is None or not isinstance(message, LabelMessage):
            return
        if len(message.labels) != (behaviours := len(self._manifest.behaviour_names)):
            self._refuse(f"labels of {len(message.labels)} behaviours came, the bundle has {behaviours}")
        elif message.labelled_ns is not None and message.clock != own_clock():
            self._refuse("inference runs on another machine, by whose clock the age of labels cannot be told")
        else:
            self._label(lane, message)

    def _refuse(self, why: str) -> None:
        """Say once why labels cannot be acted upon."""
        if why not in self._refused:
            self._refused.add(why)
            _log.error("%s; no trigger acts upon that", why)

    def _label(self, lane: _Lane, message: LabelMessage) -> None:
        if message.index > lane.log.taken + 1:
            self._account_for(lane, message.index)
        now_ns = time.monotonic_ns()
        moments = _moments(message, now_ns)
        fresh = moments is not None and now_ns - moments.captured_ns <= self._stale_ns
        late = not fresh and message.status != Status.GAP  # a gap has no times, and says that nothing is known
        if moments is not None and fresh:
            lane.captured_ns, lane.stale = moments.captured_ns, False
        elif late:
            lane.log.summary.late_labels += 1
            self._lapse(lane)
        lane.time_ns = message.time_ns
        for rule in lane.rules:
            now = condition(rule, message.status, message.labels)
            state = lane.states[rule.name]
            self._apply(lane, rule, step(rule, state, message.index, message.time_ns, now, late=late), moments)
            self._renew(lane, rule)
        lane.log.taken = max(lane.log.taken, message.index + message.ticks - 1)
        if moments is not None:
            lane.log.labelled(moments)

    def _account_for(self, lane: _Lane, until: int) -> None:
        """Take the rows before frame `until` that nobody heard, from the label log: what they begin is skipped."""
        labels = self._out / f"{lane.camera}{LABELS_SUFFIX}"
        try:
            until = min(until, last_frame(labels) + 1)
            known = max(lane.log.taken, until - 1 - MOST_UNHEARD)
            if known > lane.log.taken:
                words = "%s: nobody heard frames %d to %d, which are too many to look for what would have begun in them"
                _log.warning(words, lane.camera, lane.log.taken + 1, known)
            rows = read_labels(labels, self._manifest, from_frame=max(known, 0), growing=True)
            for row in takewhile(lambda row: row.index < until, rows):
                lane.time_ns = row.time_ns
                for rule in lane.rules:
                    state, now = lane.states[rule.name], condition(rule, row.status, row.labels)
                    if row.index in (known, state.last_index):
                        lane.states[rule.name] = remind(state, row.index, now)
                    else:
                        self._apply(lane, rule, step(rule, state, row.index, row.time_ns, now, late=True))
                lane.log.taken = row.index
                self._save_if_due()
        except (OSError, MbrError) as error:
            if not lane.unread:
                _log.error("%s: what nobody heard has no receipts (%s)", labels, error)
            lane.unread = True

    def _apply(
        self,
        lane: _Lane,
        rule: TriggerRule,
        outcome: tuple[list[Action], TriggerState],
        moments: Moments | None = None,
    ) -> None:
        actions, lane.states[rule.name] = outcome
        for action in actions:
            self._act(lane, rule, action, moments)

    def _act(self, lane: _Lane, rule: TriggerRule, action: Action, moments: Moments | None = None) -> None:
        """Write the decision, then tell the outputs. What cannot be written is not begun."""
        message = self._message(lane, action)
        outputs = [] if action.edge == "skip" else routes(rule, message, self._shams_to)
        try:
            lane.log.decided(message, action, dry_run=rule.dry_run, outputs=outputs)
        except MbrError as error:
            _log.error("%s", error)
            if action.edge == "on":
                lane.log.summary.unwritten += 1
                _, lane.states[rule.name] = finish(rule, lane.states[rule.name], "unwritten")
                self._act(lane, rule, replace(action, edge="skip", why="unwritten", on_s=0.0))
                return
        if action.edge == "skip":
            return
        if action.edge == "on":
            end_ns = time.monotonic_ns() + int(action.on_s * _NS)
            lane.ends_ns[rule.name] = end_ns
            until_ns = min(end_ns, lane.captured_ns + self._stale_ns)
            if moments is not None:
                lane.moments[message.id] = moments
                if len(lane.moments) > _MOMENTS_KEPT:
                    lane.moments.popitem(last=False)
        else:
            lane.ends_ns.pop(rule.name, None)
            until_ns = 0
        self._pool.edge(message, outputs, until_ns)

    def _message(self, lane: _Lane, action: Action) -> TriggerMessage:
        session = lane.log.summary.session
        edge: Literal["on", "off"] = "off" if action.edge == "off" else "on"
        return TriggerMessage(
            id=message_id(session, action), session=session, camera=action.camera, trigger=action.trigger,
            trial=action.trial, edge=edge, sham=action.sham, frame=action.index, time_ns=lane.time_ns,
            decided_ns=time.time_ns(), why=action.why, on_s=action.on_s,
        )  # fmt: skip

    def _renew(self, lane: _Lane, rule: TriggerRule) -> None:
        state = lane.states[rule.name]
        if state.trial is None or not state.is_on or state.trial.sham or rule.dry_run:
            return
        until_ns = min(lane.ends_ns.get(rule.name, 0), lane.captured_ns + self._stale_ns)
        self._pool.renew(rule.camera, rule.name, rule.outputs, until_ns)

    def _look(self) -> None:
        """What the clock ends: trials whose time is over, and everything where labels have gone stale."""
        now_ns = time.monotonic_ns()
        for lane in self._lanes.values():
            for rule in lane.rules:
                if now_ns >= lane.ends_ns.get(rule.name, now_ns + 1):
                    why = "limit" if rule.when == "while" else "done"
                    self._apply(lane, rule, finish(rule, lane.states[rule.name], why))
            if not lane.stale and now_ns - lane.captured_ns > self._stale_ns:
                self._lapse(lane)

    def _lapse(self, lane: _Lane) -> None:
        lane.stale = True
        for rule in lane.rules:
            self._apply(lane, rule, lapse(rule, lane.states[rule.name], "stale"))

    def _note_deliveries(self) -> None:
        for delivery in self._pool.deliveries():
            lane = self._lanes[delivery.message.camera]
            message = delivery.message
            moments = lane.moments.get(message.id) if message.edge == "on" else None
            if delivery.outcome == "failed":
                self._failed_ns[delivery.output] = time.monotonic_ns()
            self._last = (
                f"{message.camera}/{message.trigger} trial {message.trial} {message.edge}: "
                f"{delivery.output} {delivery.outcome}"
            )
            try:
                lane.log.delivered(delivery, moments)
            except MbrError as error:
                _log.error("%s", error)

    def _save_if_due(self) -> None:
        if time.monotonic() < self._next_save_s:
            return
        self._next_save_s = time.monotonic() + SAVE_EVERY_S
        notify("WATCHDOG=1")
        waiting = self._pool.waiting()
        try:
            for lane in self._lanes.values():
                lane.log.save(undelivered=sum(waiting.values()))
            status = self._status(waiting)
            write_atomically(self._out / OUTPUT_STATUS_FILE, status.model_dump_json() + "\n", durable=False)
        except OSError as error:
            _log.error("%s: cannot be written (%s)", self._out, error)

    def _status(self, waiting: Mapping[str, int]) -> OutputStatus:
        """Of the summaries as they were just saved."""
        now_ns = time.monotonic_ns()
        summaries = [lane.log.summary for lane in self._lanes.values()]
        delivered = sum((Counter(summary.deliveries) for summary in summaries), Counter())
        outputs = [
            OutputState(
                name=name, waiting=n, error=self._pool.error(name),
                failing=now_ns - self._failed_ns.get(name, -FAILING_FOR_NS) < FAILING_FOR_NS,
                delivered={kind: count for kind in get_args(Outcome) if (count := delivered[f"{name} {kind}"])},
            )
            for name, n in waiting.items()
        ]  # fmt: skip
        triggers = [
            TriggerFigures(
                name=f"{camera}/{rule.name}", on=lane.states[rule.name].is_on, dry_run=rule.dry_run,
                trials=lane.log.summary.trials.get(rule.name, 0), shams=lane.log.summary.shams.get(rule.name, 0),
            )
            for camera, lane in self._lanes.items()
            for rule in lane.rules
        ]  # fmt: skip
        return OutputStatus(
            pid=os.getpid(), said_ns=now_ns, outputs=outputs, triggers=triggers,
            skipped=dict(sum((Counter(summary.skipped) for summary in summaries), Counter())),
            stale=[camera for camera, lane in self._lanes.items() if lane.stale], last=self._last,
        )  # fmt: skip


def _moments(message: LabelMessage, now_ns: int) -> Moments | None:
    """When the frame of a label passed the stages; None for a gap.

    A frame that another machine captured counts from its receipt, which is when this machine's clock first saw it.
    """
    if message.received_ns is None or message.labelled_ns is None:
        return None
    captured_ns = message.received_ns if message.captured_ns is None else message.captured_ns
    return Moments(captured_ns, message.received_ns, message.labelled_ns, now_ns)
