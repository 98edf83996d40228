"""The log of receipts is the memory of the output process: what it reads back is what was."""

from __future__ import annotations

import math
import resource
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from receipts import TEMPLATE, BusyMachine, labels_up_to, message_of
from test_triggers import ONSET, WHILE, play, rows, rules

from mbr_live.bundle import Bundle
from mbr_live.manifest import Manifest
from mbr_live.sinks.session_log import SessionLog
from mbr_live.triggers.log import HEADER, Summary, TriggerLog, open_log, read_receipts, read_yoked
from mbr_live.triggers.machine import Action, TriggerRule
from mbr_live.triggers.outputs.workers import Delivery
from mbr_live.types import TICK_NS, UNKNOWN, Decision, MbrError, Status


def labelled_session(folder: Path, manifest: Manifest, rows: int, origin_ns: int) -> None:
    """The labels of a session that began at `origin_ns`."""
    log = SessionLog.create(folder / "cage.labels.csv", folder / "cage.bouts.csv", manifest)
    unknown = (UNKNOWN,) * len(manifest.behaviours)
    for index in range(rows):
        log.write(
            Decision("cage", index, index, origin_ns + index * TICK_NS, Status.LOST, math.nan, math.nan, (), unknown)
        )
    log.close()


def log_with_a_trial(folder: Path) -> TriggerLog:
    """Receipts of a session of 100 rows that began at 0 ns; its trial began at frame 95."""
    log, _ = open_log(folder, "cage", [ONSET], TEMPLATE)
    action = Action("stim", "cage", "on", 1, 95, on_s=0.5)
    log.decided(message_of(log, action), action, dry_run=False, outputs=())
    log.close()
    return log


@settings(max_examples=50)
@given(rules, rows, st.integers(0, 20))
def test_a_new_process_knows_what_the_old_one_did(rule: TriggerRule, conditions: list[int], delivered: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log, _ = open_log(folder, "cage", [rule], TEMPLATE)
        actions, _, old = play(rule, conditions)
        sent = []
        for action in actions:
            message = message_of(log, action)
            told = action.edge != "skip" and not action.sham
            log.decided(message, action, dry_run=False, outputs=("laser",) if told else ())
            sent += [message] if told else []
        for message in sent[:delivered]:
            log.delivered(Delivery(message, "laser", "confirmed", 1, 2), None)
        log.close()
        with (folder / "cage.triggers.csv").open("a") as file:
            file.write("decided,stim,9")  # torn off by a power cut
        labels_up_to(folder, 10_000)
        again, past = open_log(folder, "cage", [rule], TEMPLATE)
        again.close()
        state = past.states["stim"]
        assert (state.trials, state.recent, state.spent) == (old.trials, old.recent, bool(actions))
        assert [(each.edge, each.trial, each.sham, each.why) for each in past.closing["stim"]] == [
            ("off", trial.number, trial.sham, "restart") for trial in [old.trial] if trial and old.is_on
        ]
        assert [message.id for message, _ in past.unfinished] == [message.id for message in sent[delivered:]]
        assert again.summary.session == log.summary.session
        again.save(undelivered=0)
        assert sum(again.summary.trials.values()) == state.trials
        assert sum(again.summary.skipped.values()) == sum(action.edge == "skip" for action in actions)


def test_what_a_trigger_owes_is_known_after_it_was_taken_out_of_the_configuration(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "cage", [ONSET], TEMPLATE)
    action = Action("stim", "cage", "on", 1, 5, on_s=0.5)
    log.decided(message_of(log, action), action, dry_run=False, outputs=("hook", "broker"))
    log.delivered(Delivery(message_of(log, action), "broker", "confirmed", 1, 2), None)
    log.close()
    labels_up_to(tmp_path, 10)
    again, past = open_log(tmp_path, "cage", [TriggerRule("other", "cage", "onset", all_of=(0,), on_s=0.1)], TEMPLATE)
    again.close()
    assert [(message.trigger, message.edge, output) for message, output in past.unfinished] == [("stim", "on", "hook")]


def test_a_yoked_trigger_repeats_what_was_delivered(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "cage", [WHILE], TEMPLATE)
    for action in play(WHILE, [0, 1, 1, 1, 0, 0, 1, 1])[0]:
        log.decided(message_of(log, action), action, dry_run=False, outputs=())
    log.close()
    # The second trial has no end: it was on when that session was cut off, so its length is not known.
    assert read_yoked(tmp_path / "cage.triggers.csv", "stim") == ((1, 0.3),)
    with pytest.raises(MbrError, match="holds no trials of a trigger other"):
        read_yoked(tmp_path / "cage.triggers.csv", "other")
    with pytest.raises(MbrError, match=r"nowhere\.csv: cannot be read"):
        read_yoked(tmp_path / "nowhere.csv", "stim")


def test_a_text_with_commas_and_lines_stays_one_row(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "cage", [ONSET], TEMPLATE)
    action = Action("stim", "cage", "on", 1, 5)
    log.delivered(Delivery(message_of(log, action), "hook", "failed", detail='no, "never",\nsaid it\r'), None)
    log.close()
    (row,) = read_receipts(tmp_path / "cage.triggers.csv")
    assert row["why"] == 'no, "never", said it '


def test_what_is_not_a_log_of_receipts_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cage.triggers.csv").write_text("a,b\n1,2\n")
    with pytest.raises(MbrError, match="this is not a log of triggers"):
        open_log(tmp_path, "cage", [ONSET], TEMPLATE)
    with pytest.raises(MbrError, match="this is not a log of triggers"):
        list(read_receipts(tmp_path / "cage.triggers.csv"))


@pytest.mark.parametrize("left", ["", "what,trig", HEADER, HEADER + "\n"])
def test_a_process_that_was_killed_as_it_began_leaves_a_log_to_begin(tmp_path: Path, left: str) -> None:
    path = tmp_path / "cage.triggers.csv"
    path.write_text(left)  # and no summary
    log, past = open_log(tmp_path, "cage", [ONSET], TEMPLATE)
    log.close()
    assert path.read_text() == HEADER + "\n"
    assert log.summary.restarts == 0
    assert not past.counts


def test_a_disk_that_was_full_as_the_log_was_begun_is_waited_for(small_disk: Path) -> None:
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(free - 4096))  # the header finds room, the summary does not
    with pytest.raises(OSError, match="No space left"):
        open_log(small_disk, "cage", [ONSET], TEMPLATE)
    assert (small_disk / "cage.triggers.csv").read_text() == HEADER + "\n"
    (small_disk / "ballast").unlink()
    log, _ = open_log(small_disk, "cage", [ONSET], TEMPLATE)
    log.close()
    assert (small_disk / "cage.triggers.json").exists()


def test_frames_before_there_were_triggers_are_accounted_for_and_others_once_their_receipts_are_written(
    tmp_path: Path,
) -> None:
    def accounted() -> int:
        return Summary.model_validate_json((tmp_path / "cage.triggers.json").read_text()).accounted

    labels_up_to(tmp_path, 100)
    log, _ = open_log(tmp_path, "cage", [ONSET], TEMPLATE)
    assert accounted() == log.taken == 100
    skip = Action("stim", "cage", "skip", 0, 110, why="stale")
    for _ in range(100):  # longer than the summary, which finds room below
        log.decided(message_of(log, skip), skip, dry_run=False, outputs=())
    log.taken = 110
    log.save(undelivered=0)
    assert accounted() == 110
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "cage.triggers.csv").stat().st_size, resource.RLIM_INFINITY))
    try:
        log.decided(message_of(log, skip), skip, dry_run=False, outputs=())
        log.taken = 120
        log.save(undelivered=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert accounted() == 110
    log.close()
    labels_up_to(tmp_path, 120)
    again, _ = open_log(tmp_path, "cage", [ONSET], TEMPLATE)
    again.close()
    assert again.taken == 110


def test_receipts_without_their_summary_are_an_error(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "cage", [ONSET], TEMPLATE)
    action = Action("stim", "cage", "on", 1, 5)
    log.decided(message_of(log, action), action, dry_run=False, outputs=())
    log.close()
    (tmp_path / "cage.triggers.json").unlink()
    with pytest.raises(MbrError, match=r"cage\.triggers\.json: cannot be read"):
        open_log(tmp_path, "cage", [ONSET], TEMPLATE)


def test_what_was_not_begun_and_what_came_late_is_counted_over_restarts(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "cage", [ONSET], TEMPLATE)
    log.summary.unwritten, log.summary.late_labels = 3, 5
    log.save(undelivered=0)
    log.close()
    again, _ = open_log(tmp_path, "cage", [ONSET], TEMPLATE)
    again.close()
    assert (again.summary.unwritten, again.summary.late_labels) == (3, 5)


def test_receipts_of_labels_that_a_power_cut_took_are_of_the_session(
    tmp_path: Path, demo_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    begun = log_with_a_trial(tmp_path)
    labelled_session(tmp_path, demo_bundle.manifest, 80, 0)
    for _ in range(2):  # the second finds the end of the trial too, which is as late as the first process made it
        log, past = open_log(tmp_path, "cage", [ONSET], TEMPLATE)
        (off,) = past.closing["stim"] or [None]
        if off is not None:
            late = message_of(log, off).model_copy(update={"time_ns": 10**15})
            log.decided(late, off, dry_run=False, outputs=())
        log.close()
        assert past.states["stim"].last_index == 95
        assert log.summary.session == begun.summary.session
        assert "ends at frame 79, but receipts know of frame 95" in caplog.text
        caplog.clear()
    assert [row["edge"] for row in read_receipts(tmp_path / "cage.triggers.csv")] == ["on", "off"]


@pytest.mark.parametrize("later_s", [-3, 3, 3600])
@pytest.mark.parametrize("rows", [1, 80])
def test_receipts_of_another_session_are_refused(rows: int, later_s: int, tmp_path: Path, demo_bundle: Bundle) -> None:
    log_with_a_trial(tmp_path)
    labelled_session(tmp_path, demo_bundle.manifest, rows, later_s * 1_000_000_000)
    with pytest.raises(
        MbrError, match=rf"ends at frame {rows - 1}, but .* knows of frame 95: they are not of the same"
    ):
        open_log(tmp_path, "cage", [ONSET], TEMPLATE)


def test_nor_are_those_of_a_session_without_labels(tmp_path: Path) -> None:
    log_with_a_trial(tmp_path)
    with pytest.raises(MbrError, match="they are not of the same session"):
        open_log(tmp_path, "cage", [ONSET], TEMPLATE)


def test_receipts_whose_summary_a_power_cut_emptied_are_gone_on_with(
    tmp_path: Path, demo_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    begun = log_with_a_trial(tmp_path)
    labelled_session(tmp_path, demo_bundle.manifest, 100, 0)
    (tmp_path / "cage.triggers.json").write_bytes(b"")
    log, past = open_log(tmp_path, "cage", [ONSET], TEMPLATE)
    log.close()
    assert past.states["stim"].trials == 1
    assert log.summary.session != begun.summary.session and "another session from now on" in caplog.text
    assert Summary.model_validate_json((tmp_path / "cage.triggers.json").read_text()).session == log.summary.session


def test_a_receipt_says_when_it_was_sent_also_on_a_busy_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, _ = open_log(tmp_path, "cage", [ONSET], TEMPLATE)
    message, machine = message_of(log, Action("stim", "cage", "on", 1, 5)), BusyMachine()
    sent_ns, confirmed_ns = machine.monotonic_ns(), machine.monotonic_ns()
    with monkeypatch.context() as patched:
        patched.setattr(time, "time_ns", machine.time_ns)
        patched.setattr(time, "monotonic_ns", machine.monotonic_ns)
        log.delivered(Delivery(message, "laser", "confirmed", sent_ns, confirmed_ns), None)
    log.close()
    (row,) = read_receipts(tmp_path / "cage.triggers.csv")
    assert abs(int(row["sent_ns"]) - (machine.EPOCH_NS + sent_ns)) <= 200
    assert int(row["confirmed_ns"]) - int(row["sent_ns"]) == confirmed_ns - sent_ns
