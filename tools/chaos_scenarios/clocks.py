"""The date of the computer is set forwards and back while it labels."""

from __future__ import annotations

import random
from pathlib import Path

from chaos_scenarios.counting import Outcome, labels_of
from chaos_scenarios.rig import WARM_S, Watching, environment, running, simulated
from mbr_live.types import TICK_NS, Status

LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
MOST_TICKS, KILLED_MOST_TICKS = 10, 60  # that may be missed in all: a jump of an hour would be 36,000
JUMPS_S = (3600, -7200, 0, 86_400, -2)  # against the true time


def clock_jumps(folder: Path, seed: int, watching: Watching) -> Outcome:
    """The date jumps by seconds, hours and a day, both ways; once a capture process begins anew after it."""
    outcome, random_ = Outcome("clock", seed), random.Random(seed)
    if LIBRARY is None:
        outcome.skipped = "no libfaketime (Debian: apt-get install faketime)"
        return outcome
    offset = folder / "offset"
    offset.write_text("+0s\n")
    # Monotonic time does not jump when a date is set; what measures by the date would be found out.
    faked = environment(
        LD_PRELOAD=str(LIBRARY), FAKETIME_TIMESTAMP_FILE=str(offset), FAKETIME_CACHE_DURATION="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1", DONT_FAKE_MONOTONIC="1", NO_FAKE_STAT="1",
    )  # fmt: skip
    with faked, running(folder / "out", outcome, watching, (simulated("a", seed=1), simulated("b", seed=2))) as rig:
        rig.go(WARM_S)
        for jump_s in JUMPS_S:
            offset.write_text(f"{jump_s:+d}s\n")
            rig.go(random_.uniform(6.0, 12.0))
            if jump_s == -7200:
                rig.harm(rig.system.captures[0])
                rig.go(WARM_S)
        rig.go(5.0)
    for camera in rig.config.camera:
        rows = labels_of(rig.config, camera.name)
        # A row lies on the grid of the first one, whatever the date was: at most a tick beside it.
        beside = [row.index for row in rows if abs(row.time_ns - rows[0].time_ns - row.index * TICK_NS) > TICK_NS]
        outcome.expect(not beside, f"{camera.name}: {len(beside)} rows are off the grid of times, from {beside[:1]} on")
        gaps = sum(row.status == Status.GAP for row in rows)
        most = KILLED_MOST_TICKS if camera.name in rig.kills else MOST_TICKS
        outcome.expect(gaps <= most, f"{camera.name}: {gaps} gap rows, at most {most} expected")
    outcome.harm = f"date off by {', '.join(f'{jump_s:+d}' for jump_s in JUMPS_S)} s; capture killed once"
    return outcome
