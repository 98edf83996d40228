"""Disks that are slow, and disks that others have filled to the last byte."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos_scenarios.counting import Outcome, journalled, labels_of
from chaos_scenarios.rig import WARM_S, Rig, Watching, environment, running, simulated
from chaos_scenarios.shim import COMPILER, WHY_NOT, compiled
from mbr_live.config import Recording
from mbr_live.types import RATE_FPS, Status

DISK_MB = 60
SLOW_MS = (20, 60, 200, 600)  # of every write into a file


def slow_disk(folder: Path, seed: int, watching: Watching) -> Outcome:
    """Every write into a file takes 20 to 600 ms longer, for stretches of 5 to 12 s."""
    outcome, random_ = Outcome("slow disk", seed), random.Random(seed)
    if COMPILER is None:
        outcome.skipped = WHY_NOT
        return outcome
    slow = folder / "slow_ms"
    stretches = [random_.choice(SLOW_MS) for _ in range(6)] + [max(SLOW_MS)]
    cameras = (simulated("a", seed=1), simulated("b", seed=2))
    with (
        environment(LD_PRELOAD=str(compiled(folder)), CHAOS_SLOW_MS=str(slow)),
        running(folder / "out", outcome, watching, cameras) as rig,
    ):
        rig.go(WARM_S)
        for ms in stretches:
            slow.write_text(str(ms))
            rig.go(random_.uniform(5.0, 12.0))
            slow.unlink()
            rig.go(random_.uniform(2.0, 6.0))
        rig.go(WARM_S)
    outcome.harm = f"every write(2) slower by {', '.join(map(str, stretches))} ms, one after the other"
    return outcome


def full_disk(folder: Path, seed: int, watching: Watching) -> Outcome:
    """A disk without a byte left, again and again; twice a process is killed while it is full."""
    outcome, random_ = Outcome("full disk", seed), random.Random(seed)
    with small_disk(folder / "disk") as disk:
        if disk is None:
            outcome.skipped = "no small disk can be mounted here: that takes root"
            return outcome
        cameras = (
            simulated("a", seed=1).model_copy(update={"record": "lossless"}),
            simulated("b", seed=2),
        )
        settings = Recording(segment_minutes=0.1, min_free_gb=0.02, keep_gb=0.01)
        with running(disk / "out", outcome, watching, cameras, recording=settings) as rig:
            rig.go(WARM_S)
            waited = [_filled(rig, disk, random_.uniform(10.0, 20.0), number) for number in range(6)]
            rig.go(WARM_S)
        shutil.copytree(disk / "out", folder / "out", ignore=shutil.ignore_patterns("*.mkv*"))
        outcome.expect(min(waited) > 0, f"labels that had to wait, by stretch: {waited}")
        outcome.notes.append(f"at most {max(waited)} labels waited in memory")
        _only_the_kill_lost_frames(outcome, rig)
    outcome.harm = f"{len(waited)} x full; killed while it was: {', '.join(rig.kills)}"
    return outcome


def _filled(rig: Rig, disk: Path, seconds: float, number: int) -> int:
    """Keep the disk full for so long; how many labels waited for room in the end."""
    ballast = disk / "ballast"
    end_s, killed = time.monotonic() + seconds, False
    while time.monotonic() < end_s:
        fill(ballast)  # what a deleted recording left, too
        rig.go(0.3)
        if number in (2, 4) and not killed and time.monotonic() > end_s - seconds / 2:
            rig.harm(rig.system.inference if number == 2 else rig.system.outputs[0], signal.SIGKILL)
            killed = True
    status = rig.ear.status
    waiting = sum(camera.unwritten for camera in status.cameras) if status else 0
    ballast.unlink()
    rig.go(WARM_S)
    return waiting


def _only_the_kill_lost_frames(outcome: Outcome, rig: Rig) -> None:
    """Frames without a label are of the one stretch in which inference was killed and could not begin again."""
    for camera in rig.config.camera:
        taken = journalled(rig.config, camera.name)
        gaps = [row.index for row in labels_of(rig.config, camera.name) if row.status == Status.GAP]
        lost = [tick for tick in gaps if tick in taken]
        span = lost[-1] - lost[0] if lost else 0
        outcome.expect(span < 30 * RATE_FPS, f"{camera.name}: frames were lost over {span} ticks: not by one kill")


def fill(ballast: Path) -> None:
    """Take every byte that is free, as another program would."""
    with ballast.open("ab", buffering=0) as file:
        for size in (1_000_000, 4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


@contextmanager
def small_disk(at: Path) -> Iterator[Path | None]:
    """A disk of its own in memory; None where none can be mounted."""
    at.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", at], capture_output=True, check=False
    )
    if mounted.returncode:
        yield None
        return
    try:
        yield at
    finally:
        os.sync()
        subprocess.run(["umount", "--lazy", at], check=True)
