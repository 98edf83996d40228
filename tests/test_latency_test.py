"""`mbr-live latency-test`: a whole system with a yoked metronome, timed at the far end of the port."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT
from live import mbr_live

from mbr_live.config import DEMO_BUNDLE, load_config
from mbr_live.live import latency_test as measuring
from mbr_live.processes import EXIT_USER_ERROR
from mbr_live.sinks.label_log import read_labels
from mbr_live.triggers.log import STAGES, read_receipts
from mbr_live.triggers.outputs.serial_ttl import CONFIRM_WITHIN_S
from mbr_live.triggers.outputs.simulated_box import SimulatedBox


def test_it_measures_every_stage_with_real_pulses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # as people call it, with a relative path
    out = Path("latency")
    done = mbr_live("latency-test", "--out", out, "--seconds", "6")
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "latency.json").read_text())
    assert set(report) == {*STAGES, "capture_to_port"}
    assert all(0 < stage["p50_ms"] <= stage["p99_ms"] <= stage["max_ms"] for stage in report.values())
    assert "up to 100 ms" in " ".join(done.stdout.split())
    # The metronome fired at its ticks, and at those alone at which a label was known.
    status = {row.index: row.status for row in read_labels(out / "cage.labels.csv")}
    begun = [
        int(r["frame"]) for r in read_receipts(out / "cage.triggers.csv") if (r["what"], r["edge"]) == ("decided", "on")
    ]
    assert len(begun) > 3
    assert all(frame % 3 == 0 and status[frame] == "ok" for frame in begun)


class LateBox(SimulatedBox):
    """Carries out every command at once, and is late to answer one in four."""

    answered = 0

    def _say(self, text: str) -> None:
        self.answered += text.startswith("K")
        time.sleep(2 * CONFIRM_WITHIN_S if self.answered % 4 == 3 else 0.0)
        super()._say(text)


def test_pulses_whose_answer_came_late_are_measured_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "SimulatedBox", LateBox)
    report = measuring.latency_test(tmp_path, DEMO_BUNDLE, 3.0)
    told = Counter((row["what"], row["edge"]) for row in read_receipts(tmp_path / "cage.triggers.csv"))
    assert told["failed", "on"] + told["failed", "off"] > 0
    assert 0 < report["capture_to_port"]["p50_ms"] <= report["capture_to_port"]["max_ms"]


def test_it_measures_a_configured_camera_and_box(tmp_path: Path) -> None:
    with SimulatedBox() as box:
        text = (ROOT / "docs" / "examples" / "closed_loop.toml").read_text().replace("/dev/ttyACM0", box.port)
        (tmp_path / "system.toml").write_text(text)
        assert load_config(tmp_path / "system.toml").trigger[0].sham is not None
        arguments = ("latency-test", "--config", tmp_path / "system.toml", "--seconds", "5")
        done = mbr_live(*arguments, "--out", tmp_path / "latency", "--output", "laser")
        assert done.returncode == 0, done.stderr
        assert len(box.highs(1)) > 3
        refused = mbr_live(*arguments, "--out", tmp_path / "other", "--output", "markers")
        assert refused.returncode == EXIT_USER_ERROR
        assert "no line is named markers; there are: laser" in refused.stderr
    again = mbr_live("latency-test", "--out", tmp_path / "latency")
    assert again.returncode == EXIT_USER_ERROR
    assert "is not empty" in again.stderr
