"""A disk that others filled to the last byte: labels wait for room, nothing fires, nobody dies, and all goes on."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest
from live import PATIENCE_S, simulated, system_config, wait_for

from mbr_live import appending
from mbr_live.bundle import Bundle
from mbr_live.config import Config
from mbr_live.engines.protocol import Engine
from mbr_live.live.lane import Lane
from mbr_live.live.run import System
from mbr_live.pipeline import Pipeline
from mbr_live.sinks.label_log import read_labels
from mbr_live.sinks.run_manifest import RunManifest, read_run
from mbr_live.status import CameraStatus, SystemStatus, parse_status
from mbr_live.trigger_config import SerialOutput, Trigger, Watchdog
from mbr_live.triggers.log import read_receipts
from mbr_live.triggers.outputs.simulated_box import SimulatedBox
from mbr_live.video.journal import read_journal
from mbr_live.wire.messages import FrameHeader, own_clock
from mbr_live.wire.status import StatusSubscriber


def fill(disk: Path) -> Path:
    """Every byte, as another program would."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1_000_000, 4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue
    return ballast


def status_of(config: Config) -> CameraStatus:
    with closing(StatusSubscriber(config.wire.status)) as subscriber:
        for data in subscriber.messages(PATIENCE_S):
            message = parse_status(data)
            if isinstance(message, SystemStatus):
                return message.cameras[0]
    raise AssertionError("inference says nothing")


def pids(system: System) -> list[int | None]:
    return [child.pid for child in (system.inference, *system.captures, *system.outputs)]


def with_trigger(config: Config, box: SimulatedBox) -> Config:
    output = SerialOutput(kind="serial", name="laser", port=box.port, line=1)
    trigger = Trigger(
        name="stim", camera="cage", when="while", none=("grooming",), max_on_s=3600, resume_within_s=10,
        outputs=("laser",),
    )  # fmt: skip
    update = {"trigger": (trigger,), "output": (output,), "watchdog": Watchdog(stale_after_s=2.0)}
    return Config.model_validate(config.model_copy(update=update).model_dump())


def test_labels_wait_for_room_and_none_is_lost(small_disk: Path) -> None:
    with SimulatedBox() as box:
        config = with_trigger(system_config(small_disk / "live", simulated("cage")), box)
        with System(config) as system:
            wait_for(lambda: box.is_high(1), "the trigger", system)
            before = pids(system)
            ballast = fill(small_disk)
            wait_for(lambda: status_of(config).unwritten > 10, "labels that wait for room", system)
            # Nobody acts upon a label that is in no log.
            wait_for(lambda: not box.is_high(1), "the line to fall", system)
            ballast.unlink()
            wait_for(lambda: status_of(config).unwritten == 0, "labels to be written", system)
            wait_for(lambda: box.is_high(1), "the trigger to go on", system)
            assert pids(system) == before
            assert [child.restarts for child in (system.inference, *system.captures, *system.outputs)] == [0, 0, 0]
    rows = list(read_labels(config.out / "cage.labels.csv"))
    journal = {tick: source_frame for tick, source_frame, _ in read_journal(config.out / "cage.frames.csv")}
    assert [row.index for row in rows] == list(range(len(rows)))
    assert {row.index: row.source_frame for row in rows if row.status != "gap"} == journal  # all that was captured
    assert read_run(config.out / "cage.run.json").exit_status == "complete"
    # The receipts say how it ended: the edge itself waited for room too.
    edges = [(row["edge"], row["trial"]) for row in read_receipts(config.out / "cage.triggers.csv") if row["edge"]]
    decided = list(dict.fromkeys(edges))
    assert decided[:2] == [("on", "1"), ("off", "1")]


def test_timings_that_find_no_place_hold_up_no_label(
    tmp_path: Path,
    demo_bundle: Bundle,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(appending, "MOST_WAITING", 3)
    (tmp_path / "cage.timings.csv").mkdir()  # or of another user, or longer than the file system takes
    camera = simulated("cage")
    run = RunManifest(
        recording="", mode="live", exit_status="running", started="", bundle="demo", bundle_sha256="", engine="",
        versions={}, sources=[],
    )  # fmt: skip
    pipeline = Pipeline(demo_bundle.manifest, engine)
    lane = Lane(system_config(tmp_path, camera), camera, pipeline, run, None)
    now_ns = time.monotonic_ns()
    for index in range(10):
        header = FrameHeader(
            camera="cage", session="s" * 16, seq=index, index=index, source_frame=index, time_ns=index,
            origin_ns=0, captured_ns=now_ns, clock=own_clock(), height=480, width=640,
        )  # fmt: skip
        assert lane.note_timing(header, now_ns).latency_ms is not None
    lane.close()
    assert lane.latency.count == 10
    assert "the timings of 7 frames are missing" in caplog.text
