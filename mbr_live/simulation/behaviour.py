"""How the simulated mouse spends its time: what it does next, where it goes and how its body moves meanwhile.

Lengths are in pixels of the floor, angles in radians, x to the right and y downwards as in the picture. Dynamics
are continuous in time and stepped by 1/fps, so statistics in seconds do not depend on the frame rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

TAIL_JOINTS = 12
TAIL_LENGTHS = 0.85  # of the tail in body lengths
POSTURES = ("walk", "groom", "rear_mid", "rear_wall")

# Every trip across the floor ends in one of these. Drawing from a shuffled deck rather than independently makes a few
# minutes hold every behaviour, as an 11-minute test of a real mouse does.
_DECK = ("pause",) * 8 + ("rear_wall",) * 4 + ("rear_mid",) * 3 + ("groom",)
_POSTURE_TIME_S = 0.11  # time constant of a change of posture: nine tenths done after a quarter of a second
_LONGEST_TRIP_S = 8.0
_BEND_COS, _BEND_SIN = math.cos(0.32), math.sin(0.32)  # the most that one joint of the tail bends


@dataclass(frozen=True, slots=True)
class _Duration:
    """Gamma distributed, clipped: mean and limits in seconds."""

    mean_s: float
    shape: float
    shortest_s: float
    longest_s: float

    def draw(self, rng: Generator) -> float:
        value = float(rng.gamma(self.shape, self.mean_s / self.shape))
        return min(max(value, self.shortest_s), self.longest_s)


# Means and limits of grooming and rearing bouts as measured on annotated open-field recordings at 10 fps: grooming
# 102 frames on average and at most 555, rearing 22 on average.
_DURATIONS = {
    "pause": _Duration(1.7, 2.0, 0.4, 8.0),
    "groom": _Duration(10.3, 1.6, 1.0, 55.0),
    "rear_mid": _Duration(2.2, 3.0, 0.5, 8.0),
    "rear_wall": _Duration(2.2, 3.0, 0.5, 8.0),
}


class Floor:
    """Convex floor of an arena: corners [N, 2] in order, pixels."""

    def __init__(self, corners: NDArray[np.float64]) -> None:
        edges = np.roll(corners, -1, axis=0) - corners
        normals = np.stack([edges[:, 1], -edges[:, 0]], axis=1)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        outwards = np.sum(normals * (corners - corners.mean(axis=0)), axis=1, keepdims=True) > 0
        self.corners = corners
        self.normals = np.where(outwards, normals, -normals)  # of the walls, pointing out of the arena
        self.offsets = np.sum(self.normals * corners, axis=1)

    def gaps(self, x: float, y: float) -> NDArray[np.float64]:
        """Distance to each wall [N], negative outside."""
        return np.asarray(self.offsets - self.normals @ (x, y))

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """Distance to the nearest wall and the direction towards it."""
        gaps = self.gaps(x, y)
        wall = int(np.argmin(gaps))
        return float(gaps[wall]), math.atan2(self.normals[wall, 1], self.normals[wall, 0])

    def kept_in(self, x: float, y: float, heading: float, sides: float, front: float) -> tuple[float, float]:
        """The point moved so that a body pointing along `heading` has room: `sides` px, `front` px ahead."""
        facing = self.normals @ (math.cos(heading), math.sin(heading))
        room = sides + (front - sides) * np.maximum(facing, 0.0) - self.offsets
        for _ in range(2):  # a corner has two walls
            lack = room + self.normals @ (x, y)
            wall = int(lack.argmax())
            if lack[wall] <= 0:
                break
            x -= float(self.normals[wall, 0] * lack[wall])
            y -= float(self.normals[wall, 1] * lack[wall])
        return x, y

    def anywhere(self, rng: Generator) -> tuple[float, float]:
        """A point of the floor, more often near the middle than not."""
        weights = rng.dirichlet(np.ones(len(self.corners)) * (3.0 / len(self.corners)))
        x, y = weights @ self.corners
        return float(x), float(y)


@dataclass(slots=True)
class Pose:
    """All that drawing the animal needs to know."""

    x_px: float  # floor point beneath the middle of the spine
    y_px: float
    heading: float
    postures: list[float]  # how far in each of POSTURES, sums to 1
    tail: list[tuple[float, float]]  # joints from the root to the tip, px
    bend: float = 0.0  # of the spine to its left, radians per body length
    head_yaw: float = 0.0
    gait: float = 0.0  # phase of the steps
    stride: float = 0.0  # 0..1, how far the legs reach
    stroke: float = 0.0  # phase of the forepaws washing the face
    washing: float = 0.0  # 0..1, forepaws at the face (else the head is at the flank)
    breath: float = 0.0


class Life:
    """The animal's doings, one step at a time."""

    def __init__(self, floor: Floor, length_px: float, rng: Generator) -> None:
        self.floor, self.length_px, self._rng = floor, length_px, rng
        x, y = floor.corners.mean(axis=0)
        heading = float(rng.uniform(-math.pi, math.pi))
        step = TAIL_LENGTHS * length_px / (TAIL_JOINTS - 1)
        root = 0.45 * length_px
        tail = [
            (x - (root + i * step) * math.cos(heading), y - (root + i * step) * math.sin(heading))
            for i in range(TAIL_JOINTS)
        ]
        self.pose = Pose(float(x), float(y), heading, [1.0, 0.0, 0.0, 0.0], tail)
        self.behaviour = "walk"
        self._deck: list[str] = []
        self._speed = self._turning = self._wander = 0.0
        self._left_s = 0.0  # of the present behaviour
        self._glance = self._glance_left_s = 0.0  # where the head looks, and for how long
        self._flank = 0  # -1 or 1 while the head is at that flank
        self._stroke_hz = 3.7
        self._set_out()

    def step(self, dt: float) -> None:
        """Lets `dt` seconds pass."""
        self._left_s -= dt
        if self.behaviour == "walk":
            self._walk(dt)
        else:
            self._stay(dt)
        self._shape(dt)
        self._drag_tail()
        if self.behaviour == "walk" and (self._arrived() or self._left_s <= 0):
            self._begin(self._feasible(self._next))
        elif self.behaviour != "walk" and self._left_s <= 0:
            self._set_out()

    # what to do

    def _set_out(self) -> None:
        if not self._deck:
            self._deck = [str(name) for name in self._rng.permutation(_DECK)]
        self._next = self._deck.pop()
        self._target = self._choose_target(self._next)
        self._pace = float(np.clip(self._rng.lognormal(0.25, 0.35), 0.5, 3.0)) * self.length_px
        self.behaviour, self._left_s = "walk", _LONGEST_TRIP_S

    def _begin(self, behaviour: str) -> None:
        self.behaviour = behaviour
        self._left_s = _DURATIONS[behaviour].draw(self._rng)
        self._wall_heading = self.floor.nearest(self.pose.x_px, self.pose.y_px)[1]
        self._glance_left_s, self._flank = 0.0, 0

    def _choose_target(self, purpose: str) -> tuple[float, float]:
        """Of a few places fit for the purpose the one whose distance is nearest to two and a half bodies."""
        places = [self._place(purpose) for _ in range(6)]
        x, y, wanted = self.pose.x_px, self.pose.y_px, 2.4 * self.length_px
        return min(places, key=lambda place: abs(math.hypot(place[0] - x, place[1] - y) - wanted))

    def _place(self, purpose: str) -> tuple[float, float]:
        x, y = self.floor.anywhere(self._rng)
        gap, towards = self.floor.nearest(x, y)
        near_wall = purpose == "rear_wall" or (purpose != "rear_mid" and self._rng.random() < 0.5)
        wanted = 0.52 if near_wall else 1.3
        if near_wall or gap < wanted * self.length_px:
            shift = gap - wanted * self.length_px
            x, y = x + shift * math.cos(towards), y + shift * math.sin(towards)
        room = wanted * self.length_px
        return self.floor.kept_in(x, y, 0.0, room, room)

    def _arrived(self) -> bool:
        dx, dy = self._target[0] - self.pose.x_px, self._target[1] - self.pose.y_px
        return math.hypot(dx, dy) < 0.15 * self.length_px

    def _feasible(self, behaviour: str) -> str:
        """The behaviour, or a pause where there is no wall to lean on or no room to stand free."""
        gap = self.floor.nearest(self.pose.x_px, self.pose.y_px)[0] / self.length_px
        if (behaviour == "rear_wall" and gap > 0.8) or (behaviour == "rear_mid" and gap < 1.0):
            return "pause"
        return behaviour

    # how to move

    def _walk(self, dt: float) -> None:
        pose = self.pose
        self._wander += (-self._wander * dt + 0.5 * math.sqrt(dt) * float(self._rng.standard_normal())) / 0.8
        dx, dy = self._target[0] - pose.x_px, self._target[1] - pose.y_px
        distance = math.hypot(dx, dy) / self.length_px
        wander = self._wander * min(1.0, distance)
        error = math.remainder(math.atan2(dy, dx) + wander - pose.heading, math.tau)
        on_fours = pose.postures[0]
        pace = self._pace * max(0.08, math.cos(error)) * min(1.0, 0.25 + distance) * on_fours
        self._turning = _towards(self._turning, min(max(4.0 * error, -5.0), 5.0), dt, 0.1)
        self._speed = _towards(self._speed, pace, dt, 0.15)
        self._glance = 0.35 * error
        self._move(dt)

    def _stay(self, dt: float) -> None:
        pose = self.pose
        turning = 0.0
        if self.behaviour == "rear_wall":
            turning = 6.0 * math.remainder(self._wall_heading - pose.heading, math.tau)
            gap, towards = self.floor.nearest(pose.x_px, pose.y_px)
            self._wall_heading = towards
            approach = (gap - 0.32 * self.length_px) * (1 - math.exp(-dt / 0.12))
            pose.x_px += approach * math.cos(towards)
            pose.y_px += approach * math.sin(towards)
        self._turning = _towards(self._turning, turning, dt, 0.08)
        self._speed = _towards(self._speed, 0.0, dt, 0.08)
        self._look_around(dt)
        self._move(dt)

    def _move(self, dt: float) -> None:
        pose, length = self.pose, self.length_px
        pose.heading = math.remainder(pose.heading + self._turning * dt, math.tau)
        x = pose.x_px + self._speed * dt * math.cos(pose.heading)
        y = pose.y_px + self._speed * dt * math.sin(pose.heading)
        front = 0.5 - 0.18 * (1.0 - pose.postures[0])  # an animal that sits up needs less room ahead
        pose.x_px, pose.y_px = self.floor.kept_in(x, y, pose.heading, 0.24 * length, front * length)

    def _look_around(self, dt: float) -> None:
        self._glance_left_s -= dt
        if self._glance_left_s > 0:
            return
        if self.behaviour == "groom":
            at_flank = self._flank == 0 and self._rng.random() < 0.35
            self._flank = int(self._rng.choice((-1, 1))) if at_flank else 0
            self._stroke_hz = float(self._rng.uniform(3.2, 4.4))
            self._glance = 0.0
            self._glance_left_s = float(self._rng.uniform(1.5, 4.0))
        else:
            reach = 0.55 if self.behaviour == "pause" else 0.45
            self._glance = float(self._rng.uniform(-reach, reach))
            self._glance_left_s = float(self._rng.uniform(0.3, 1.2))

    def _shape(self, dt: float) -> None:
        """Moves the posture, spine, head and limbs towards what the behaviour asks for."""
        pose = self.pose
        wanted = "walk" if self.behaviour == "pause" else self.behaviour
        keep = math.exp(-dt / _POSTURE_TIME_S)
        pose.postures = [keep * share for share in pose.postures]
        pose.postures[POSTURES.index(wanted)] += 1 - keep
        grooming = self.behaviour == "groom"
        pose.gait = math.fmod(pose.gait + math.tau * self._speed * dt / (0.6 * self.length_px), math.tau)
        pose.stride = min(1.0, self._speed / (0.5 * self.length_px))
        pose.stroke = math.fmod(pose.stroke + math.tau * self._stroke_hz * dt, math.tau)
        pose.breath = math.fmod(pose.breath + math.tau * 2.3 * dt, math.tau)
        pose.washing = _towards(pose.washing, float(grooming and self._flank == 0), dt, 0.15)
        bend = 1.7 * self._flank if grooming else 0.22 * self._turning
        pose.bend = _towards(pose.bend, min(max(bend, -1.8), 1.8), dt, 0.15)
        yaw = 1.5 * self._flank if grooming else self._glance
        pose.head_yaw = _towards(pose.head_yaw, min(max(yaw, -1.5), 1.5), dt, 0.12)

    def _drag_tail(self) -> None:
        """Each joint follows the one before it at a fixed distance and bends only so far."""
        pose = self.pose
        back = pose.heading + math.pi - 0.4 * pose.bend * pose.postures[0] + 0.12 * pose.stride * math.sin(pose.gait)
        back_x, back_y = math.cos(back), math.sin(back)
        reach = self.length_px * (0.44 - 0.24 * (1.0 - pose.postures[0]))
        step = TAIL_LENGTHS * self.length_px / (TAIL_JOINTS - 1)
        x, y = pose.x_px + reach * back_x, pose.y_px + reach * back_y
        tail = [(x, y)]
        for old_x, old_y in pose.tail[1:]:
            dx, dy = old_x - x, old_y - y
            distance = math.hypot(dx, dy) or 1.0
            dx, dy = dx / distance, dy / distance
            if dx * back_x + dy * back_y < _BEND_COS:
                side = _BEND_SIN if back_x * dy > back_y * dx else -_BEND_SIN
                dx, dy = _BEND_COS * back_x - side * back_y, _BEND_COS * back_y + side * back_x
            x, y, back_x, back_y = x + step * dx, y + step * dy, dx, dy
            tail.append((x, y))
        pose.tail = tail


def _towards(value: float, goal: float, dt: float, time_s: float) -> float:
    return goal + (value - goal) * math.exp(-dt / time_s)
