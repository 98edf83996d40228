"""The programs as their users call them."""

from __future__ import annotations

import csv
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from live import PATIENCE_S, labelled, mbr_live, simulated, system_config, wait_for

from mbr_live import __version__
from mbr_live.demo import found
from mbr_live.live.run import System
from mbr_live.sinks.label_log import LabelRow, last_frame, read_labels
from mbr_live.sinks.run_manifest import read_run


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_help_and_version() -> None:
    assert mbr_live("--version").stdout.strip() == f"mbr-live {__version__}"
    said = mbr_live("--help").stdout
    for program in (
        "run",
        "capture",
        "infer",
        "watch",
        "replay",
        "batch",
        "locate",
        "simulate",
        "train",
        "evaluate",
        "demo",
    ):
        assert program in said


def test_the_live_path_needs_no_torch() -> None:
    programs = (
        "mbr_live.live.infer, mbr_live.live.capture, mbr_live.live.run, mbr_live.batch.program, mbr_live.demo,"
        " mbr_live.monitoring.watch"
    )
    code = f"import sys, {programs}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_demo(tmp_path: Path) -> None:
    done = mbr_live("demo", "--plain", "--seconds", "14", "--out", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    assert "same, byte by byte" in done.stdout
    for name in ("box", "clutter", "dark"):
        live, offline = (folder / f"{name}.labels.csv" for folder in (tmp_path / "demo", tmp_path / "demo" / "offline"))
        assert live.read_bytes() == offline.read_bytes()
        assert sum(row.status == "ok" for row in read_labels(live)) > 20
    again = mbr_live("demo", "--plain", "--out", tmp_path)
    assert again.returncode == 2
    assert "not of a demo" in again.stderr


def test_demo_never_empties_the_folder_of_a_real_session(tmp_path: Path) -> None:
    config = system_config(tmp_path, simulated("cage01"))
    (tmp_path / "system.json").write_text(config.model_dump_json())
    labels = tmp_path / "cage01.labels.csv"
    labels.write_text("a week of labels\n")
    done = mbr_live("demo", "--plain", "--seconds", "10", "--out", tmp_path)
    assert done.returncode == 2
    assert "not of a demo" in done.stderr
    assert labels.read_text() == "a week of labels\n"


def test_found_counts_onsets_and_delays() -> None:
    labels = [-1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1]
    shown = [True, False, False, True, True, True, False, True, True, False, True]
    rows = [LabelRow(n, n, 0, "ok", 1.0, 1.0, (), (label,)) for n, label in enumerate(labels)]
    result = found(rows, dict(enumerate(shown)), 0)
    assert (result.onsets, result.delays_s) == (3, (0.1, 0.0))
    assert result.true_s == 0.6
    assert result.agreed == 7 / 10


def test_simulate_then_batch(tmp_path: Path) -> None:
    assert mbr_live("simulate", "--condition", "dark", "--seed", 4, "--minutes", 0.2, "--out", tmp_path).returncode == 0
    truth = rows_of(tmp_path / "dark-4.truth.csv")
    assert len(truth) == 120
    assert mbr_live("batch", tmp_path / "dark-4.mp4", "--out", tmp_path / "out").returncode == 0
    rows = rows_of(tmp_path / "out" / "dark-4.labels.csv")
    near = 0
    for row in rows:
        where = truth[int(row["source_frame"])]
        near += abs(float(row["x_px"] or -99) - float(where["x_px"])) < 25 and (
            abs(float(row["y_px"] or -99) - float(where["y_px"])) < 25
        )
    assert near >= 0.95 * len(rows)


def test_locate_a_video(box_video: Path, tmp_path: Path) -> None:
    done = mbr_live("locate", box_video, "--out", tmp_path / "positions.csv")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "positions.csv")
    assert list(rows[0]) == ["frame", "source_frame", "time_s", "x_px", "y_px", "confidence", "found"]
    assert [int(row["frame"]) for row in rows] == list(range(120))
    assert float(rows[7]["time_s"]) == pytest.approx(0.7)
    assert "animal found in" in done.stdout


def test_locate_stills(realdata: Path, tmp_path: Path) -> None:
    """Unrelated pictures: each is looked at alone, in the order of their names."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, folder in (("a.png", "openfield/m3v1mp4.mp4"), ("b.png", "topview_arena/mouse_video.mp4")):
        capture = cv2.VideoCapture(str(realdata / folder))
        assert cv2.imwrite(str(pictures / name), capture.read()[1])
    shutil.copy(pictures / "a.png", pictures / "c.png")
    done = mbr_live("locate", pictures, "--out", tmp_path / "stills.csv", "--stills")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "stills.csv")
    assert [row["file"] for row in rows] == ["a.png", "b.png", "c.png"]
    assert rows[0]["x_px"] == rows[2]["x_px"]
    assert rows[1]["found"] == "1"
    assert abs(float(rows[1]["x_px"]) - 253) < 40
    assert abs(float(rows[1]["y_px"]) - 221) < 40


def test_ctrl_c_ends_a_run_in_order(tmp_path: Path) -> None:
    config = system_config(tmp_path / "live", simulated("cage"))
    (tmp_path / "system.json").write_text(config.model_dump_json())
    command = [sys.executable, "-m", "mbr_live", "run", str(tmp_path / "system.json"), "--plain"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: labelled(config.out, "cage") > 10, "labels")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    run = read_run(config.out / "cage.run.json")
    assert run.exit_status == "complete"
    assert sum(run.rows.values()) == run.capture["sampled"]
    assert run.timings["capture_to_label_p99_ms"] > 0


def test_a_configuration_is_given_as_seen_from_here(tmp_path: Path) -> None:
    config = system_config(Path("results"), simulated("cage"))
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "system.json").write_text(config.model_dump_json())
    done = mbr_live("run", Path("lab") / "system.json", "--plain", "--seconds", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(folder / "results") in done.stdout
    assert (folder / "results" / "cage.labels.csv").exists()
    assert {path.name for path in tmp_path.rglob("*.labels.csv")} == {"cage.labels.csv"}


def test_processes_end_with_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    config = system_config(tmp_path / "live", simulated("cage"))
    (tmp_path / "system.json").write_text(config.model_dump_json())
    command = [sys.executable, "-m", "mbr_live", "run", str(tmp_path / "system.json"), "--plain"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: labelled(config.out, "cage") > 10, "labels")
        process.kill()
    wait_for(lambda: read_run(config.out / "cage.run.json").exit_status != "running", "inference to end")


def test_a_session_goes_on_in_its_folder(tmp_path: Path) -> None:
    """Stopped and started again: the same files, one grid of ticks, the pause as a gap."""
    out = tmp_path / "live"
    ends: list[int] = []
    for _ in range(2):
        before = labelled(out, "cage")
        with System(system_config(out, simulated("cage"))) as system:
            wait_for(lambda before=before: labelled(out, "cage") >= before + 15, "labels", system)
        ends.append(last_frame(out / "cage.labels.csv"))
    rows = list(read_labels(out / "cage.labels.csv"))
    assert [row.index for row in rows] == list(range(ends[1] + 1))
    assert rows[ends[0] + 1].status == "gap"
    assert read_run(out / "cage.run.json").restarts == [ends[0]]
