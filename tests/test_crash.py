"""kill -9 at any moment: no label that was written is lost or torn, and the session goes on honestly."""

from __future__ import annotations

import os
import random
import signal
import time
from functools import partial
from pathlib import Path

from live import bouts_of, labelled, mbr_live, played, simulated, system_config, wait_for

from mbr_live.bundle import Bundle
from mbr_live.live.run import System
from mbr_live.processes import Child
from mbr_live.simulation.camera import record
from mbr_live.sinks.label_log import gap_ranges, read_labels
from mbr_live.sinks.run_manifest import read_run
from mbr_live.video.journal import read_journal

KILLS = 20
VIDEO_S = 120


def kill(*children: Child) -> None:
    for child in children:
        if child.pid is not None:
            os.kill(child.pid, signal.SIGKILL)


def looked_after(system: System, seconds: float) -> None:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        system.look_after()
        time.sleep(0.05)


def enough(out: Path, name: str) -> bool:
    return labelled(out, name, "ok") > 20


def logs(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.labels.csv")}


def test_kill_capture_inference_and_both(tmp_path: Path, demo_bundle: Bundle) -> None:
    video, out = tmp_path / "long.mp4", tmp_path / "live"
    record("box", 3, VIDEO_S, video, tmp_path / "long.truth.csv")
    config = system_config(out, played(video, speed=2), simulated("cage", record="lossless"))
    random_ = random.Random(20)
    with System(config, restarts_per_minute=1000) as system:
        targets = [system.inference, *system.captures]
        for name in ("long", "cage"):
            wait_for(lambda name=name: labelled(out, name), f"labels of {name}", system)
        for number in range(KILLS):
            looked_after(system, random_.uniform(0.2, 3.0))
            victims = [targets] if number % 4 == 3 else [[random_.choice(targets)]]
            kill(*victims[0])
            before = logs(out)
            for child in victims[0]:
                child.wait(5)
            looked_after(system, 0.2)
            for name, content in logs(out).items():
                assert content.startswith(before[name].rpartition(b"\n")[0])  # nothing that was there has changed
        for name in ("long", "cage"):
            wait_for(partial(enough, out, name), f"labels of {name} after the last kill", system)
    assert system.inference.restarts >= KILLS // 4
    for name in ("long", "cage"):
        rows = list(read_labels(out / f"{name}.labels.csv", demo_bundle.manifest))
        assert [row.index for row in rows] == list(range(len(rows)))  # every tick once, none torn
        assert (out / f"{name}.bouts.csv").read_text() == bouts_of(rows, demo_bundle.manifest)
        sampled = {tick: source_frame for tick, source_frame, _ in read_journal(out / f"{name}.frames.csv")}
        assert all(sampled[row.index] == row.source_frame for row in rows if row.status != "gap")
        run = read_run(out / f"{name}.run.json")
        assert run.exit_status == "complete"
        assert run.drops == gap_ranges(rows)
        assert run.restarts == sorted(run.restarts)
        assert run.restarts
    # What happened to a file can be made to happen again, restarts and all: the same bytes.
    done = mbr_live("batch", video, "--out", tmp_path / "offline", "--drops", out / "long.run.json")
    assert done.returncode == 0, done.stderr
    live, offline = ((folder / "long.labels.csv").read_bytes() for folder in (out, tmp_path / "offline"))
    assert offline.startswith(live)  # live was stopped before the file came to its end


def test_a_row_that_was_torn_off_goes_and_the_rest_stays(box_video: Path, tmp_path: Path, demo_bundle: Bundle) -> None:
    """A power cut can tear a row; the restart must not write behind half of one."""
    config = system_config(tmp_path / "live", played(box_video))
    with System(config) as system:
        wait_for(lambda: labelled(config.out, "box") > 10, "labels", system)
        kill(*system.captures, system.inference)
        for child in (*system.captures, system.inference):
            child.wait(5)
        labels = config.out / "box.labels.csv"
        whole = labels.read_bytes()
        labels.write_bytes(whole + b"57,57,57000")
        wait_for(lambda: system.ended, "the end of the file", system)
    assert labels.read_bytes().startswith(whole)
    rows = list(read_labels(labels, demo_bundle.manifest))
    assert [row.index for row in rows] == list(range(120))
