"""The output process as a whole: real processes, real ZeroMQ, a TTL box at a pseudo-terminal; and what kill -9 does."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from contextlib import closing
from pathlib import Path

import pytest
from live import labelled, mbr_live, wait_for
from test_outputs import http_server
from trigger_rig import Labels, listening, outcomes, output_process, ready, receipts, rig_config, trigger

from mbr_live.config import Config
from mbr_live.live.run import System
from mbr_live.processes import EXIT_USER_ERROR, Child
from mbr_live.trigger_config import SerialOutput, WebhookOutput
from mbr_live.triggers.output import check_outputs
from mbr_live.triggers.outputs.simulated_box import SimulatedBox
from mbr_live.types import MbrError

STALE_AFTER_S = 2.0
PULSE_IS_OVER = ("confirmed", "off", "laser", "")


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
            labels.play([0, *[1] * 12, 0, 0])
            wait_for(lambda: ("confirmed", "off", "lamp", "") in outcomes(config), "the receipts")
        ((start_ns, end_ns),) = box.highs(1)
        assert 0.2e9 < end_ns - start_ns < 0.49e9  # not the 0.5 s of the grid
        ((start_ns, end_ns),) = box.highs(2)
        assert end_ns - start_ns > 0.5e9
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
        config = rig_config(tmp_path, [trigger([line(box)], when="while", max_on_s=30)], [line(box)], STALE_AFTER_S)
        with closing(Labels(config)) as labels, output_process(config):
            listening(config, labels)
            labels.play([0, 1, 1])
            wait_for(lambda: ("decided", "off", "laser", "stale") in outcomes(config), "staleness")
            wait_for(lambda: not box.is_high(1), "the line to fall")
            first = box.highs(1)
            # The tick after: the same bout. It has had its trial, though its label is fresh again.
            labels.play([1, 1, 0])
            for _ in range(5):
                labels.row(1, age_s=STALE_AFTER_S + 0.05)
                time.sleep(0.1)
            assert box.highs(1) == first
            labels.play([0, 1])
            wait_for(lambda: len(box.highs(1)) == 2, "the next bout")
        assert_leased(box)


def test_an_onset_counts_where_labels_paused_before_it(tmp_path: Path) -> None:
    """Nothing came for longer than a label may be old; then the next row, fresh, begins a bout."""
    with SimulatedBox() as box:
        config = rig_config(tmp_path, [trigger([line(box)])], [line(box)], STALE_AFTER_S)
        with closing(Labels(config)) as labels, output_process(config):
            listening(config, labels)
            labels.row(0)
            time.sleep(STALE_AFTER_S + 0.3)
            labels.play([1, 0])
            wait_for(lambda: len(box.highs(1)) == 1, "the pulse")


def test_an_onset_that_nobody_could_act_upon_has_a_receipt_that_says_so(tmp_path: Path) -> None:
    """Its label came too late, or untimed; it never came; nobody was there; it was the last one of the session."""
    with SimulatedBox() as box:
        config = rig_config(tmp_path, [trigger([line(box)])], [line(box)], STALE_AFTER_S)
        onsets: list[int] = []

        def bout(*, age_s: float = 0.0, told: bool = True, timed: bool = True) -> None:
            onsets.append(labels.index)
            for grooming in (1, 0):
                labels.row(grooming, age_s=age_s, told=told, timed=timed)

        with closing(Labels(config)) as labels:
            with output_process(config) as child:
                listening(config, labels)
                bout(age_s=STALE_AFTER_S + 0.05)
                bout(timed=False)
                bout(told=False)
                labels.row(0)
                wait_for(lambda: len(skipped(config)) == 3, "the receipts of these")
                kill(child)
            bout()
            with output_process(config):
                listening(config, labels)
                bout(told=False)
        assert skipped(config) == [(frame, "stale") for frame in onsets]
        assert box.highs(1) == []


def test_what_nobody_heard_for_long_is_looked_for_in_its_last_hour(tmp_path: Path) -> None:
    with SimulatedBox() as box:
        config = rig_config(tmp_path, [trigger([line(box)])], [line(box)], STALE_AFTER_S)
        with closing(Labels(config)) as labels:
            with output_process(config):
                listening(config, labels)
            begun = labels.index
            with (config.out / "cage.labels.csv").open("a") as log:  # a bout of a second every two, for 80 minutes
                log.writelines(f"{n},{n},{n},ok,,,,,{n // 10 % 2},0\n" for n in range(begun, begun + 48_000))
            labels.index += 48_000
            with output_process(config) as child:
                listening(config, labels)
            assert f"nobody heard frames {begun} to" in child.last_words()
        frames = [frame for frame, why in skipped(config) if why == "stale"]
        assert begun + 11_990 < frames[0] < begun + 12_020 and len(frames) == 1800


def skipped(config: Config) -> list[tuple[int, str]]:
    return [(int(row["frame"]), row["why"]) for row in receipts(config) if row["what"] == "skipped"]


def test_shams_and_dry_runs_are_written_and_not_delivered(tmp_path: Path) -> None:
    with SimulatedBox() as box:
        triggers = [
            trigger([line(box)], name="sham", sham={"probability": 1.0, "seed": 4}),
            trigger([line(box)], name="dry", dry_run=True),
        ]
        config = rig_config(tmp_path, triggers, [line(box)])
        with closing(Labels(config)) as labels, output_process(config):
            listening(config, labels)
            for trial in (1, 2):
                labels.play([0, 1])
                wait_for(lambda trial=trial: len(receipts(config)) == 4 * trial, "the receipts")
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
        config = rig_config(tmp_path, triggers, [line(box), line(box, 2, "lamp")], STALE_AFTER_S)
        with closing(Labels(config)) as labels:
            with output_process(config) as child:
                listening(config, labels)
                labels.play([0, 1, 1, 1])
                wait_for(lambda: box.is_high(1) and box.is_high(2), "both lines to be high")
                assert child.pid is not None
                kill(child)
            wait_for(lambda: not box.is_high(1) and not box.is_high(2), "the lines to fall by themselves")
            assert box.holds[-1].ms > 0  # nobody told them to
            assert_leased(box)
            labels.play([1, 1])
            with output_process(config):
                listening(config, labels, grooming=1)
                wait_for(
                    lambda: ("decided", "off", "laser", "restart") in outcomes(config), "the open trials to be closed"
                )
                assert len(box.highs(1)) == len(box.highs(2)) == 1  # the bout goes on, and is not fired upon again
                labels.play([0, 1, 1])
                wait_for(lambda: len(box.highs(1)) == len(box.highs(2)) == 2, "the next bout")
    trials = [
        (row["trigger"], row["trial"]) for row in receipts(config) if (row["what"], row["edge"]) == ("decided", "on")
    ]
    assert sorted(trials) == [("lamp", "1"), ("lamp", "2"), ("stim", "1"), ("stim", "2")]
    assert json.loads((config.out / "cage.triggers.json").read_text())["restarts"] == 1


def test_what_a_receiver_missed_is_delivered_by_the_next_process_and_nothing_twice(tmp_path: Path) -> None:
    posts: list[str] = []
    with SimulatedBox() as box, http_server() as server:
        hook = WebhookOutput(kind="webhook", name="hook", url=f"http://127.0.0.1:{server.server_port}/")
        config = rig_config(tmp_path, [trigger([line(box), hook])], [line(box), hook])
        server.answers[:] = [503] * 1000
        with closing(Labels(config)) as labels:
            with output_process(config) as child:
                listening(config, labels)
                for trial in (1, 2):
                    labels.play([0, 1])
                    wait_for(lambda trial=trial: outcomes(config).count(PULSE_IS_OVER) == trial, "the pulse")
                assert child.pid is not None
                os.kill(child.pid, signal.SIGKILL)
                child.wait(5)
            assert ("confirmed", "on", "laser", "") in outcomes(config)
            assert not any(row["output"] == "hook" for row in receipts(config))
            server.answers.clear()
            server.posts.clear()
            with output_process(config):
                wait_for(lambda: outcomes(config).count(("confirmed", "off", "hook", "")) == 2, "the outbox to empty")
            posts = [key for key, *_ in server.posts]
        assert len(box.highs(1)) == 2  # a pulse is never repeated
    assert [key.split("/", 1)[1].rpartition("/")[0] for key in posts] == [
        "cage/stim/1/on", "cage/stim/1/off", "cage/stim/2/on", "cage/stim/2/off",
    ]  # fmt: skip
    assert sum(row["what"] == "decided" for row in receipts(config)) == 4


@pytest.mark.parametrize("before", ["dry run", "not among its outputs", "sham"])
def test_an_output_is_not_told_afterwards_of_what_it_was_not_meant_to_be_told(before: str, tmp_path: Path) -> None:
    """A dry run that ends, an output that is added, shams that are to be told from now on: only what comes is told."""
    with http_server() as server:
        url = f"http://127.0.0.1:{server.server_port}/"
        hook = WebhookOutput(kind="webhook", name="hook", url=url, timeout_s=0.5)
        sham = {"probability": 1.0, "seed": 1} if before == "sham" else None
        first = trigger([] if before == "not among its outputs" else [hook], sham=sham, dry_run=before == "dry run")
        config = rig_config(tmp_path, [first], [hook])
        with closing(Labels(config)) as labels:
            with output_process(config):
                listening(config, labels)
                labels.play([0, 1, 0])
            update = {"trigger": (trigger([hook], sham=sham),), "output": (hook.model_copy(update={"shams": True}),)}
            (tmp_path / "system.json").write_text(config.model_copy(update=update).model_dump_json())
            with output_process(config):
                labels.play([0, 0, 0, 1, 0])
                wait_for(lambda: ("confirmed", "off", "hook", "") in outcomes(config), "the trial")
        assert [key.split("/")[3] for key, *_ in server.posts] == ["2", "2"]


def test_no_receipt_no_trigger(tmp_path: Path) -> None:
    """A disk that takes no more: nothing begins, what is on ends, and it goes on when there is room."""
    with SimulatedBox() as box:
        config = rig_config(tmp_path, [trigger([line(box)], when="while", max_on_s=30)], [line(box)])
        log = tmp_path / "cage.triggers.csv"
        with closing(Labels(config)) as labels, output_process(config) as child:
            listening(config, labels)
            labels.play([0, 1] * 9)  # so that the receipts are longer than any other file of the process
            wait_for(lambda: outcomes(config).count(("confirmed", "on", "laser", "")) == 9, "the trials to begin")
            assert box.is_high(1)
            assert child.pid is not None
            full = (log.stat().st_size, resource.RLIM_INFINITY)
            resource.prlimit(child.pid, resource.RLIMIT_FSIZE, full)
            labels.play([0, 0])
            wait_for(lambda: not box.is_high(1), "the trial to end")
            labels.play([1, 1, 0])
            wait_for(lambda: unwritten(config) == 1, "the trial that is not begun")
            assert len(box.highs(1)) == 9
            resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            labels.play([0, 1, 1, 0, 0])
            wait_for(lambda: len(box.highs(1)) == 10, "the next trial")
    assert unwritten(config) == 1
    begun = [row["trial"] for row in receipts(config) if (row["what"], row["edge"]) == ("decided", "on")]
    assert begun == [*map(str, range(1, 10)), "11"]  # the number of the one that was not begun is not used again
    (of_it,) = [row for row in receipts(config) if row["what"] == "skipped"]
    assert (of_it["why"], of_it["trial"]) == ("unwritten", "10")


def test_receipts_of_another_session_are_refused(tmp_path: Path) -> None:
    with SimulatedBox() as box:
        config = rig_config(tmp_path, [trigger([line(box)])], [line(box)])
        with closing(Labels(config)) as labels, output_process(config):
            listening(config, labels)
            labels.play([0, 1, 0])
            wait_for(lambda: receipts(config), "the receipts")
        (tmp_path / "cage.labels.csv").unlink()
        with output_process(config) as child:
            assert child.exit_code == EXIT_USER_ERROR
        assert "they are not of the same session" in child.last_words()


def test_killed_inference_and_killed_output_in_a_whole_system(tmp_path: Path) -> None:
    with SimulatedBox() as box:
        outputs = (line(box),)
        wanted = trigger(outputs, all=(), none=("grooming",), when="while", max_on_s=60)
        config = rig_config(tmp_path, [wanted], outputs, STALE_AFTER_S)
        with System(config) as system:
            (output,) = system.outputs
            wait_for(lambda: held(box), "the trigger to come on", system)
            assert output.pid is not None
            os.kill(output.pid, signal.SIGSTOP)  # it hangs: the line falls, and no label waits for it
            wait_for(lambda: not box.is_high(1), "the line to fall")
            rows = labelled(config.out, "cage", "ok")
            wait_for(lambda: labelled(config.out, "cage", "ok") > rows + 20, "labels to go on")
            os.kill(output.pid, signal.SIGCONT)
            wait_for(lambda: ("decided", "off", "laser", "stale") in outcomes(config), "the decision")
            kill(system.inference)
            wait_for(lambda: not box.is_high(1), "the line to fall")
            assert_leased(box)
            wait_for(lambda: revived(system), "inference to come back")
            kill(output)
            wait_for(lambda: revived(system), "the output process to come back")
            wait_for(lambda: ready(config, output), "it to be at work")
            assert (output.restarts, system.inference.restarts) == (1, 1)
            output.ask_to_stop()  # as somebody else may; it ends well
            wait_for(lambda: revived(system) and output.restarts == 2, "it to come back once more")
        assert not box.is_high(1)


def kill(child: Child) -> None:
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.wait(5)


def assert_leased(box: SimulatedBox) -> None:
    """No hold was longer than labels may be old, so after the death of whomever the box is low within that time."""
    assert box.holds
    assert max(hold.ms for hold in box.holds) <= STALE_AFTER_S * 1000


def unwritten(config: Config) -> int:
    """Trials that were not begun because the log took no receipt, as the process said last."""
    return int(json.loads((config.out / "cage.triggers.json").read_text())["unwritten"])


def held(box: SimulatedBox) -> bool:
    """Whether line 1 has been high for longer than a lease."""
    return box.is_high(1) and box.highs(1)[-1][1] - box.highs(1)[-1][0] > 1.2 * STALE_AFTER_S * 1e9


def revived(system: System) -> bool:
    system.look_after()
    return all(child.pid is not None for child in (system.inference, *system.outputs))


def test_run_names_an_output_that_cannot_be_used_before_anything_is_labelled(tmp_path: Path) -> None:
    outputs = [SerialOutput(kind="serial", name="laser", port="/dev/nowhere", line=1)]
    config = rig_config(tmp_path, [trigger(outputs)], outputs)
    done = mbr_live("run", config.out / "system.json", "--plain")
    assert done.returncode == EXIT_USER_ERROR
    assert "output laser: the serial port /dev/nowhere cannot be opened" in done.stderr
    assert not (config.out / "cage.labels.csv").exists()


def test_a_check_names_all_that_is_wrong_at_once(tmp_path: Path) -> None:
    with SimulatedBox() as box:
        good = line(box)
        bad = [
            SerialOutput(kind="serial", name="lamp", port="/dev/nowhere", line=1),
            WebhookOutput(kind="webhook", name="hook", url="http://127.0.0.1:9/"),
        ]
        check_outputs(rig_config(tmp_path, [trigger([good])], [good]))
        with pytest.raises(MbrError, match=r"output lamp: .*\noutput hook: .*"):
            check_outputs(rig_config(tmp_path, [trigger([good])], [good, *bad]))
        check_outputs(rig_config(tmp_path, [trigger([good])], [good]))  # and it let go of the port


def test_run_names_a_behaviour_that_the_bundle_does_not_have(tmp_path: Path) -> None:
    config = rig_config(tmp_path, [trigger([], all=("grooming", "flying"))], [])
    done = mbr_live("run", config.out / "system.json", "--plain")
    assert done.returncode == EXIT_USER_ERROR
    assert "trigger stim: the bundle has no behaviour flying, only grooming, rearing" in done.stderr
