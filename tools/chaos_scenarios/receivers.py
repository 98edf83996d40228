"""Who gets triggers, and whether all came that were decided, and no others."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

from chaos_scenarios.counting import Outcome, labels_of
from mbr_live.bundle import load_bundle
from mbr_live.config import Config
from mbr_live.sinks.label_log import LabelRow
from mbr_live.trigger_config import AnyOutput, SerialOutput, Trigger, Watchdog, WebhookOutput
from mbr_live.triggers.log import SUMMARY_SUFFIX, TRIGGERS_SUFFIX, read_receipts
from mbr_live.triggers.outputs.simulated_box import SimulatedBox
from mbr_live.types import Status

STALE_AFTER_S = 1.0  # more than the default: the machine of a campaign is busy
PULSE_S = 0.05
BEHAVIOURS = ("grooming", "rearing")


class Receiver:
    """An HTTP server that keeps the id of every message; `with` it, it listens."""

    def __init__(self) -> None:
        self.ids: Counter[str] = Counter()
        outer = self

        class Request(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.ids[json.loads(body)["id"]] += 1
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Request)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> Receiver:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def with_triggers(config: Config, box: SimulatedBox, url: str, more: Sequence[AnyOutput] = ()) -> Config:
    """The beginning and the end of every behaviour of every camera fire, at a line each and at a webhook."""
    lines = [SerialOutput(kind="serial", name=f"line{n}", port=box.port, line=n) for n in range(len(config.camera))]
    outputs = (*lines, WebhookOutput(kind="webhook", name="hook", url=url, timeout_s=2), *more)
    triggers = tuple(
        Trigger(
            name=f"{camera.name}-{when}-{behaviour}", camera=camera.name, when=when, all=(behaviour,), on_s=PULSE_S,
            outputs=(f"line{n}", "hook", *(output.name for output in more)),
        )
        for n, camera in enumerate(config.camera)
        for behaviour in BEHAVIOURS
        for when in ("onset", "offset")
    )  # fmt: skip
    update = {"trigger": triggers, "output": outputs, "watchdog": Watchdog(stale_after_s=STALE_AFTER_S)}
    return Config.model_validate(config.model_copy(update=update).model_dump())


def count_triggers(outcome: Outcome, config: Config, received: Sequence[Counter[str]]) -> None:
    """Every event in the labels against the receipts, and every receipt against what was received."""
    columns = load_bundle(config.bundle).manifest.behaviour_names
    decided_ids: set[str] = set()
    for camera in (camera.name for camera in config.camera):
        session = json.loads((config.out / f"{camera}{SUMMARY_SUFFIX}").read_text())["session"]
        receipts = list(read_receipts(config.out / f"{camera}{TRIGGERS_SUFFIX}"))
        on = {(row["trigger"], int(row["frame"])) for row in receipts if _is(row, "decided", "on")}
        skipped = {(row["trigger"], int(row["frame"])): row["why"] for row in receipts if row["what"] == "skipped"}
        events = _events(camera, labels_of(config, camera), columns)
        outcome.triggers_false += len((on | skipped.keys()) - events)
        for trigger, frame in sorted(events - on - skipped.keys()):
            outcome.triggers_lost += 1
            outcome.notes.append(f"no receipt of {trigger} at {frame}")
        outcome.skips.update(skipped.values())
        decided_ids |= {
            f"{session}/{camera}/{row['trigger']}/{row['trial']}/{row['edge']}/{row['frame']}"
            for row in receipts
            if row["what"] == "decided"
        }
    outcome.triggers = len(decided_ids)
    for ids in received:
        outcome.triggers_lost += len(decided_ids - set(ids))
        outcome.triggers_false += len(set(ids) - decided_ids)
    if twice := sum(count - 1 for ids in received for count in ids.values()):
        outcome.notes.append(f"{twice} messages delivered twice, under the same id")
    if outcome.skips:
        outcome.notes.append(f"events skipped: {', '.join(f'{why} {n}' for why, n in sorted(outcome.skips.items()))}")


def count_pulses(outcome: Outcome, config: Config, box: SimulatedBox) -> None:
    """No line was high more often than a trial was decided for it, and none longer than a label may be old."""
    for n, camera in enumerate(config.camera):
        receipts = read_receipts(config.out / f"{camera.name}{TRIGGERS_SUFFIX}")
        decided = sum(_is(row, "decided", "on") for row in receipts)
        pulses = len(box.highs(n))
        outcome.triggers_false += max(0, pulses - decided)
        if pulses > decided:
            outcome.notes.append(f"line {n} was high {pulses} times, {decided} trials were decided for it")
    longest_ms = max((hold.ms for hold in box.holds), default=0)
    outcome.expect(longest_ms <= STALE_AFTER_S * 1000, f"a line was told to be high for {longest_ms} ms")


def _is(row: dict[str, str], what: str, edge: str) -> bool:
    return (row["what"], row["edge"]) == (what, edge)


def _events(camera: str, rows: Sequence[LabelRow], behaviours: Sequence[str]) -> set[tuple[str, int]]:
    """Trigger and frame of every beginning and end between two rows that are known: not by the code that is tested."""
    found = set()
    for before, now in pairwise(rows):
        if before.status != Status.OK or now.status != Status.OK:
            continue
        for name, was, is_ in zip(behaviours, before.labels, now.labels, strict=True):
            if name in BEHAVIOURS and was != is_:
                found.add((f"{camera}-{'onset' if is_ else 'offset'}-{name}", now.index))
    return found
