"""The same pixels give the same bytes: live through real processes and ZeroMQ, and offline."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from live import bouts_of, labelled, mbr_live, simulated, system_config, wait_for

from mbr_live.bundle import Bundle
from mbr_live.live.run import System
from mbr_live.sinks.label_log import read_labels
from mbr_live.sinks.run_manifest import read_run

OUTPUTS = (".labels.csv", ".bouts.csv")


def replay(videos: list[Path], out: Path, *options: str) -> None:
    done = mbr_live("replay", *videos, "--out", out, "--plain", *options)
    assert done.returncode == 0, done.stderr


def batch(video: Path, out: Path, *options: str | Path) -> None:
    done = mbr_live("batch", video, "--out", out, *options)
    assert done.returncode == 0, done.stderr


def same(one: Path, other: Path, name: str) -> None:
    for suffix in OUTPUTS:
        assert (one / f"{name}{suffix}").read_bytes() == (other / f"{name}{suffix}").read_bytes()


def test_one_camera_with_forced_drops(box_video: Path, tmp_path: Path, demo_bundle: Bundle) -> None:
    live, offline = tmp_path / "live", tmp_path / "offline"
    replay([box_video], live, "--speed", "2", "--drop", "0.1", "--seed", "5")
    run_ = read_run(live / "box.run.json")
    assert run_.max_gap_frames == demo_bundle.manifest.max_gap_frames
    assert run_.exit_status == "complete"
    assert run_.capture["dropped_on_purpose"] > 3
    assert run_.rows["gap"] == run_.capture["dropped_on_purpose"] + run_.capture["dropped_queue_full"]
    assert sum(run_.rows.values()) == run_.capture["sampled"] == 120
    batch(box_video, offline, "--drops", live / "box.run.json")
    same(live, offline, "box")
    rows = list(read_labels(live / "box.labels.csv", demo_bundle.manifest))
    assert (live / "box.bouts.csv").read_text() == bouts_of(rows, demo_bundle.manifest)


def test_four_cameras_at_once(box_video: Path, clutter_video: Path, dark_video: Path, tmp_path: Path) -> None:
    fourth = tmp_path / "fourth.mp4"
    fourth.write_bytes(box_video.read_bytes())
    same_as_offline([box_video, clutter_video, dark_video, fourth], tmp_path)


def test_four_cameras_of_which_two_are_real(
    clutter_video: Path, dark_video: Path, realdata: Path, tmp_path: Path
) -> None:
    real = realdata / "home_cage_bedded"
    same_as_offline([clutter_video, dark_video, real / "minimal_top.mp4", real / "minimal_side.mp4"], tmp_path)


def same_as_offline(videos: list[Path], folder: Path) -> None:
    """Live, all at once and with losses, and then offline, one by one."""
    live, offline = folder / "live", folder / "offline"
    replay(videos, live, "--drop", "0.05", "--seed", "9")
    for video in videos:
        batch(video, offline, "--drops", live / f"{video.stem}.run.json")
        same(live, offline, video.stem)


def test_drops_matter(box_video: Path, tmp_path: Path) -> None:
    """Parity is not trivial: without the drops the log is another."""
    live, offline = tmp_path / "live", tmp_path / "offline"
    replay([box_video], live, "--speed", "4", "--drop", "0.2", "--seed", "1")
    batch(box_video, offline)
    assert (live / "box.labels.csv").read_bytes() != (offline / "box.labels.csv").read_bytes()


def test_the_recording_of_a_live_camera_gives_the_same_labels(tmp_path: Path) -> None:
    live, offline = tmp_path / "live", tmp_path / "offline"
    with System(system_config(live, simulated("cage", record="lossless"))) as system:
        wait_for(lambda: labelled(live, "cage", "ok") > 40, "labels", system)
    batch(live / "cage.frames.csv", offline, "--drops", live / "cage.run.json")
    same(live, offline, "cage")


def test_joined_files_are_one_recording(realdata: Path, tmp_path: Path) -> None:
    """Two pieces of a recording, joined: one grid of ticks, source frames counted through, no drift at the seam."""
    pieces = sorted((realdata / "cylinder" / "camera_L").glob("*.mp4"))[:2]
    done = mbr_live("batch", *pieces, "--join", "whole", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = list(read_labels(tmp_path / "whole.labels.csv"))
    assert [row.index for row in rows] == list(range(len(rows)))
    assert len(rows) == pytest.approx(7000 / 12, abs=1)
    assert [row.source_frame for row in rows] == [12 * n for n in range(len(rows))]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
