"""The simulated recording conditions: arena, room, lamp and camera, painted once per seed.

Three conditions like those of published open-field recordings: a bright box that fills the frame, a small round
arena in a cluttered room, and a dim box with a dark floor and a light animal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mbr_live.simulation.behaviour import Floor
from mbr_live.simulation.mouse import Camera, Look
from mbr_live.simulation.room import canvas, paint_floor, paint_things, paint_walls, textured

Colour = tuple[int, int, int]
Pixels = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Condition:
    """What the recordings of one kind have in common; colours are RGB under full light."""

    name: str
    fps: Fraction
    width_px: int
    height_px: int
    cluttered: bool  # a round arena in a room full of things; else a rectangular box
    wall_px: tuple[float, float]  # lowest and highest wall
    margin_px: tuple[float, float]  # narrowest and widest, between the floor's edge and the frame's
    body_px: tuple[float, float]  # shortest and longest animal, nose to rump
    light: tuple[float, float]  # dimmest and brightest, 1 is full
    noise: float  # standard deviation of the sensor's noise, grey levels
    surroundings: Colour
    floor: Colour
    wall: Colour
    fur: Colour
    ventral: Colour
    skin: Colour


CONDITIONS: dict[str, Condition] = {
    one.name: one
    for one in (
        Condition(
            "box", Fraction(10), 640, 480, cluttered=False, wall_px=(220, 260), margin_px=(22, 48),
            body_px=(60, 90), light=(0.85, 1.0), noise=2.0, surroundings=(70, 70, 72), floor=(226, 226, 224),
            wall=(165, 166, 169), fur=(46, 44, 44), ventral=(98, 92, 90), skin=(178, 150, 146),
        ),
        Condition(
            "clutter", Fraction(30000, 1001), 640, 480, cluttered=True, wall_px=(60, 90), margin_px=(85, 105),
            body_px=(50, 65), light=(0.8, 1.0), noise=3.0, surroundings=(128, 116, 102), floor=(196, 194, 186),
            wall=(120, 118, 114), fur=(50, 45, 42), ventral=(104, 94, 88), skin=(186, 148, 138),
        ),
        Condition(
            "dark", Fraction(10), 640, 480, cluttered=False, wall_px=(70, 110), margin_px=(40, 62),
            body_px=(60, 80), light=(0.75, 1.0), noise=6.0, surroundings=(14, 14, 15), floor=(40, 39, 42),
            wall=(62, 60, 64), fur=(146, 142, 136), ventral=(184, 178, 172), skin=(160, 124, 120),
        ),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scene:
    """One recording's set-up: all that stays the same from frame to frame."""

    background: NDArray[np.uint8]  # [H, W, 3] RGB
    light: Pixels  # [H, W] illumination of the floor, 1 is full
    floor: Floor
    camera: Camera
    length_px: float  # of the animal, nose to rump
    look: Look


def build(condition: Condition, rng: Generator) -> Scene:
    """Sets one recording up: the same generator state gives the same scene."""
    width, height = condition.width_px, condition.height_px
    camera = Camera(width / 2 + rng.uniform(-25, 25), height / 2 + rng.uniform(-20, 20), rng.uniform(640, 760))
    length = float(rng.uniform(*condition.body_px))
    corners = (_round_corners if condition.cluttered else _box_corners)(condition, rng)
    look = _look(condition, rng)
    light = _illumination(rng, width, height) * np.float32(rng.uniform(*condition.light))
    picture = _painted(condition, corners, camera, look.lamp, rng) * light[..., None]
    background = np.clip(cv2.GaussianBlur(picture, (0, 0), 0.7), 0, 255).astype(np.uint8)
    return Scene(background, light, Floor(corners), camera, length, look)


def _painted(
    condition: Condition, corners: NDArray[np.float64], camera: Camera, lamp: tuple[float, ...], rng: Generator
) -> Pixels:
    """The empty scene under even light, float32 [H, W, 3]."""
    picture = canvas(condition.width_px, condition.height_px, condition.surroundings)
    if condition.cluttered:
        paint_things(picture, rng)
    wall = np.full(len(corners), rng.uniform(*condition.wall_px))
    rim = camera.project(np.column_stack([corners, wall, wall]))[:, :2]
    shade = rng.uniform(0.8, 1.2)
    paint_walls(picture, corners, rim, np.array(condition.wall) * shade, lamp)
    paint_floor(picture, corners, condition.floor, rng)
    return textured(picture, corners, rng)


def noise_fields(condition: Condition, rng: Generator, count: int, margin: int) -> NDArray[np.uint8]:
    """Sensor noise around 128, [count, H + margin, W + margin, 3]: mostly grey, a little colour, fine-grained."""
    shape = (condition.height_px + margin, condition.width_px + margin)
    fields = np.empty((count, *shape, 3), np.uint8)
    for field in fields:
        grey = rng.standard_normal(shape, np.float32)[..., None]
        mixed = 0.9 * grey + 0.45 * rng.standard_normal((*shape, 3), np.float32)
        field[:] = np.clip(np.rint(128 + condition.noise * mixed), 0, 255)
    return fields


def _box_corners(condition: Condition, rng: Generator) -> NDArray[np.float64]:
    left, right, top, bottom = rng.uniform(*condition.margin_px, 4)
    right, bottom = condition.width_px - right, condition.height_px - bottom
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    return _tilted(corners + rng.uniform(-5, 5, corners.shape), rng)


def _round_corners(condition: Condition, rng: Generator) -> NDArray[np.float64]:
    """A circle seen at a slight angle, small enough to leave the room around it in the picture."""
    radius, squash = condition.height_px / 2 - rng.uniform(*condition.margin_px), rng.uniform(0.95, 1.0)
    x, y = condition.width_px / 2 + rng.uniform(-60, 60), condition.height_px / 2 + rng.uniform(-25, 25)
    angles = np.arange(48) * (math.tau / 48)
    return np.stack([x + radius * np.cos(angles), y + squash * radius * np.sin(angles)], axis=1)


def _tilted(corners: NDArray[np.float64], rng: Generator) -> NDArray[np.float64]:
    angle = rng.uniform(-0.02, 0.02)
    turn = np.array([(math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))])
    middle = corners.mean(axis=0)
    return np.asarray((corners - middle) @ turn.T + middle)


def _illumination(rng: Generator, width: int, height: int) -> Pixels:
    """A few broad pools of light over an even level, and the lens's darker corners."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    light = np.full((height, width), 0.78, np.float32)
    for _ in range(3):
        cx, cy = rng.uniform(0, width), rng.uniform(0, height)
        spread = rng.uniform(120, 260)
        light += np.float32(rng.uniform(0.08, 0.2)) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * spread**2))
    corner = ((x - width / 2) ** 2 + (y - height / 2) ** 2) / (width**2 + height**2) * 4
    return np.asarray(light * (1.0 - 0.12 * corner), np.float32)


def _look(condition: Condition, rng: Generator) -> Look:
    shade = rng.uniform(0.85, 1.15)
    fur, ventral = np.array(condition.fur) * shade, np.array(condition.ventral) * shade
    skin = np.array(condition.skin)
    colours = np.stack([fur, ventral, 0.65 * skin + 0.35 * fur, skin, np.array((18, 14, 14))]).astype(np.float32)
    texture = np.asarray(cv2.GaussianBlur(rng.standard_normal((1024, 1024), np.float32), (0, 0), 1.2), np.float32)
    texture *= np.float32(0.1) / texture.std()
    angle, tilt = rng.uniform(-math.pi, math.pi), rng.uniform(0.35, 0.6)
    lamp = (math.sin(tilt) * math.cos(angle), math.sin(tilt) * math.sin(angle), math.cos(tilt))
    return Look(colours, texture, lamp, float(rng.uniform(0.3, 0.45)))
