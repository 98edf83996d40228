"""`mbr-live simulate`: a recording of the simulated camera, and the truth beside it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mbr_live.progress import bars
from mbr_live.simulation.camera import Simulation, record


def simulate_program(condition: str, seed: int, minutes: float, out: Path) -> None:
    """Write `<condition>-<seed>.mp4` and `<condition>-<seed>.truth.csv` into `out`."""
    Simulation(condition, seed)  # an unknown condition is an error before there is a folder
    out.mkdir(parents=True, exist_ok=True)
    video, truth = (out / f"{condition}-{seed}{suffix}" for suffix in (".mp4", ".truth.csv"))
    with bars() as show:
        record(condition, seed, minutes * 60, video, truth, progress=partial(show, video.name))
    print(f"{video} and {truth}")
