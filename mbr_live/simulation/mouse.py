"""The simulated mouse's body: a chain of balls in three dimensions, seen by a camera above, lit and shaded.

A ball is a row x, y, z, r: floor position, height and radius, all in pixels of the floor plane. The picture is drawn
at twice the size in the animal's neighbourhood alone, and reduced.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mbr_live.simulation.behaviour import Pose
from mbr_live.types import Image

Floats = NDArray[np.float64]
Pixels = NDArray[np.float32]

Window = tuple[int, int, int, int]  # left, top, right, bottom

FUR, VENTRAL, EAR, SKIN, EYE = range(5)
_GLOSS = np.array((0.6, 0.5, 0.3, 0.25, 0.0), np.float32)  # how much light and texture shade each of these

# Knots of the spine from rump to snout per posture: forward, height, radius in body lengths.
_KNOTS = np.array(
    [
        [  # walk
            (-0.43, 0.10, 0.070), (-0.29, 0.16, 0.175), (-0.08, 0.19, 0.195), (0.12, 0.17, 0.150),
            (0.25, 0.16, 0.112), (0.35, 0.15, 0.094), (0.48, 0.10, 0.026),
        ],
        [  # groom
            (-0.20, 0.10, 0.130), (-0.13, 0.18, 0.215), (-0.03, 0.26, 0.235), (0.07, 0.28, 0.170),
            (0.15, 0.25, 0.122), (0.24, 0.20, 0.100), (0.32, 0.10, 0.034),
        ],
        [  # rear_mid
            (-0.17, 0.09, 0.100), (-0.12, 0.18, 0.185), (-0.06, 0.36, 0.188), (0.01, 0.54, 0.148),
            (0.06, 0.65, 0.108), (0.10, 0.73, 0.096), (0.20, 0.82, 0.030),
        ],
        [  # rear_wall
            (-0.18, 0.09, 0.100), (-0.13, 0.18, 0.185), (-0.06, 0.36, 0.185), (0.05, 0.54, 0.146),
            (0.11, 0.65, 0.108), (0.16, 0.73, 0.094), (0.25, 0.81, 0.030),
        ],
    ]
)  # fmt: skip
_SPINE = 16  # balls along the spine
_SHOULDER = 8
_NECK = 10  # ball about which the head turns
_HEAD = 13
_CHEST = (5, 7, 9)  # balls with a ventral ball beneath

# Forepaws and hind feet per posture: forward, sideways, height in body lengths.
_FOREPAWS = np.array([(0.20, 0.12, 0.02), (0.34, 0.06, 0.16), (0.21, 0.08, 0.56), (0.30, 0.12, 0.70)])
_HINDFEET = np.array([(-0.20, 0.18, 0.02), (0.05, 0.20, 0.03), (0.04, 0.14, 0.03), (0.04, 0.14, 0.03)])


def _along_spine() -> Floats:
    """Balls of the spine per posture [4, 16, 3], smoothly interpolated between the knots."""
    knots = np.linspace(0, _SPINE - 1, _KNOTS.shape[1])
    at = np.arange(_SPINE)
    dense = np.stack([[np.interp(at, knots, one[:, axis]) for axis in range(3)] for one in _KNOTS])
    padded = np.pad(dense, ((0, 0), (0, 0), (1, 1)), mode="edge")
    smooth = 0.25 * padded[..., :-2] + 0.5 * padded[..., 1:-1] + 0.25 * padded[..., 2:]
    smooth[..., (0, -1)] = dense[..., (0, -1)]
    return np.ascontiguousarray(smooth.transpose(0, 2, 1))


_SPINES = _along_spine()
_TURNS = np.clip((np.arange(_SPINE) - _NECK) / 2.0, 0.0, 1.0)  # share of the head's turn that each ball takes


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole above the floor: the point straight below it and its height, in pixels of the floor plane."""

    x_px: float
    y_px: float
    height_px: float

    def project(self, balls: Floats) -> Floats:
        """Balls as seen: x, y, z, r with x, y and r in the picture."""
        scale = self.height_px / (self.height_px - balls[:, 2])
        seen = balls.copy()
        seen[:, 0] = self.x_px + (balls[:, 0] - self.x_px) * scale
        seen[:, 1] = self.y_px + (balls[:, 1] - self.y_px) * scale
        seen[:, 3] *= scale
        return seen


@dataclass(frozen=True, slots=True)
class Look:
    """One animal's appearance under one lamp."""

    colours: Pixels  # [5, 3] RGB of FUR, VENTRAL, EAR, SKIN, EYE under full light
    fur: Pixels  # texture around 0, square, at the drawing's double size
    lamp: tuple[float, float, float]  # direction towards the light, unit length
    shadow: float  # 0..1


_COVERS = (FUR,) * _SPINE + (VENTRAL,) * len(_CHEST) + (EAR,) * 2 + (EYE,) * 2 + (SKIN,) * 5 + (FUR,) * 4


def body(pose: Pose, length_px: float) -> Floats:
    """The balls of the animal in this pose [N, 4]; spine first, then chest, face, feet and arms."""
    postures = np.array(pose.postures)
    ahead, height, radius = np.tensordot(postures, _SPINES, axes=1).T
    groom = pose.postures[1]
    ahead = ahead * (1.0 + 0.02 * pose.stride * math.sin(2 * pose.gait))
    radius = radius * (1.0 + 0.012 * math.sin(pose.breath))
    wash = groom * pose.washing * math.sin(pose.stroke)
    lick = groom * (1 - pose.washing) * math.sin(pose.stroke)
    bend, yaw = pose.bend + 0.25 * wash, pose.head_yaw + 0.65 * wash + 0.5 * lick
    spine = np.stack([*_bent(ahead, bend), height], axis=1)
    cos, sin = np.cos(yaw * _TURNS), np.sin(yaw * _TURNS)
    turned = spine[:, :2] - spine[_NECK, :2]
    spine[:, 0] = spine[_NECK, 0] + cos * turned[:, 0] - sin * turned[:, 1]
    spine[:, 1] = spine[_NECK, 1] + sin * turned[:, 0] + cos * turned[:, 1]
    feet = _feet(pose, wash + 0.5 * lick)
    parts = np.concatenate(
        [np.column_stack([spine, radius]), _chest(spine, radius), _face(spine), feet, _arms(spine, feet[:2])]
    )
    cos_h, sin_h = math.cos(pose.heading), math.sin(pose.heading)
    balls = parts * length_px
    balls[:, 0] = pose.x_px + length_px * (cos_h * parts[:, 0] - sin_h * parts[:, 1])
    balls[:, 1] = pose.y_px + length_px * (sin_h * parts[:, 0] + cos_h * parts[:, 1])
    return balls


def _bent(ahead: Floats, bend: float) -> tuple[Floats, Floats]:
    """Points of a straight line laid on a circle of curvature `bend`."""
    half = np.sinc(ahead * (bend / math.tau))
    return ahead * np.sinc(ahead * (bend / math.pi)), 0.5 * bend * ahead * ahead * half * half


def _chest(spine: Floats, radius: Floats) -> Floats:
    """Lighter balls on the ventral side: beneath the animal when it walks, in front when it stands."""
    rows = []
    for ball in _CHEST:
        dx, dy, dz = (spine[ball + 1] - spine[ball - 1]).tolist()
        level = math.hypot(dx, dy) or 1e-9
        norm = math.hypot(level, dz)
        out = 0.75 * float(radius[ball]) / norm
        x, y, z = spine[ball].tolist()
        rows.append((x + out * dz * dx / level, y + out * dz * dy / level, z - out * level, 0.7 * radius[ball]))
    return np.array(rows)


def _face(spine: Floats) -> Floats:
    """Ears and eyes, placed in the head's own frame."""
    x, y, z = spine[_HEAD].tolist()
    fx, fy, fz = (spine[_SPINE - 1] - spine[_HEAD - 1]).tolist()
    norm = math.sqrt(fx * fx + fy * fy + fz * fz)
    fx, fy, fz = fx / norm, fy / norm, fz / norm
    level = math.hypot(fx, fy) or 1e-9
    lx, ly = -fy / level, fx / level
    ux, uy, uz = -fz * fx / level, -fz * fy / level, level  # the crown's direction
    rows = []
    for forward, aside, up, radius in ((-0.055, 0.09, 0.05, 0.056), (0.055, 0.055, 0.045, 0.014)):
        for side in (-aside, aside):
            rows.append((
                x + forward * fx + side * lx + up * ux,
                y + forward * fy + side * ly + up * uy,
                z + forward * fz + up * uz,
                radius,
            ))  # fmt: skip
    return np.array(rows)


def _feet(pose: Pose, wash: float) -> Floats:
    """Forepaws, hind feet, and the root of the tail."""
    fore_x, fore_y, fore_z = (np.array(pose.postures) @ _FOREPAWS).tolist()
    hind_x, hind_y, hind_z = (np.array(pose.postures) @ _HINDFEET).tolist()
    step = 0.09 * pose.stride * pose.postures[0] * math.sin(pose.gait)
    rub = 0.05 * wash
    return np.array([
        (fore_x + step + rub, fore_y + rub, fore_z + rub, 0.032),
        (fore_x - step - rub, -fore_y + rub, fore_z - rub, 0.032),
        (hind_x - step, hind_y, hind_z, 0.042),
        (hind_x + step, -hind_y, hind_z, 0.042),
        (-0.42 + 0.22 * (1.0 - pose.postures[0]), 0.0, 0.06, 0.025),
    ])  # fmt: skip


def _arms(spine: Floats, paws: Floats) -> Floats:
    """Two balls on the way from the shoulder to each forepaw."""
    x, y, z = spine[_SHOULDER].tolist()
    rows = []
    for aside, paw in zip((0.07, -0.07), paws.tolist(), strict=True):
        for share, radius in ((0.45, 0.055), (0.75, 0.04)):
            keep = 1.0 - share
            rows.append(
                (keep * x + share * paw[0], keep * (y + aside) + share * paw[1], keep * z + share * paw[2], radius)
            )
    return np.array(rows)


def _outline_centre(bend: float, yaw: float, posture: int) -> tuple[float, float, float]:
    """Middle of the area that a body of length 1 covers, seen from straight above: forward, sideways, height."""
    postures = [float(posture == one) for one in range(len(_KNOTS))]
    still = Pose(0.0, 0.0, 0.0, postures, [], bend=bend, head_yaw=yaw)
    x, y, z, r = body(still, 1.0).T
    columns, rows = np.meshgrid(np.linspace(-0.7, 0.7, 141), np.linspace(-0.7, 0.7, 141))
    dome = r**2 - (columns[..., None] - x) ** 2 - (rows[..., None] - y) ** 2
    top = np.where(dome > 0, z + np.sqrt(np.maximum(dome, 0)), 0)
    inside = top.max(axis=-1) > 0
    height = z[top.argmax(axis=-1)]
    return float(columns[inside].mean()), float(rows[inside].mean()), float(height[inside].mean())


_AHEAD, _, _HEIGHT = np.array([_outline_centre(0, 0, one) for one in range(len(_KNOTS))]).T.tolist()
_ASIDE_BENT = [_outline_centre(1, 0, one)[1] for one in range(len(_KNOTS))]
_ASIDE_TURNED = [_outline_centre(0, 1, one)[1] for one in range(len(_KNOTS))]


def centre(pose: Pose, length_px: float, camera: Camera) -> tuple[float, float]:
    """Middle of the body's area in the picture, pixels; blended from that of the pure postures."""
    ahead = aside = height = 0.0
    for posture, share in enumerate(pose.postures):
        ahead += share * _AHEAD[posture]
        aside += share * (pose.bend * _ASIDE_BENT[posture] + pose.head_yaw * _ASIDE_TURNED[posture])
        height += share * _HEIGHT[posture]
    cos, sin = math.cos(pose.heading), math.sin(pose.heading)
    x = pose.x_px + length_px * (cos * ahead - sin * aside)
    y = pose.y_px + length_px * (sin * ahead + cos * aside)
    scale = camera.height_px / (camera.height_px - length_px * height)
    return camera.x_px + scale * (x - camera.x_px), camera.y_px + scale * (y - camera.y_px)


def draw(picture: Image, pose: Pose, length_px: float, camera: Camera, look: Look, light: float) -> None:
    """Draws the animal and its shadow into the picture; `light` is the illumination where it is."""
    balls = body(pose, length_px)
    joints = np.array(pose.tail)
    slope = np.array(look.lamp[:2]) / look.lamp[2]
    shadows = balls[:, :2] - balls[:, 2:3] * slope
    surroundings = _window(np.concatenate([balls[:, :2], shadows, joints]), 0.35 * length_px, picture.shape)
    if surroundings is None:
        return
    x0, y0, x1, y1 = surroundings
    tail = _tail_cover(joints, 0.03 * length_px, surroundings)
    kept = (1.0 - look.shadow * _shadow(shadows, balls[:, 3], surroundings)) * (1.0 - tail)
    patch = picture[y0:y1, x0:x1] * _grey(kept)
    patch += np.multiply.outer(tail, look.colours[SKIN] * np.float32(light))
    picture[y0:y1, x0:x1] = patch
    seen = camera.project(balls)
    close = _window(seen[:, :2], 0.25 * length_px, picture.shape)
    if close is not None:
        x0, y0, x1, y1 = close
        colour, cover = _painted(seen, length_px, look, close)
        colour *= np.float32(light)
        colour += picture[y0:y1, x0:x1] * _grey(1.0 - cover)
        picture[y0:y1, x0:x1] = np.minimum(colour, 255, out=colour)


def _window(points: Floats, pad: float, shape: tuple[int, ...]) -> Window | None:
    low, high = points.min(axis=0) - pad, points.max(axis=0) + pad
    x0, y0 = max(int(low[0]), 0), max(int(low[1]), 0)
    x1, y1 = min(int(high[0]) + 1, shape[1]), min(int(high[1]) + 1, shape[0])
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def _shadow(centres: Floats, radii: Floats, window: Window) -> Pixels:
    """How much light each pixel of the window lacks, 0..1: soft, and the further off the higher the part."""
    x0, y0, x1, y1 = window
    mask = np.zeros(((y1 - y0 + 1) // 2, (x1 - x0 + 1) // 2), np.uint8)
    at = np.round((centres - (x0, y0)) * 8).astype(int).tolist()
    for place, radius in zip(at[:_SPINE:2], radii[:_SPINE:2].tolist(), strict=True):
        cv2.circle(mask, place, round(radius * 8), 255, -1, cv2.LINE_8, 4)
    soft = cv2.GaussianBlur(mask, (0, 0), 2.4)
    return np.asarray(cv2.resize(soft, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR), np.float32) / np.float32(
        255
    )


def _tail_cover(joints: Floats, root_px: float, window: Window) -> Pixels:
    """Coverage of the window by the tail, 0..1, drawn at twice the size and tapering."""
    x0, y0, x1, y1 = window
    mask = np.zeros((2 * (y1 - y0), 2 * (x1 - x0)), np.uint8)
    at = np.round((joints - (x0, y0)) * 32).astype(int).tolist()
    for joint in range(len(at) - 1):
        thickness = 2 * root_px * (1 - 0.75 * joint / len(at))
        cv2.line(mask, at[joint], at[joint + 1], 255, max(round(thickness), 1), cv2.LINE_AA, 4)
    return np.asarray(cv2.resize(mask, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA), np.float32) / np.float32(255)


def _painted(seen: Floats, length_px: float, look: Look, window: Window) -> tuple[Pixels, Pixels]:
    """Colour of the animal, premultiplied [h, w, 3], and its coverage [h, w] of the window."""
    relief, cover = _relief(seen, window)
    alpha = cv2.GaussianBlur((relief > 0.5).astype(np.float32), (0, 0), 1.0)
    soft = cv2.GaussianBlur(relief, (0, 0), 0.035 * length_px)  # wide enough to hide the single balls
    slope_x = cv2.Sobel(soft, cv2.CV_32F, 1, 0, scale=0.125)
    slope_y = cv2.Sobel(soft, cv2.CV_32F, 0, 1, scale=0.125)
    lx, ly, lz = look.lamp
    lit = (lz - lx * slope_x - ly * slope_y) / np.sqrt(1.0 + slope_x * slope_x + slope_y * slope_y)
    height, width = relief.shape
    shade = lit + (look.fur[:height, :width] - np.float32(0.75))
    shade *= np.take(_GLOSS, cover, mode="clip")
    shade += 1.0
    shade *= 0.92 + soft * np.float32(0.16 / length_px)  # what is higher is nearer to the lamp
    shade *= alpha
    colour = np.take(look.colours, cover, axis=0, mode="clip")
    colour *= _grey(shade)
    size = (width // 2, height // 2)
    small = np.asarray(cv2.resize(alpha, size, interpolation=cv2.INTER_AREA), np.float32)
    return np.asarray(cv2.resize(colour, size, interpolation=cv2.INTER_AREA), np.float32), small


def _grey(plane: Pixels) -> Pixels:
    """The plane [h, w] three times [h, w, 3]: faster to compute with than to broadcast over three colours."""
    return np.asarray(cv2.merge((plane, plane, plane)), np.float32)


def _relief(seen: Floats, window: Window) -> tuple[Pixels, NDArray[np.uint8]]:
    """Height of the animal's surface and what covers it, at twice the size; 0 where it is not."""
    x0, y0, x1, y1 = window
    width, height = 2 * (x1 - x0), 2 * (y1 - y0)
    relief, cover = np.zeros((height, width), np.float32), np.zeros((height, width), np.uint8)
    columns, rows = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    doubled = (seen - (x0 - 0.25, y0 - 0.25, 0, 0)) * 2.0
    for number, (x, y, z, r) in enumerate(doubled.tolist()):
        left, right = max(int(x - r), 0), min(int(x + r) + 2, width)
        top, bottom = max(int(y - r), 0), min(int(y + r) + 2, height)
        if left >= right or top >= bottom:
            continue
        dx, dy = columns[left:right] - np.float32(x), rows[top:bottom] - np.float32(y)
        dome = np.subtract.outer(np.float32(r * r) - dy * dy, dx * dx)
        with np.errstate(invalid="ignore"):  # outside the ball the root is not a number, and fmax passes it over
            np.sqrt(dome, out=dome)
        dome += np.float32(z)
        below = relief[top:bottom, left:right]
        if number >= _SPINE:  # the spine comes first and is all fur, which is 0
            cover[top:bottom, left:right][dome > below] = _COVERS[number]
        np.fmax(below, dome, out=below)
    return relief, cover
