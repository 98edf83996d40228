"""A simulated camera: a procedural arena from above with a mouse that walks, pauses, grooms and rears.

It stands in for a camera in demonstrations and tests, with a truth for every frame. A world is fixed by condition
and seed; what the animal does, how the arena looks and the sensor's noise each have a random stream of their own.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from mbr_live.simulation.arena import CONDITIONS, Condition, build, noise_fields
from mbr_live.simulation.behaviour import Life
from mbr_live.simulation.mouse import centre, draw
from mbr_live.types import Image, MbrError

__all__ = ["CONDITIONS", "TRUTH_HEADER", "Condition", "Simulation", "Truth", "record"]

TRUTH_HEADER = "source_frame,time_s,x_px,y_px,behaviour,grooming,rearing,rear_mid,rear_wall"

_NOISE_FIELDS = 3
_NOISE_MARGIN_PX = 64  # a noise field is this much larger than the frame, which lies on it at a new place each time


@dataclass(frozen=True, slots=True)
class Truth:
    """What the animal does at one moment and where the middle of its body is, in pixels of the frame."""

    x_px: float
    y_px: float
    behaviour: str  # "walk", "pause", "groom", "rear_mid", "rear_wall"

    @property
    def grooming(self) -> bool:
        return self.behaviour == "groom"

    @property
    def rearing(self) -> bool:
        return self.behaviour in ("rear_mid", "rear_wall")


class Simulation:
    """One endless recording. `empty` leaves the animal out of the picture, but not out of the truth.

    The same condition, seed and frame number give the same picture, whichever frames were rendered before.
    Raises MbrError for an unknown condition or a negative seed.
    """

    def __init__(self, condition: str, seed: int, *, empty: bool = False) -> None:
        if condition not in CONDITIONS:
            raise MbrError(
                f"simulated camera: there is no condition {condition!r}; choose one of {', '.join(CONDITIONS)}."
            )
        if seed < 0:
            raise MbrError(f"simulated camera: the seed is {seed}; choose a whole number from 0 on.")
        self.condition = CONDITIONS[condition]
        streams = np.random.SeedSequence([seed, zlib.crc32(condition.encode())]).spawn(3)
        scene_rng, life_rng, noise_rng = (np.random.Generator(np.random.PCG64(stream)) for stream in streams)
        self._scene = build(self.condition, scene_rng)
        self._noise = noise_fields(self.condition, noise_rng, _NOISE_FIELDS, _NOISE_MARGIN_PX)
        self._noise_key = int(noise_rng.integers(2**32))
        self._life = Life(self._scene.floor, self._scene.length_px, life_rng)
        self._step_s = float(1 / self.condition.fps)
        self._frame = -1
        self._empty = empty

    def advance(self) -> Truth:
        """Moves the world on by one source frame; the first call is frame 0."""
        self._frame += 1
        if self._frame:
            self._life.step(self._step_s)
        x, y = centre(self._life.pose, self._scene.length_px, self._scene.camera)
        return Truth(x, y, self._life.behaviour)

    def render(self) -> Image:
        """The picture of the present moment, RGB uint8 [H, W, 3]. Raises MbrError before the first frame."""
        if self._frame < 0:
            raise MbrError("simulated camera: no frame yet; call advance() before render().")
        picture = self._scene.background.copy()
        if not self._empty:
            scene, pose = self._scene, self._life.pose
            height, width = scene.light.shape
            row, column = min(max(int(pose.y_px), 0), height - 1), min(max(int(pose.x_px), 0), width - 1)
            light = float(scene.light[row, column])
            draw(picture, pose, scene.length_px, scene.camera, scene.look, light)
        cv2.addWeighted(picture, 1.0, self._noise_of_frame(), 1.0, -128.0, dst=picture)
        return picture

    def _noise_of_frame(self) -> Image:
        """The frame's part of the noise fields: a pure function of seed and frame number."""
        chosen = zlib.crc32(self._frame.to_bytes(8, "little"), self._noise_key)
        field, place = chosen % _NOISE_FIELDS, chosen // _NOISE_FIELDS
        top, left = place % _NOISE_MARGIN_PX, place // _NOISE_MARGIN_PX % _NOISE_MARGIN_PX
        return self._noise[field, top : top + self.condition.height_px, left : left + self.condition.width_px]


def record(
    condition: str,
    seed: int,
    seconds: float,
    video: Path,
    truth: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes an H.264 .mp4 and its truth as CSV, one row per source frame, both complete or not there at all.

    `progress` is told the frames written and the frames to write. Raises MbrError for an unknown condition, a length
    below one frame or a folder that does not exist.
    """
    simulation = Simulation(condition, seed)
    fps = simulation.condition.fps
    total = round(seconds * fps) if math.isfinite(seconds) else 0
    if total < 1:
        raise MbrError(f"simulated recording: {seconds} s holds no frame at {float(fps):.2f} fps; give more seconds.")
    with _complete(video) as film, _complete(truth) as table, table.open("w", encoding="utf-8") as rows:
        rows.write(TRUTH_HEADER + "\n")
        with av.open(str(film), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "veryfast"})
            stream.width, stream.height = simulation.condition.width_px, simulation.condition.height_px
            stream.pix_fmt = "yuv420p"
            stream.time_base = 1 / fps
            for number in range(total):
                now = simulation.advance()
                frame = av.VideoFrame.from_ndarray(simulation.render(), format="rgb24")
                frame.pts, frame.time_base = number, 1 / fps
                container.mux(stream.encode(frame))
                rows.write(_row(number, fps, now))
                if progress is not None:
                    progress(number + 1, total)
            container.mux(stream.encode(None))


def _row(number: int, fps: Fraction, now: Truth) -> str:
    flags = (now.grooming, now.rearing, now.behaviour == "rear_mid", now.behaviour == "rear_wall")
    marks = ",".join(str(int(flag)) for flag in flags)
    return f"{number},{float(number / fps):.6f},{now.x_px:.2f},{now.y_px:.2f},{now.behaviour},{marks}\n"


@contextmanager
def _complete(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` when all went well, and vanishes when not."""
    if not path.parent.is_dir():
        raise MbrError(f"{path}: the folder {path.parent} does not exist; create it first.")
    partial = path.with_name(path.name + ".part")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
