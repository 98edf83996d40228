"""The reliability campaign itself: does it see what is wrong, and is a small part of it well?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from chaos_scenarios.counting import Outcome, count_frames, count_told
from chaos_scenarios.receivers import count_triggers
from chaos_scenarios.rig import processes_of
from live import simulated, system_config
from trigger_rig import HEADER

from mbr_live.config import Config
from mbr_live.status import LabelMessage
from mbr_live.triggers.log import COLUMNS, Summary
from mbr_live.video.journal import JOURNAL_HEADER

ROOT = Path(__file__).resolve().parent.parent
LABELS = [0, 0, 1, 1, 0, 0]  # of grooming; an onset at 2, an offset at 4


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """What a system of one camera left: six frames, one of them lost on the way, and the trials of both events."""
    (tmp_path / "cage.frames.csv").write_text(JOURNAL_HEADER + "\n" + "".join(f"{n},{n},{n}\n" for n in range(7)))
    rows = [f"{n},{n},{n},ok,,,0.1,0.1,{label},0\n" for n, label in enumerate(LABELS)]
    (tmp_path / "cage.labels.csv").write_text(HEADER + "\n" + "".join(rows) + "6,-1,6,gap,,,,,-1,-1\n")
    decided = [("onset", "on", 2), ("onset", "off", 2), ("offset", "on", 4), ("offset", "off", 4)]
    write_receipts(tmp_path, decided)
    summary = Summary(camera="cage", session="s", started="", triggers=[], outputs=[], stale_after_s=1)
    (tmp_path / "cage.triggers.json").write_text(summary.model_dump_json())
    return system_config(tmp_path, simulated("cage"))


def write_receipts(out: Path, decided: list[tuple[str, str, int]]) -> None:
    rows = [f"decided,cage-{when}-grooming,1,{edge},{frame},0,0,,,0,0,,,,\n" for when, edge, frame in decided]
    (out / "cage.triggers.csv").write_text(",".join(COLUMNS) + "\n" + "".join(rows))


def told(index: int, label: int) -> LabelMessage:
    return LabelMessage(camera="cage", index=index, status="ok", labels=[label, 0], probabilities=[0.1, 0.1])


def frames(config: Config) -> Outcome:
    outcome = Outcome("test", 1)
    count_frames(outcome, config)
    outcome.must_be_zero()
    return outcome


def edit(config: Config, before: str, after: str) -> None:
    path = config.out / "cage.labels.csv"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def test_frames_that_are_all_there_are_counted(config: Config) -> None:
    outcome = frames(config)
    assert (outcome.captured, outcome.labelled, outcome.lost_between, outcome.unaccounted) == (7, 6, 1, 0)
    assert outcome.good


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("3,3,3,ok,,,0.1,0.1,1,0\n", ""),  # a row is gone
        ("3,3,3,ok", "3,9,3,ok"),  # it is of another frame
        ("6,-1,6,gap,,,,,-1,-1\n", ""),  # the end is not accounted for
        ("6,-1,6,gap,,,,,-1,-1\n", "6,-1,6,gap,,,,,-1,-1\n7,7,7,ok,,,0.1,0.1,0,0\n"),  # a label of no frame
        ("1,1,1,ok,,,0.1,0.1,0,0\n", "1,1,1,ok,,,0.1,0.1,0,0\n" * 2),  # a tick twice
    ],
)
def test_a_frame_that_is_not_accounted_for_is_seen(config: Config, before: str, after: str) -> None:
    edit(config, before, after)
    assert not frames(config).good


def test_a_label_that_changed_after_it_was_told_is_seen(config: Config) -> None:
    outcome = Outcome("test", 1)
    count_told(outcome, config, [told(0, 0), told(2, 1), told(3, 0), told(9, 0)])
    assert (outcome.told, outcome.labels_lost) == (4, 2)


def triggers(config: Config, received: Counter[str]) -> Outcome:
    outcome = Outcome("test", 1)
    count_triggers(outcome, config, [received])
    return outcome


EVENTS = (("onset", 2), ("offset", 4))
ALL = Counter(f"s/cage/cage-{when}-grooming/1/{edge}/{frame}" for when, frame in EVENTS for edge in ("on", "off"))


def test_triggers_that_all_came_are_counted(config: Config) -> None:
    outcome = triggers(config, ALL)
    assert (outcome.triggers, outcome.triggers_lost, outcome.triggers_false) == (4, 0, 0)


def test_a_trigger_that_never_came_or_came_from_nowhere_is_seen(config: Config) -> None:
    lost = triggers(config, ALL - Counter({"s/cage/cage-onset-grooming/1/on/2": 1}))
    assert (lost.triggers_lost, lost.triggers_false) == (1, 0)
    false = triggers(config, ALL + Counter({"s/cage/cage-onset-grooming/2/on/5": 1}))
    assert (false.triggers_lost, false.triggers_false) == (0, 1)


def test_an_event_is_lost_unless_a_receipt_says_what_became_of_it(config: Config) -> None:
    write_receipts(config.out, [("onset", "on", 2), ("onset", "off", 2), ("onset", "on", 3)])
    received = Counter(f"s/cage/cage-onset-grooming/1/{edge}/{n}" for edge, n in (("on", 2), ("off", 2), ("on", 3)))
    outcome = triggers(config, received)
    assert (outcome.triggers_lost, outcome.triggers_false) == (1, 1)  # the offset; an onset where there was none
    with (config.out / "cage.triggers.csv").open("a") as log:
        log.write("skipped,cage-offset-grooming,0,,4,0,0,stale,,0,0,,,,\n")
    outcome = triggers(config, received)
    assert (outcome.triggers_lost, outcome.skips) == (0, {"stale": 1})


def test_a_process_that_was_left_is_found(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()", f"{tmp_path}/x"], stdin=subprocess.PIPE) as process:
        assert processes_of(tmp_path) == [process.pid]
        process.communicate(b"\n")
    assert processes_of(tmp_path) == []


def test_half_a_minute_of_eight_cameras_as_fast_as_they_are_taken(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, ROOT / "tools" / "chaos.py", "hour", "--minutes", "0.5", "--json", report]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (outcome,) = json.loads(report.read_text())
    assert outcome["captured"] == outcome["labelled"]
    assert outcome["captured"] + outcome["no_frame"] == 8 * 300
