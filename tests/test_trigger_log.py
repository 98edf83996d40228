"""The log of receipts is the memory of the output process: what it reads back is what was."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from receipts import TEMPLATE, labels_up_to, message_of
from test_triggers import ONSET, WHILE, play, rows, rules

from mbr_live.triggers.log import HEADER, open_log, read_receipts, read_yoked
from mbr_live.triggers.machine import Action, TriggerRule
from mbr_live.triggers.outputs.workers import Delivery
from mbr_live.types import MbrError


@settings(max_examples=50, deadline=None)
@given(rules, rows, st.integers(0, 20))
def test_a_new_process_knows_what_the_old_one_did(rule: TriggerRule, conditions: list[int], delivered: int) -> None:
    rule = TriggerRule(**{name: getattr(rule, name) for name in rule.__dataclass_fields__} | {"outputs": ("laser",)})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log, _ = open_log(folder, "cage", [rule], frozenset(), TEMPLATE)
        actions, _, old = play(rule, conditions)
        sent = []
        for action in actions:
            message = message_of(log, action)
            log.decided(message, action, dry_run=False)
            if action.edge != "skip" and not action.sham:
                sent.append(message)
        for message in sent[:delivered]:
            log.delivered(Delivery(message, "laser", "confirmed", 1, 2), None)
        log.close()
        with (folder / "cage.triggers.csv").open("a") as file:
            file.write("decided,stim,9")  # torn off by a power cut
        labels_up_to(folder, 10_000)
        again, past = open_log(folder, "cage", [rule], frozenset(), TEMPLATE)
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


def test_a_yoked_trigger_repeats_what_was_delivered(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "cage", [WHILE], frozenset(), TEMPLATE)
    for action in play(WHILE, [0, 1, 1, 1, 0, 0, 1, 1])[0]:
        log.decided(message_of(log, action), action, dry_run=False)
    log.close()
    # The second trial has no end: it was on when that session was cut off, so its length is not known.
    assert read_yoked(tmp_path / "cage.triggers.csv", "stim") == ((1, 0.3),)
    with pytest.raises(MbrError, match="holds no trials of a trigger other"):
        read_yoked(tmp_path / "cage.triggers.csv", "other")
    with pytest.raises(MbrError, match=r"nowhere\.csv: cannot be read"):
        read_yoked(tmp_path / "nowhere.csv", "stim")


def test_a_text_with_commas_and_lines_stays_one_row(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "cage", [ONSET], frozenset(), TEMPLATE)
    action = Action("stim", "cage", "on", 1, 5)
    log.delivered(Delivery(message_of(log, action), "hook", "failed", detail='no, "never",\nsaid it\r'), None)
    log.close()
    (row,) = read_receipts(tmp_path / "cage.triggers.csv")
    assert row["why"] == 'no, "never", said it '


def test_what_is_not_a_log_of_receipts_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cage.triggers.csv").write_text("a,b\n1,2\n")
    with pytest.raises(MbrError, match="this is not a log of triggers"):
        open_log(tmp_path, "cage", [ONSET], frozenset(), TEMPLATE)
    with pytest.raises(MbrError, match="this is not a log of triggers"):
        list(read_receipts(tmp_path / "cage.triggers.csv"))


@pytest.mark.parametrize("left", ["", "what,trig", HEADER, HEADER + "\n"])
def test_a_process_that_was_killed_as_it_began_leaves_a_log_to_begin(tmp_path: Path, left: str) -> None:
    path = tmp_path / "cage.triggers.csv"
    path.write_text(left)  # and no summary
    log, past = open_log(tmp_path, "cage", [ONSET], frozenset(), TEMPLATE)
    log.close()
    assert path.read_text() == HEADER + "\n"
    assert log.summary.restarts == 0
    assert not past.counts


def test_a_disk_that_was_full_as_the_log_was_begun_is_waited_for(small_disk: Path) -> None:
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(free - 4096))  # the header finds room, the summary does not
    with pytest.raises(OSError, match="No space left"):
        open_log(small_disk, "cage", [ONSET], frozenset(), TEMPLATE)
    assert (small_disk / "cage.triggers.csv").read_text() == HEADER + "\n"
    (small_disk / "ballast").unlink()
    log, _ = open_log(small_disk, "cage", [ONSET], frozenset(), TEMPLATE)
    log.close()
    assert (small_disk / "cage.triggers.json").exists()


def test_receipts_without_their_summary_are_an_error(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "cage", [ONSET], frozenset(), TEMPLATE)
    action = Action("stim", "cage", "on", 1, 5)
    log.decided(message_of(log, action), action, dry_run=False)
    log.close()
    (tmp_path / "cage.triggers.json").unlink()
    with pytest.raises(MbrError, match=r"cage\.triggers\.json: cannot be read"):
        open_log(tmp_path, "cage", [ONSET], frozenset(), TEMPLATE)


def test_what_was_not_begun_and_what_came_late_is_counted_over_restarts(tmp_path: Path) -> None:
    log, _ = open_log(tmp_path, "cage", [ONSET], frozenset(), TEMPLATE)
    log.summary.unwritten, log.summary.late_labels = 3, 5
    log.save(undelivered=0)
    log.close()
    again, _ = open_log(tmp_path, "cage", [ONSET], frozenset(), TEMPLATE)
    again.close()
    assert (again.summary.unwritten, again.summary.late_labels) == (3, 5)
