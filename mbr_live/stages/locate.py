"""Where the animal is in a frame: one animal, one fixed camera, no knowledge of what camera or animal.

Candidates are the blobs that differ from a background without the animal (`mbr_live.stages.background`). Which of them
is the animal is told by its look (contrast, size, shape), by where and how large it was before, and above all by life:
**what moves is alive, and keeps that credit for minutes while it sits.** So a dark tripod that never moves is taken
for the animal only as long as nothing better is known, and an animal that sleeps stays found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np

from mbr_live.stages.background import (
    CONTRAST_MIN,
    USUAL_AREA,
    Blob,
    Box,
    Grey,
    Plane,
    blobs,
    compare,
    guess_background,
    learn,
    plausibility,
    search_picture,
    search_picture_in,
    search_stride,
    shown,
)
from mbr_live.types import CROP_PX, NOT_FOUND, Image, MbrError, Sighting

WINDOW_FRAMES = 30  # sightings of a living animal that settle the crop window
WINDOW_PATIENCE_FRAMES = 100  # sightings that settle it for an animal that has not moved
WINDOW_MIN_PX = 48
RESTART_SHARE = 0.4  # of the picture: when more differs, the light was switched
RESTART_REST_FRAMES = 10  # a new background costs as much as so many frames, and is paid for by as many,
RESTARTS_AT_ONCE = 5  # ... but a light that comes up slowly may have some in a row
COOL = 0.85  # motion is remembered for about half a second
LIVELY = 0.7  # share of a blob's outline in motion that earns full credit
TRAVEL = 0.7  # of the root of its area: who has gone that far from a place, and left it bare, has moved
CREDIT = 0.25  # share of the way to full credit that one such move earns
STILL_SHARE = 0.25  # of its area: how far, squared, the centre of one that shows no motion may wander
LOYALTY = 0.1  # weight of having been chosen in the frame before
LIFE_CREDIT = 0.1  # ... and that motion of more than half of the outline earns per frame
SAME_NEARNESS = 0.1  # below: another thing than before
FORGET = 0.9998  # the credit fades over about eight minutes
CONFIRMED = 0.5  # credit from which the animal counts as known
PATIENCE_FRAMES = 300  # sightings of one thing among others like it, none ever alive, until all are furniture
SIGN_OF_LIFE = 0.1  # credit, or motion of the outline, that is enough not to count as furniture
RIVAL = 0.3  # of the animal's plausibility, for another thing to be like it
FOLLOW_FRAMES = 4  # on end, in which a known animal is looked for only around where it was
REACH = 4.0  # times the root of its area: how far these reach
OVERSIZE = 3.0  # times the usual area of a known animal: it is that and something else
_COOLER = (COOL * np.arange(256)).astype(np.uint8)


@dataclass(frozen=True)
class LocateState:
    """All that is remembered of one camera. Planes are of the search picture, [h, w], and positions in its pixels."""

    shape: tuple[int, int] = (0, 0)  # of the full frame; (0, 0) before the first
    background: Plane = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    previous: Grey = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    known: Grey = field(
        default_factory=lambda: np.zeros((0, 0), np.uint8)
    )  # the background, in the light of `previous`
    heat: Grey = field(default_factory=lambda: np.zeros((0, 0), np.uint8))  # recent motion, 0..255
    threshold: float = 0.0  # grey levels from which a difference counted when the whole picture was last looked at
    followed_frames: int = 0  # frames since then
    restart_debt_frames: int = 0  # for new backgrounds
    place: tuple[float, float] = (float("nan"), float("nan"))  # of the last sighting
    home: tuple[float, float] = (float("nan"), float("nan"))  # of the last sighting of what is known to live
    area: float = float("nan")  # usual area of the animal
    last_area: float = float("nan")  # of the last sighting
    animal: Grey = field(default_factory=lambda: np.zeros((0, 0), np.uint8))  # 1 where it was, with tail and feet
    sign: int = 0  # -1: it was darker than its surroundings, +1: lighter
    anchor: tuple[float, float] = (float("nan"), float("nan"))  # the place that it has to leave to earn credit
    credit: float = 0.0  # 0: never seen to move .. 1: alive
    proven: bool = False  # the credit has once been enough to know the animal
    unproven_frames: int = 0  # sightings before that, while other things looked as much like an animal
    polarity: float = 0.0  # -1: what moves is darker than its surroundings .. +1: lighter
    lengths_px: tuple[float, ...] = ()  # of the first sightings, until the window is settled
    window_px: int = 0  # 0: not settled


def initial_state() -> LocateState:
    """The state before the first frame."""
    return LocateState()


def window_px(state: LocateState) -> int | None:
    """Side of the square crop window, pixels of the full frame; None until it is settled, then fixed.

    Twice the median body length of the first sightings (the thesis: a mouse of 80 px, a window of 160 px).
    """
    return state.window_px or None


def crop(pixels: Image, x_px: float, y_px: float, window_px: int) -> Image:
    """Cut the square of side `window_px` around (x, y), edge-replicated, as uint8 [160, 160, 3]."""
    height, width = pixels.shape[:2]
    left, top = round(x_px - window_px / 2), round(y_px - window_px / 2)
    rows = slice(min(max(top, 0), height - 1), max(min(top + window_px, height), 1))
    columns = slice(min(max(left, 0), width - 1), max(min(left + window_px, width), 1))
    window: Image = pixels[rows, columns]
    above, before = min(max(-top, 0), window_px - 1), min(max(-left, 0), window_px - 1)
    below, after = window_px - above - window.shape[0], window_px - before - window.shape[1]
    if above or before or below or after:
        padded = cv2.copyMakeBorder(window, above, below, before, after, cv2.BORDER_REPLICATE)
        window = np.asarray(padded, dtype=np.uint8)
    if window_px == CROP_PX:
        return np.ascontiguousarray(window, dtype=np.uint8)
    method = cv2.INTER_AREA if window_px > CROP_PX else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(window, (CROP_PX, CROP_PX), interpolation=method), dtype=np.uint8)


def locate(pixels: Image, state: LocateState) -> tuple[Sighting, LocateState]:
    """Find the animal in the next frame of a camera, uint8 [H, W, 3] RGB; return it and the next state.

    Pure and causal: no clock, no randomness; `state` is not changed. Raises MbrError when the frame size changes.
    """
    shape = (pixels.shape[0], pixels.shape[1])
    if state.shape not in ((0, 0), shape):
        raise MbrError(
            f"locate: a frame of {shape[1]}x{shape[0]} px, expected {state.shape[1]}x{state.shape[0]} px as before; "
            "one camera keeps one frame size: start a new recording for another"
        )
    return _followed(pixels, state) or _searched(pixels, replace(state, shape=shape))


def _followed(pixels: Image, state: LocateState) -> tuple[Sighting, LocateState] | None:
    """Look for a known animal, once its window is settled, only around where it was; None where that is not enough.

    What lies elsewhere is remembered as it was; the background learns when the whole picture is seen.
    """
    if not state.window_px or state.credit <= CONFIRMED or state.followed_frames >= FOLLOW_FRAMES:
        return None
    box = _around(state)
    grey = search_picture_in(pixels, box, state.previous)
    heat = _heated(grey, state, state.threshold, box)
    candidates = blobs(grey, state.known, heat, state.threshold, _signs(state), OVERSIZE * state.area, box)
    animal = _choose(candidates, state)
    if animal is None or _is_cut(animal, box, grey.shape) or not _is_same(animal, state):
        return None
    state = _remembered(animal, grey, state, previous=grey, heat=heat, followed_frames=state.followed_frames + 1)
    return _sighting(animal, state), state


def _searched(pixels: Image, state: LocateState) -> tuple[Sighting, LocateState]:
    """Look for the animal in the whole picture."""
    grey = search_picture(pixels)
    state = state if state.background.shape == grey.shape else _begun(grey, state)
    background, threshold, changed = compare(grey, state.background)
    if changed > RESTART_SHARE:
        if state.restart_debt_frames > RESTART_REST_FRAMES * (RESTARTS_AT_ONCE - 1):
            return NOT_FOUND, _passed_over(grey, state)
        debt_frames = state.restart_debt_frames + RESTART_REST_FRAMES
        state = replace(_begun(grey, state), restart_debt_frames=debt_frames)
        background, threshold, _ = compare(grey, state.background)
    box = _everywhere(grey)
    heat = _heated(grey, state, threshold, box)
    largest = OVERSIZE * state.area if state.credit > CONFIRMED else 0.0
    candidates = blobs(grey, shown(background), heat, threshold, _signs(state), largest, box)
    animal = _choose(candidates, state)
    background = _learnt(grey, background, candidates, animal, state)
    state = replace(
        state, background=background, known=shown(background), previous=grey, heat=heat, threshold=threshold,
        followed_frames=0, restart_debt_frames=max(0, state.restart_debt_frames - 1),
    )  # fmt: skip
    if animal is None:
        return NOT_FOUND, replace(state, credit=state.credit * FORGET)
    if not state.proven and _has_rival(animal, candidates, grey):
        state = replace(state, unproven_frames=state.unproven_frames + 1)
    state = _remembered(animal, grey, state)
    return _sighting(animal, state), state


def _around(state: LocateState) -> Box:
    """The part of the search picture that the animal can have reached since it was last seen."""
    reach = REACH * math.sqrt(state.area)
    (x, y), (height, width) = state.place, state.previous.shape
    rows = slice(max(0, round(y - reach)), min(height, round(y + reach) + 1))
    return rows, slice(max(0, round(x - reach)), min(width, round(x + reach) + 1))


def _is_cut(animal: Blob, box: Box, shape: tuple[int, ...]) -> bool:
    """Whether a blob goes on, or may go on, outside `box` in a picture of `shape`."""
    return any(
        (inner.start <= outer.start > 0) or (inner.stop >= outer.stop < size)
        for inner, outer, size in zip(animal.box, box, shape, strict=True)
    )


def _heated(grey: Grey, state: LocateState, threshold: float, box: Box) -> Grey:
    """Recent motion, cooled by a frame, and where `box` differs from the picture before."""
    heat = np.asarray(cv2.LUT(state.heat, _COOLER), dtype=np.uint8)
    _, moved = cv2.threshold(cv2.absdiff(grey[box], state.previous[box]), threshold, 255, cv2.THRESH_BINARY)
    heat[box] = cv2.max(heat[box], moved)
    return heat


def _everywhere(grey: Grey) -> Box:
    return slice(0, grey.shape[0]), slice(0, grey.shape[1])


def _begun(grey: Grey, state: LocateState) -> LocateState:
    """The state with a new background; what is known of the animal is kept."""
    heat = np.zeros_like(grey)
    return replace(state, background=guess_background(grey), previous=grey, heat=heat)


def _passed_over(grey: Grey, state: LocateState) -> LocateState:
    """The state after a picture that changes as a whole, again and again: in such a one nothing can be found."""
    return replace(
        state, previous=grey, heat=np.zeros_like(grey), followed_frames=0, credit=state.credit * FORGET,
        restart_debt_frames=state.restart_debt_frames - 1,
    )  # fmt: skip


def _signs(state: LocateState) -> tuple[int, ...]:
    """Darker, lighter, or both: which differences can be the animal."""
    return tuple(sign for sign in (-1, 1) if sign * state.polarity > -0.8)


def _nearness(blob: Blob, place: tuple[float, float], area: float) -> float:
    """1 at a place, 0 far from it; `area` is the square of the yardstick."""
    if math.isnan(place[0]):
        return 0.0
    squared = ((blob.x - place[0]) ** 2 + (blob.y - place[1]) ** 2) / area
    return float(np.exp(-squared / 2))


def _life(blob: Blob) -> float:
    return min(1.0, blob.life / LIVELY)


def _standing(blob: Blob, state: LocateState) -> float:
    """Evidence that a blob is the animal, from what it has done: it has stayed in its place, or it moves."""
    still = _nearness(blob, state.home, STILL_SHARE * state.area)
    trust = 2 * state.credit * max(still, _life(blob) * _nearness(blob, state.home, state.area))
    return max(_life(blob), trust) + LOYALTY * _nearness(blob, state.place, state.area)


def _choose(candidates: list[Blob], state: LocateState) -> Blob | None:
    """The most likely animal, or None."""
    usual_area = USUAL_AREA * state.background.size
    if state.credit:
        usual_area *= (state.area / usual_area) ** state.credit
    patience_lost = state.unproven_frames >= PATIENCE_FRAMES and state.credit < SIGN_OF_LIFE
    best, best_score = None, 0.0
    for blob in candidates:
        if blob.is_ghost or blob.contrast < CONTRAST_MIN:
            continue
        if patience_lost and _life(blob) < SIGN_OF_LIFE:
            continue
        standing = _standing(blob, state)
        if state.credit > CONFIRMED and standing < 0.1:
            continue  # a known animal has either stayed or moved
        score = plausibility(blob, usual_area, state.credit) * (0.05 + standing)
        if score > best_score:
            best, best_score = blob, score
    return best


def _has_rival(animal: Blob, candidates: list[Blob], grey: Grey) -> bool:
    """Whether something else in the picture looks as much like an animal.

    One thing alone on a floor may be an animal asleep. One of several, of which none has ever stirred, is furniture.
    """
    usual_area = USUAL_AREA * grey.size
    enough = RIVAL * plausibility(animal, usual_area)
    return any(
        plausibility(other, usual_area) > enough
        for other in candidates
        if not other.is_ghost
        and other.contrast >= CONTRAST_MIN
        and _nearness(other, (animal.x, animal.y), animal.area) < SAME_NEARNESS
    )


def _learnt(grey: Grey, background: Plane, candidates: list[Blob], animal: Blob | None, state: LocateState) -> Plane:
    """The next background. As long as no living animal is known, none of the candidates is learnt.

    While a known animal moves, whatever else stands still is not an animal, and is learnt at once.
    """
    ghosts = [blob for blob in candidates if blob.is_ghost]
    others = [blob for blob in candidates if not blob.is_ghost and blob is not animal]
    kept = [] if animal is None else [animal]
    if state.credit < CONFIRMED:
        kept += others
    elif animal is not None and _life(animal) > 0.5:
        ghosts += [blob for blob in others if _life(blob) < 0.1 or blob.area > OVERSIZE * state.area]
    return learn(grey, background, kept, ghosts, 1 + state.followed_frames)


def _is_alike(animal: Blob, state: LocateState) -> bool:
    """Whether a blob looks like the last sighting."""
    return animal.sign == state.sign and 1 / OVERSIZE < animal.area / state.last_area < OVERSIZE


def _is_same(animal: Blob, state: LocateState) -> bool:
    """Whether a blob is the last sighting, a frame later."""
    return _is_alike(animal, state) and _nearness(animal, state.place, state.area) > SAME_NEARNESS


def _remembered(animal: Blob, grey: Grey, state: LocateState, **seen: Any) -> LocateState:
    """The state after a sighting: who leaves its place, and leaves it bare, has moved, and earns credit.

    `seen` are fields that the picture itself has changed; one copy of a state is cheaper than two.
    """
    place = (animal.x, animal.y)
    alike, same = _is_alike(animal, state), _is_same(animal, state)
    trusted = same and state.home == state.place
    if alike and state.credit > CONFIRMED:
        trusted = trusted or _nearness(animal, state.home, state.area) > SAME_NEARNESS
    anchor, credit, polarity = state.anchor if same else place, state.credit * FORGET, state.polarity
    earned = LIFE_CREDIT * max(0.0, 2 * _life(animal) - 1) if same else 0.0
    if np.hypot(animal.x - anchor[0], animal.y - anchor[1]) > TRAVEL * math.sqrt(state.area):
        column, row = round(anchor[0]), round(anchor[1])
        if animal.sign * (float(grey[row, column]) - state.background[row, column]) < state.threshold:
            anchor, earned, trusted = place, CREDIT, True
    trusted = trusted or (same and credit < CONFIRMED and _life(animal) > 0.5)
    credit += earned * (1 - credit)
    polarity += earned * (animal.sign - polarity)
    usual = state.area if same or credit > CONFIRMED else animal.area
    area = usual * (animal.area / usual) ** (0.05 if trusted or credit < CONFIRMED else 0.0)
    home = place if trusted else state.home
    where = np.zeros_like(grey)
    where[animal.box] = animal.mask
    state = replace(
        state,
        **seen,
        proven=state.proven or credit > CONFIRMED,
        place=place,
        home=home,
        animal=where,
        last_area=animal.area,
        anchor=anchor,
        sign=animal.sign,
        area=area,
        credit=credit,
        polarity=polarity,
    )
    return state if state.window_px else _settling(animal.length * _scale(state), trusted, same, state)


def _settling(length_px: float, trusted: bool, same: bool, state: LocateState) -> LocateState:
    """The state with one more length, and with the window when there are enough."""
    lengths = (*state.lengths_px, length_px)[-WINDOW_PATIENCE_FRAMES:] if same or trusted else (length_px,)
    needed = WINDOW_FRAMES if trusted and state.credit > CONFIRMED else WINDOW_PATIENCE_FRAMES
    if len(lengths) < needed:
        return replace(state, lengths_px=lengths)
    side = 8 * round(2 * float(np.median(lengths[-needed:])) / 8)
    limit = min(state.shape)
    return replace(state, lengths_px=(), window_px=min(max(side, WINDOW_MIN_PX), limit))


def _scale(state: LocateState) -> float:
    """Pixels of the full frame per pixel of the search picture."""
    return float(search_stride(state.shape))


def _sighting(animal: Blob, state: LocateState) -> Sighting:
    scale = _scale(state)
    clarity = min(1.0, animal.contrast / (4 * CONTRAST_MIN))
    return Sighting(
        found=True,
        x_px=animal.x * scale,
        y_px=animal.y * scale,
        confidence=clarity * (0.5 + 0.5 * state.credit),
        area_px=animal.area * scale**2,
        length_px=animal.length * scale,
        elongation=max(1.0, animal.length / animal.width),
    )
