"""An hour of eight cameras as fast as inference takes it: real sockets, a real inference process, known losses.

The senders are processes that stand for capture processes. They wait where the queue is full, so nothing is lost but
what the seed says; then every row that must be there, and every gap, is known before.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chaos_scenarios.counting import Outcome, count_frames
from chaos_scenarios.rig import Memory, Watching, inference_alone, simulated, system_config
from mbr_live.simulation.camera import Simulation
from mbr_live.types import RATE_FPS, TICK_NS, Frame
from mbr_live.wire.frames import FrameSender
from mbr_live.wire.messages import CaptureCounts

CAMERAS = 8
PICTURES = 240
LOST_SHARE = 0.01  # single frames
OUTAGE_EVERY, OUTAGE_TICKS = 3000, (5, 200)  # and longer ones
FORK = multiprocessing.get_context("fork")
Pictures = NDArray[np.uint8]
"""uint8 [T, H, W, 3]."""


def hour(folder: Path, seed: int, watching: Watching, minutes: float = 60.0) -> Outcome:
    """Eight cameras of `minutes` each, sent as fast as they are taken."""
    outcome = Outcome("hour", seed)
    ticks = round(minutes * 60 * RATE_FPS)
    config = system_config(folder / "out", *(simulated(f"cage{n}", seed=n) for n in range(CAMERAS)))
    sent = {camera.name: frames_of(seed, n, ticks) for n, camera in enumerate(config.camera)}
    pictures = rendered(PICTURES)
    # Forked before this process has sockets and threads of its own.
    begin = FORK.Event()
    senders: list[BaseProcess] = [
        FORK.Process(target=_send, args=(config.wire.frames, name, frames, ticks, n, pictures, begin), daemon=True)
        for n, (name, frames) in enumerate(sent.items())
    ]
    for sender in senders:
        sender.start()
    start_s = time.monotonic()
    try:
        with inference_alone(config) as child, Memory(child, outcome) as memory:
            begin.set()
            while any(sender.is_alive() for sender in senders):
                memory.sample()
                watching.say(f"{_rows(config.out)} of {CAMERAS * ticks} rows")
                time.sleep(1.0)
            outcome.expect(child.exit_code is None, f"inference ended: {child.last_words()[-300:]}")
    finally:
        for sender in senders:
            sender.kill()
            sender.join()
    wall_s = time.monotonic() - start_s
    count_frames(outcome, config, sent)
    outcome.expect(all(sender.exitcode in (0, -9) for sender in senders), "a sender failed")
    outcome.expect(
        outcome.lost_between == 0, f"{outcome.lost_between} frames that were sent have no label, though senders waited"
    )
    outcome.harm = f"{CAMERAS} x {minutes:g} min; 1 % of the frames and outages of 0.5 to 20 s never sent"
    outcome.notes.append(
        f"{outcome.captured / wall_s:.0f} frames/s, {minutes * 60 / wall_s:.1f} times as fast as the clock"
    )
    return outcome


def frames_of(seed: int, camera: int, ticks: int) -> dict[int, int]:
    """The ticks that a camera sends; the last one always, so that the end is known."""
    random_ = random.Random(f"{seed}/{camera}")
    kept = {tick for tick in range(ticks) if random_.random() >= LOST_SHARE}
    for start in range(OUTAGE_EVERY // 2, ticks, OUTAGE_EVERY):
        first = start + random_.randrange(OUTAGE_EVERY // 3)
        kept -= set(range(first, first + random_.randint(*OUTAGE_TICKS)))
    return {tick: tick for tick in sorted({0, ticks - 1} | kept)}


def rendered(count: int) -> Pictures:
    """Pictures of the simulated box, one after the other."""
    simulation = Simulation("box", 77)
    pictures = []
    for _ in range(count):
        simulation.advance()
        pictures.append(simulation.render())
    return np.stack(pictures)


def _shown(pictures: Pictures, first: int) -> Iterator[NDArray[np.uint8]]:
    """Forwards and backwards for ever: the animal never jumps."""
    loop = np.r_[0 : len(pictures), len(pictures) - 2 : 0 : -1]
    while True:
        yield from (pictures[n] for n in np.roll(loop, -first))


def _send(
    endpoint: str, camera: str, frames: dict[int, int], ticks: int, number: int, pictures: Pictures, begin: object
) -> None:
    """The life of one sender."""
    begin.wait()  # type: ignore[attr-defined]
    sender = FrameSender(endpoint, camera, f"session-{camera}")
    for tick, picture in zip(range(ticks), _shown(pictures, 29 * number), strict=False):
        if tick not in frames:
            continue
        frame = Frame(camera, tick, tick, tick * TICK_NS, 0, picture)
        while not sender.send(frame, time.monotonic_ns()):
            time.sleep(0.002)
    counts = CaptureCounts(source_frames=len(frames), sampled=len(frames), sent=len(frames))
    while not sender.end(ticks - 1, 0, counts):
        time.sleep(0.1)
    sender.close()


def _rows(out: Path) -> int:
    """Roughly, by the size of the logs; what counts is counted at the end."""
    return sum(path.stat().st_size for path in out.glob("*.labels.csv")) // 60
