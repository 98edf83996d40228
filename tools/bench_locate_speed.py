"""What it costs to find the animal and to cut it out, by the size of the picture, on one core.

    python tools/bench_locate_speed.py [--frames 400] [--condition box]

CPU milliseconds per frame of what `Pipeline.see` does before the networks: is there a picture (`blind`), where is the
animal (`locate`), its crop. The simulator's pictures, enlarged; the crop window grows with them. The mean is of the
frames after the crop window has settled, as in all but the first seconds of a session; `slowest 1 %` is of the sum.
"""

from __future__ import annotations

import argparse
import time

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mbr_live.simulation.camera import CONDITIONS, Simulation
from mbr_live.stages.blindness import BlindState, is_blind
from mbr_live.stages.locate import crop, initial_state, locate, window_px
from mbr_live.types import Image

SIZES = ((640, 480), (1280, 720), (1920, 1080), (2560, 1440), (3840, 2160))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--condition", choices=sorted(CONDITIONS), default="box")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    table = Table(title=f"CPU ms per frame, one core, simulated {arguments.condition}")
    for column in ("size", "window px", "blind", "locate", "crop", "together", "slowest 1 %", "first frame"):
        table.add_column(column, justify="right")
    pictures = rendered(arguments.condition, arguments.frames)
    for width, height in SIZES:
        window, first_ms, spent_ms = measured(pictures, width, height)
        together = spent_ms.sum(axis=1)
        cells = (*spent_ms.mean(axis=0), together.mean(), np.quantile(together, 0.99), first_ms)
        table.add_row(f"{width} x {height}", str(window), *(f"{value:.2f}" for value in cells))
    Console(width=110).print(table)


def rendered(condition: str, frames: int) -> list[Image]:
    simulation = Simulation(condition, 5)
    pictures = []
    for _ in track(range(frames), "rendering", console=Console(stderr=True)):
        simulation.advance()
        pictures.append(simulation.render())
    return pictures


def measured(pictures: list[Image], width: int, height: int) -> tuple[int, float, np.typing.NDArray[np.float64]]:
    """The crop window, ms of the first frame, and ms of `blind`, `locate` and `crop` per frame since it settled."""
    state, looked = initial_state(), BlindState()
    window, first_ms, spent_ms = None, 0.0, []
    for picture in track(pictures, f"{width} x {height}", console=Console(stderr=True)):
        pixels = np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
        stamps = [time.thread_time()]
        _, looked = is_blind(pixels, looked)
        stamps.append(time.thread_time())
        sighting, state = locate(pixels, state)
        stamps.append(time.thread_time())
        if window and sighting.found:
            crop(pixels, sighting.x_px, sighting.y_px, window)
            stamps.append(time.thread_time())
            spent_ms.append(1000 * np.diff(stamps))
        first_ms = first_ms or 1000 * (stamps[2] - stamps[0])
        window = window_px(state)
    if window is None or not spent_ms:
        raise SystemExit(f"{width} x {height}: the crop window did not settle in {len(pictures)} frames; give more")
    return window, first_ms, np.array(spent_ms)


if __name__ == "__main__":
    main()
