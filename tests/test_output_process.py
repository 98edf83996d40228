"""The output process as a whole: real processes, real ZeroMQ, a TTL box at a pseudo-terminal; and what kill -9 does."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import closing
from pathlib import Path

from trigger_rig import Labels, listening, outcomes, output_process, receipts, rig_config, trigger, wait_for

from mbr_live.outputs.simulated_box import SimulatedBox
from mbr_live.trigger_config import SerialOutput

STALE_NS = 250_000_000
SAFE_WITHIN_NS = 300_000_000


def line(box: SimulatedBox, number: int = 1, name: str = "laser") -> SerialOutput:
    return SerialOutput(kind="serial", name=name, port=box.port, line=number)


def test_a_pulse_has_its_length_and_a_while_follows_the_label(tmp_path: Path) -> None:
    with SimulatedBox() as box:
        outputs = [line(box), line(box, 2, "lamp")]
        triggers = [
            trigger(outputs[:1], on_s=0.42),
            trigger(outputs[1:], name="follow", when="while", max_on_s=30),
        ]
        config = rig_config(tmp_path, triggers, outputs)
        with closing(Labels(config)) as labels, output_process(config):
            listening(config, labels)
            labels.play([0, 1, 1, 1, 1, 1, 1, 0, 0])
            wait_for(lambda: ("confirmed", "off", "lamp", "") in outcomes(config), "the receipts")
        ((start_ns, end_ns),) = box.highs(1)
        assert 0.40e9 < end_ns - start_ns <= 0.43e9
        ((start_ns, end_ns),) = box.highs(2)
        assert 0.5e9 < end_ns - start_ns < 0.75e9
    decided = [(row["trigger"], row["edge"], row["why"]) for row in receipts(config) if row["what"] == "decided"]
    assert decided == [
        ("stim", "on", "onset"), ("follow", "on", "while"), ("stim", "off", "done"), ("follow", "off", "over"),
    ]  # fmt: skip
    summary = json.loads((config.out / "cage.triggers.json").read_text())
    assert summary["trials"] == {"stim": 1, "follow": 1}
    assert summary["deliveries"] == {"laser confirmed": 2, "lamp confirmed": 2}
    assert summary["finished"]
    assert set(summary["latency"]["capture_to_sent"]) == {"p50_ms", "p95_ms", "p99_ms", "max_ms"}
    for row in receipts(config):
        if row["what"] == "confirmed":
            assert int(row["decided_ns"]) <= int(row["sent_ns"]) <= int(row["confirmed_ns"])


def test_labels_that_stop_or_come_late_end_everything(tmp_path: Path) -> None:
    with SimulatedBox() as box:
        config = rig_config(tmp_path, [trigger([line(box)], when="while", max_on_s=30)], [line(box)])
        with closing(Labels(config)) as labels, output_process(config):
            listening(config, labels)
            labels.play([0, 1, 1])
            wait_for(lambda: ("decided", "off", "", "stale") in outcomes(config), "staleness")
            first = box.highs(1)
            # The tick after: the same bout. It has had its trial, though its label is fresh again.
            labels.play([1, 1, 0])
            for _ in range(5):
                labels.row(1, age_s=0.3)
                time.sleep(0.1)
            assert box.highs(1) == first
            labels.play([0, 1])
            wait_for(lambda: len(box.highs(1)) == 2, "the next bout")
        assert first[0][1] - labels.captured_ns[labels.index - 11] <= SAFE_WITHIN_NS


def test_shams_and_dry_runs_are_written_and_not_delivered(tmp_path: Path) -> None:
    with SimulatedBox() as box:
        triggers = [
            trigger([line(box)], name="sham", sham={"probability": 1.0, "seed": 4}),
            trigger([line(box)], name="dry", dry_run=True),
        ]
        config = rig_config(tmp_path, triggers, [line(box)])
        with closing(Labels(config)) as labels, output_process(config):
            listening(config, labels)
            labels.play([0, 1, 0, 1, 0])
        assert box.highs(1) == []
    rows = [(row["trigger"], row["what"], row["edge"], row["sham"], row["dry_run"]) for row in receipts(config)]
    for name, sham, dry_run in (("sham", "1", "0"), ("dry", "0", "1")):
        own = [row[1:] for row in rows if row[0] == name]
        assert own == [("decided", "on", sham, dry_run), ("decided", "off", sham, dry_run)] * 2


def test_a_killed_output_leaves_the_box_low_and_repeats_nothing(tmp_path: Path) -> None:
    with SimulatedBox() as box:
        triggers = [
            trigger([line(box)], on_s=30),
            trigger([line(box, 2, "lamp")], name="lamp", when="while", max_on_s=30),
        ]
        config = rig_config(tmp_path, triggers, [line(box), line(box, 2, "lamp")])
        with closing(Labels(config)) as labels:
            with output_process(config) as child:
                listening(config, labels)
                labels.play([0, 1, 1, 1])
                assert box.is_high(1)
                assert box.is_high(2)
                assert child.pid is not None
                os.kill(child.pid, signal.SIGKILL)
                killed_ns = time.monotonic_ns()
                child.wait(5)
            for number in (1, 2):
                assert box.highs(number)[-1][1] - killed_ns <= SAFE_WITHIN_NS
            labels.play([1, 1])
            with output_process(config):
                labels.play([1, 1, 1, 1, 1])
                wait_for(lambda: ("decided", "off", "", "restart") in outcomes(config), "the open trials to be closed")
                assert len(box.highs(1)) == len(box.highs(2)) == 1  # the bout goes on, and is not fired upon again
                labels.play([0, 1, 1])
                wait_for(lambda: len(box.highs(1)) == len(box.highs(2)) == 2, "the next bout")
    trials = [
        (row["trigger"], row["trial"]) for row in receipts(config) if (row["what"], row["edge"]) == ("decided", "on")
    ]
    assert sorted(trials) == [("lamp", "1"), ("lamp", "2"), ("stim", "1"), ("stim", "2")]
    assert json.loads((config.out / "cage.triggers.json").read_text())["restarts"] == 1
