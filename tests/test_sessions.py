"""A session that is begun again in its folder: what it keeps, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from live import simulated, system_config

from mbr_live.bundle import Bundle, load_bundle
from mbr_live.config import Config
from mbr_live.files import write_atomically
from mbr_live.holding import held
from mbr_live.live import checks
from mbr_live.live.capture import capture
from mbr_live.live.checks import Level, recorded_engine, start_checks
from mbr_live.live.infer import infer
from mbr_live.live.lane import Lane
from mbr_live.pipeline import Pipeline
from mbr_live.sinks.run_manifest import RunManifest, read_run, write_run
from mbr_live.trigger_config import Trigger
from mbr_live.triggers.output import output
from mbr_live.types import TICK_NS, Decision, MbrError, Status
from mbr_live.wire.messages import CaptureCounts, Heartbeat


def lane_of(config: Config, bundle: Bundle) -> Lane:
    """The lane of the camera of `config`, as the inference process opens it."""
    template = RunManifest(
        recording="", mode="live", exit_status="running", started="2026-01-01", bundle=bundle.manifest.name,
        bundle_sha256=bundle.sha256, engine="openvino-f32", versions={}, sources=[],
    )  # fmt: skip
    return Lane(config, config.camera[0], Pipeline(bundle.manifest, None), template, None)  # type: ignore[arg-type]


def write_rows(lane: Lane, bundle: Bundle, rows: int) -> None:
    unknown = (-1,) * len(bundle.manifest.behaviours)
    for index in range(lane.state.last_index + 1, lane.state.last_index + 1 + rows):
        lane._log.write(Decision("cage", index, index, index * TICK_NS, Status.LOST, math.nan, math.nan, (), unknown))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def found_of_bundle(config: Config) -> Level:
    return next(finding.level for finding in start_checks(config) if finding.subject == "bundle")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return system_config(tmp_path / "live", simulated("cage"))


@pytest.fixture
def session(config: Config, demo_bundle: Bundle) -> Config:
    """The configuration of a session that was stopped after 20 rows."""
    config.out.mkdir()
    lane = lane_of(config, demo_bundle)
    write_rows(lane, demo_bundle, 20)
    lane.close()
    return config


@pytest.fixture
def retrained(demo_bundle: Bundle, tmp_path: Path) -> Bundle:
    """Another model of the same behaviours."""
    folder = tmp_path / "retrained"
    folder.mkdir()
    for file in demo_bundle.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "name": "autumn"}))
    return load_bundle(folder)


def test_no_session_goes_on_with_the_labels_of_a_recording(session: Config) -> None:
    path = session.out / "cage.run.json"
    write_run(path, read_run(path).model_copy(update={"mode": "batch"}))
    before = contents(session.out)
    with pytest.raises(MbrError, match=r"cage\.labels\.csv: these are the labels of a recording.*another `out`"):
        infer(session)
    assert contents(session.out) == before
    assert found_of_bundle(session) == "error"


def test_a_session_goes_on_with_its_model_alone(session: Config, retrained: Bundle) -> None:
    other = session.model_copy(update={"bundle": retrained.path})
    before = contents(session.out)
    words = r"cage\.labels\.csv: its labels are of the bundle demo .* is autumn .*Use the bundle that the session began"
    with pytest.raises(MbrError, match=words):
        infer(other)
    assert contents(session.out) == before
    assert found_of_bundle(other) == "error"
    assert found_of_bundle(session) == "ok"


def test_a_session_without_labels_may_begin_with_another_model(
    session: Config, demo_bundle: Bundle, retrained: Bundle
) -> None:
    (session.out / "cage.labels.csv").unlink()
    other = session.model_copy(update={"bundle": retrained.path})
    assert found_of_bundle(other) == "ok"
    lane_of(other, retrained).close()
    assert read_run(session.out / "cage.run.json").bundle == "autumn"


@pytest.mark.parametrize("left", [b"", bytes(600)], ids=["nothing", "zeros"])
def test_a_session_whose_manifest_a_power_cut_emptied_goes_on(
    left: bytes, session: Config, demo_bundle: Bundle
) -> None:
    (session.out / "cage.run.json").write_bytes(left)
    assert recorded_engine(session) is None
    assert found_of_bundle(session) == "ok"
    lane = lane_of(session, demo_bundle)
    write_rows(lane, demo_bundle, 5)
    lane.close()
    run = read_run(session.out / "cage.run.json")
    assert run.rows == {"lost": 25} and run.restarts == [19]


def test_a_manifest_that_was_edited_is_an_error(session: Config, demo_bundle: Bundle) -> None:
    (session.out / "cage.run.json").write_text("{")
    with pytest.raises(MbrError, match=r"this is not the \.run\.json of a run"):
        lane_of(session, demo_bundle)


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, durable: bool
) -> None:
    path, synced = tmp_path / "file.json", []
    path.write_text("old")

    def fsync(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").read_text(), path.read_text()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(path, "new", durable=durable)
    assert synced == ([("new", "old")] if durable else [])
    assert path.read_text() == "new" and [each.name for each in tmp_path.iterdir()] == ["file.json"]


def heartbeat(process: str, **counts: int) -> Heartbeat:
    return Heartbeat(camera="cage", session=process, counts=CaptureCounts(**counts))


def test_what_was_lost_is_counted_over_restarts(session: Config, demo_bundle: Bundle) -> None:
    """Of captures, of inference, and of both; a capture that outlives inference is counted once."""
    lane = lane_of(session, demo_bundle)
    lane.refused["size"] += 40
    lane.hear(heartbeat("capture-1", sampled=60, dropped_queue_full=30))
    lane.hear(heartbeat("capture-1", sampled=100, dropped_queue_full=50))
    lane.close()
    lane = lane_of(session, demo_bundle)
    write_rows(lane, demo_bundle, 100)
    lane.refused.update(size=2, late=1)
    lane.hear(heartbeat("capture-1", sampled=110, dropped_queue_full=51))
    lane.hear(heartbeat("capture-2", sampled=5, dropped_on_purpose=1))
    lane.hear(heartbeat("capture-1", sampled=111, dropped_queue_full=52))  # had waited in its socket
    lane.hear(heartbeat("capture-2", sampled=6, dropped_on_purpose=1))
    told = {"dropped_queue_full": 52, "dropped_on_purpose": 1, "size": 42, "late": 1}
    assert lane.status(0.0).drops == told
    lane.close()
    run = read_run(session.out / "cage.run.json")
    assert (run.capture["sampled"], run.capture["dropped_queue_full"], run.refused) == (
        117,
        52,
        {"size": 42, "late": 1},
    )
    lane = lane_of(session, demo_bundle)  # no capture says anything any more
    assert lane.status(0.0).drops == told
    lane.close()
    again = read_run(session.out / "cage.run.json")
    assert (again.capture, again.refused) == (run.capture, run.refused)


def test_what_was_lost_is_known_after_a_kill(session: Config, demo_bundle: Bundle, tmp_path: Path) -> None:
    lane = lane_of(session, demo_bundle)
    run_file, seen = session.out / "cage.run.json", []
    for now_s, reason in ((0.0, "size"), (5.0, "late"), (10.0, "jump"), (20.0, "")):
        lane.refused.update([reason] if reason else [])
        lane.hear(heartbeat("capture-1", sampled=9, dropped_queue_full=4))
        before = run_file.stat().st_ino
        lane.keep_counts(now_s)
        if lane._keeping:
            lane._keeping.join()
        seen.append((dict(read_run(run_file).refused), run_file.stat().st_ino != before))
    everything = {"size": 1, "late": 1, "jump": 1}
    assert seen == [({"size": 1}, True), ({"size": 1}, False), (everything, True), (everything, False)]
    lane.hear(heartbeat("capture-2", sampled=1))
    lane.keep_counts(30.0)
    assert lane._keeping is not None
    lane._keeping.join()
    assert read_run(run_file).capture["sampled"] == 10
    killed = session.model_copy(update={"out": tmp_path / "killed"})
    shutil.copytree(session.out, killed.out)  # as a kill would leave it now
    lane.close()
    lane = lane_of(killed, demo_bundle)
    assert lane.status(0.0).drops == {**everything, "dropped_queue_full": 4}
    lane.close()


def test_a_manifest_does_not_grow_with_captures(session: Config, demo_bundle: Bundle) -> None:
    lane = lane_of(session, demo_bundle)
    for process in range(100):
        for sampled in (1, 2, 3):
            lane.hear(heartbeat(f"capture-{process}", sampled=sampled))
    lane.close()
    run = read_run(session.out / "cage.run.json")
    assert run.capture["sampled"] == 300 and len(run.captures) == 4


def holding(out: Path, work: str) -> subprocess.Popen[str]:
    """A process of its own that has a work of a folder, until it is killed."""
    code = (
        "import sys, time; from pathlib import Path; from mbr_live.holding import held\n"
        "with held(Path(sys.argv[1]), sys.argv[2]): print(flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, out, work], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "\n"
    return process


@pytest.mark.parametrize("work", ["inference", "output", "capture-cage"])
def test_a_folder_that_another_process_has_is_left_alone_until_that_ends(work: str, session: Config) -> None:
    def begin() -> None:
        if work == "inference":
            infer(session)
        elif work == "output":
            output(session)
        else:
            capture(session, session.camera[0])

    never = Trigger(name="never", camera="cage", when="onset", all=("grooming",), on_s=1, outputs=())
    session = session.model_copy(update={"trigger": (never,)})
    with holding(session.out, work) as other:
        before = contents(session.out)
        with pytest.raises(MbrError, match=rf"live: another process has the {work} of this folder already"):
            begin()
        assert contents(session.out) == before
        checked = next(checks._folder(session))
        assert (checked.level, checked.subject) == ("error", "out") and f"the {work} of this folder" in checked.text
        other.kill()  # as kill -9 does: nothing is tidied up
    with held(session.out, work):
        pass
    assert next(checks._folder(session)).subject == "disk"
    assert not list(session.out.glob(".*.lock"))


def test_checks_leave_no_lock_behind(config: Config) -> None:
    config.out.mkdir()
    assert next(checks._folder(config)).subject == "disk"
    assert not list(config.out.iterdir())


def test_where_no_lock_can_be_had_the_work_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / ".inference.lock").mkdir()
    with held(tmp_path, "inference"):
        assert "nothing keeps a second process out" in caplog.text
