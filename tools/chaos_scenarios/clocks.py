"""The date of the computer is set forwards and back while it labels."""

from __future__ import annotations

import random
from pathlib import Path

from chaos_scenarios.counting import Outcome, labels_of
from chaos_scenarios.rig import WARM_S, Watching, environment, running, simulated
from chaos_scenarios.shim import COMPILER, WHY_NOT, compiled
from mbr_live.types import TICK_NS, Status

MOST_TICKS, KILLED_MOST_TICKS = 10, 60  # that may be missed in all: a jump of an hour would be 36,000
JUMPS_S = (3600, -7200, 0, 200_000_000, -2)  # against the true time; years, as of a computer without a battery
KILLED_AT_S = (-7200, 200_000_000)


def clock_jumps(folder: Path, seed: int, watching: Watching) -> Outcome:
    """The date jumps by seconds, hours and years, both ways; a capture process begins anew under two of the dates."""
    outcome, random_ = Outcome("clock", seed), random.Random(seed)
    if COMPILER is None:
        outcome.skipped = WHY_NOT
        return outcome
    date = folder / "date_s"
    faked = environment(LD_PRELOAD=str(compiled(folder)), CHAOS_DATE_S=str(date))
    with faked, running(folder / "out", outcome, watching, (simulated("a", seed=1), simulated("b", seed=2))) as rig:
        rig.go(WARM_S)
        for jump_s in JUMPS_S:
            date.write_text(str(jump_s))
            rig.go(random_.uniform(6.0, 12.0))
            if jump_s in KILLED_AT_S:
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
    outcome.harm = f"date off by {', '.join(f'{jump_s:+d}' for jump_s in JUMPS_S)} s; capture of a killed twice"
    return outcome
