"""Processes that die, hang, or lose who looks after them."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from chaos_scenarios.counting import Outcome, count_frames, count_told
from chaos_scenarios.ear import Ear
from chaos_scenarios.receivers import Receiver, count_pulses, count_triggers, with_triggers
from chaos_scenarios.rig import WARM_S, Watching, processes_of, running, simulated, system_config
from mbr_live.live.run import SYSTEM_FILE
from mbr_live.triggers.outputs.simulated_box import SimulatedBox

CAMERAS = (simulated("a", seed=1), simulated("b", seed=2))
ORPHANS_GONE_WITHIN_S = 30.0


def kills(folder: Path, seed: int, watching: Watching, seconds: float = 150.0) -> Outcome:
    """SIGKILL of capture, inference and output processes, alone and several at once, at seeded moments."""
    outcome, random_ = Outcome("kills", seed), random.Random(seed)
    with running(folder / "out", outcome, watching, CAMERAS) as rig:
        rig.go(WARM_S)
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            rig.go(random_.uniform(1.0, 20.0))
            for child in random_.sample(rig.children, random_.choice((1, 1, 1, 2, 4))):
                rig.harm(child)
        rig.go(WARM_S)
    outcome.harm = f"kill -9: {_counted(rig.kills)}"
    return outcome


def freezes(folder: Path, seed: int, watching: Watching, seconds: float = 100.0) -> Outcome:
    """SIGSTOP of one process after the other for 0.2 to 5 s, as a machine that swaps or hangs; then SIGCONT."""
    outcome, random_ = Outcome("freezes", seed), random.Random(seed)
    with running(folder / "out", outcome, watching, CAMERAS) as rig:
        rig.go(WARM_S)
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            child = random_.choice(rig.children)
            rig.harm(child, signal.SIGSTOP)
            rig.go(random_.uniform(0.2, 5.0))
            rig.harm(child, signal.SIGCONT)
            rig.go(random_.uniform(1.0, 8.0))
        rig.go(WARM_S)
    outcome.harm = f"standing still: {_counted(rig.kills)}"
    return outcome


def supervisor(folder: Path, seed: int, watching: Watching, times: int = 2) -> Outcome:
    """SIGKILL of `mbr-live run` itself: its processes end by themselves, and the next run goes on."""
    outcome, random_ = Outcome("supervisor", seed), random.Random(seed)
    out = folder / "out"
    with SimulatedBox() as box, Receiver() as receiver:
        config = with_triggers(system_config(out, *CAMERAS), box, receiver.url)
        out.mkdir(parents=True)
        (out / SYSTEM_FILE).write_text(config.model_dump_json())
        with closing(Ear(config)) as ear:
            for number in range(times + 1):
                with subprocess.Popen(
                    [sys.executable, "-m", "mbr_live", "run", str(out / SYSTEM_FILE), "--plain"],
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                ) as process:  # fmt: skip
                    told = len(ear.told)
                    _wait(watching, "the first label", 90, lambda told=told: len(ear.told) > told)
                    time.sleep(WARM_S + random_.uniform(0.0, 8.0))
                    process.send_signal(signal.SIGKILL if number < times else signal.SIGTERM)
                    process.wait(60)
                gone = _wait(watching, "its processes to end", ORPHANS_GONE_WITHIN_S, lambda: not processes_of(folder))
                outcome.expect(gone, f"processes outlived their supervisor by {ORPHANS_GONE_WITHIN_S:.0f} s")
        count_frames(outcome, config)
        count_told(outcome, config, ear.told)
        count_triggers(outcome, config, [receiver.ids])
        count_pulses(outcome, config, box)
    outcome.harm = f"kill -9 of the supervisor: {times}"
    return outcome


def _wait(watching: Watching, what: str, seconds: float, condition: Callable[[], bool]) -> bool:
    watching.say(f"waiting for {what}")
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        if condition():
            return True
        time.sleep(0.1)
    return False


def _counted(harmed: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(harmed.items()) if count)
