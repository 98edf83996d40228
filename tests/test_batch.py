"""Recorded files on request: what `batch` refuses before it begins, and what it never touches."""

from __future__ import annotations

from pathlib import Path

import pytest

from mbr_live.batch.batch import Job, run_job
from mbr_live.bundle import Bundle
from mbr_live.engines.openvino_engine import OpenVinoEngine
from mbr_live.sinks import RunManifest, SessionLog, read_run, write_run
from mbr_live.types import TICK_NS, Decision, MbrError, Status


def live_session(out: Path, bundle: Bundle) -> SessionLog:
    """A session of the camera `box` that has written 20 rows, and goes on."""
    log = SessionLog.resume(out / "box.labels.csv", out / "box.bouts.csv", bundle.manifest)
    unknown = (-1,) * len(bundle.manifest.behaviours)
    for index in range(20):
        log.write(Decision("box", index, index, index * TICK_NS, Status.WARMUP, 1.0, 2.0, (), unknown))
    run = RunManifest(
        recording="box", mode="live", exit_status="running", started="", bundle="b", bundle_sha256="", engine="e",
        versions={}, sources=[],
    )  # fmt: skip
    write_run(out / "box.run.json", run)
    return log


def test_labels_of_a_live_session_are_not_replaced(
    box_video: Path, tmp_path: Path, demo_bundle: Bundle, engine: OpenVinoEngine
) -> None:
    log = live_session(tmp_path, demo_bundle)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(MbrError, match=r"box\.labels\.csv: these are the labels of a live session.*another --out"):
        run_job(Job("box", (box_video,)), tmp_path, demo_bundle, engine)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    log.close()


def test_nor_are_those_of_one_that_began_meanwhile(
    box_video: Path, tmp_path: Path, demo_bundle: Bundle, engine: OpenVinoEngine
) -> None:
    def progress(done: int) -> None:
        if done == 50:
            live_session(tmp_path, demo_bundle).close()

    with pytest.raises(MbrError, match="these are the labels of a live session"):
        run_job(Job("box", (box_video,)), tmp_path, demo_bundle, engine, progress=progress)
    assert len((tmp_path / "box.labels.csv").read_text().splitlines()) == 21
    assert read_run(tmp_path / "box.run.json").mode == "live"
    assert not list(tmp_path.glob("*.part"))


def test_labels_of_an_earlier_batch_are(
    box_video: Path, tmp_path: Path, demo_bundle: Bundle, engine: OpenVinoEngine
) -> None:
    first, second = (run_job(Job("box", (box_video,)), tmp_path, demo_bundle, engine) for _ in range(2))
    assert first.started < second.started == read_run(tmp_path / "box.run.json").started
