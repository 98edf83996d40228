"""Where the animal is in a frame: one animal, one fixed camera, no knowledge of what camera or animal.

The search runs on a grey picture about 214 px wide, and rests on three ideas.

*Nothing that could be an animal is background until proven otherwise.* The background starts as the first picture
with every animal-sized spot, darker or lighter than its surroundings, filled in from around it (a grey-scale
closing and opening, Serra 1982). So an animal that has never moved is already a difference from the background.

*What moves is alive, and stays alive while it sits.* Energy of frame differences, remembered for a few seconds,
tells the animal from a dark tripod. An animal that has moved keeps the credit for minutes. Where the animal is, the
background is not learnt, so that it never fades; elsewhere it follows the picture by bounded steps, the
sigma-delta approximation of a temporal median (Manzanera & Richefeu 2007).

*A difference whose outline is in the background, not in the picture, is a place the animal has left* (a "ghost",
Cucchiara et al. 2003), and becomes background at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from mbr_live.types import NOT_FOUND, Image, MbrError, Sighting

CROP_PX = 160
"""Side of the picture that the feature network sees."""

Grey = NDArray[np.uint8]
Plane = NDArray[np.float32]

SEARCH_PX = 214  # long side of the search picture: a mouse of 1/15 of the frame is still 14 px long
ANIMAL_SHARE = 0.28  # of the short side: no animal is wider than that
CONTRAST_MIN = 12.0  # grey levels between animal and background below which nothing is believed
NOISE_FACTOR = 5.0  # threshold over the picture's noise
AREA_MIN, AREA_MAX = 0.0008, 0.12  # of the picture: limits of what may be an animal
WINDOW_FRAMES = 30  # sightings that settle the crop window


@dataclass(frozen=True)
class LocateState:
    """All that is remembered of one camera. Planes are of the search picture, [h, w]."""

    shape: tuple[int, int] = (0, 0)  # of the full frame
    background: Plane = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    previous: Grey = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    heat: Plane = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # recent motion, 0..1
    x: float = float("nan")  # last position and size, pixels of the search picture
    y: float = float("nan")
    area: float = float("nan")
    alive: float = 0.0  # 0: never seen to move .. 1: moves
    polarity: float = 0.0  # -1 darker than the background .. +1 lighter
    lengths_px: tuple[float, ...] = ()  # of the first sightings, at most WINDOW_FRAMES
    window_px: int = 0  # 0: not settled


def initial_state() -> LocateState:
    """The state before the first frame."""
    return LocateState()


def window_px(state: LocateState) -> int | None:
    """Side of the square crop window, pixels of the full frame; None until it is settled, then fixed."""
    return state.window_px or None


def crop(pixels: Image, x_px: float, y_px: float, window_px: int) -> Image:
    """Cut the square of side `window_px` around (x, y), edge-replicated, as uint8 [160, 160, 3]."""
    height, width = pixels.shape[:2]
    left, top = round(x_px - window_px / 2), round(y_px - window_px / 2)
    rows = slice(min(max(top, 0), height - 1), max(min(top + window_px, height), 1))
    columns = slice(min(max(left, 0), width - 1), max(min(left + window_px, width), 1))
    window = pixels[rows, columns]
    above, before = min(max(-top, 0), window_px - 1), min(max(-left, 0), window_px - 1)
    below, after = window_px - above - window.shape[0], window_px - before - window.shape[1]
    if above or before or below or after:
        window = cv2.copyMakeBorder(window, above, below, before, after, cv2.BORDER_REPLICATE)
    if window_px == CROP_PX:
        return np.ascontiguousarray(window, dtype=np.uint8)
    method = cv2.INTER_AREA if window_px > CROP_PX else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(window, (CROP_PX, CROP_PX), interpolation=method), dtype=np.uint8)


def locate(pixels: Image, state: LocateState) -> tuple[Sighting, LocateState]:
    """Find the animal in the next frame of a camera, uint8 [H, W, 3] RGB; return it and the next state."""
    grey = _search_picture(pixels)
    shape = (pixels.shape[0], pixels.shape[1])
    if not state.shape[0]:
        state = _begin(grey, replace(state, shape=shape))
    elif state.shape != shape:
        raise MbrError(
            f"locate: a frame of {shape[1]}x{shape[0]} px, expected {state.shape[1]}x{state.shape[0]} px as before; "
            "one camera keeps one frame size: start a new recording for another"
        )
    background, share_changed, threshold = _compare(grey, state)
    if share_changed > RESTART_SHARE:  # the light went on or off: begin anew, but remember the animal
        state = _begin(grey, state)
        background, _, threshold = _compare(grey, state)
    heat = _heat(grey, state, threshold)
    blobs = _blobs(grey, background, heat, threshold, state)
    best = max(blobs, key=lambda blob: blob.score, default=None)
    if best is not None and not _credible(best, state):
        best = None
    learnt = _learn(grey, background, blobs, best, state)
    state = replace(state, background=learnt, previous=grey, heat=heat)
    if best is None:
        return NOT_FOUND, replace(state, alive=state.alive * FORGET)
    sighting = _sighting(best, state)
    return sighting, _remember(best, sighting, state)


RESTART_SHARE = 0.4
GHOST = -0.15
COOL = 0.95
FORGET = 0.9998
STEP = 1.0
CONFIRMED = 0.5


@dataclass(frozen=True)
class _Blob:
    """A connected difference from the background, in pixels of the search picture."""

    left: int
    top: int
    mask: NDArray[np.uint8]  # of its bounding box, 0/1
    x: float
    y: float
    area: float
    length: float
    width: float
    contrast: float
    sign: float
    life: float
    outline: float  # -1: only in the background .. +1: only in the picture
    score: float = 0.0


def _search_picture(pixels: Image) -> Grey:
    height, width = pixels.shape[:2]
    stride = max(1, round(max(height, width) / SEARCH_PX))
    small = cv2.resize(pixels, (width // stride, height // stride), interpolation=cv2.INTER_LINEAR_EXACT)
    return np.asarray(cv2.blur(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), (3, 3)), dtype=np.uint8)


def _compare(grey: Grey, state: LocateState) -> tuple[Plane, float, float]:
    """The background in this frame's light, the share of pixels that differ from it, and the threshold for that."""
    rows = slice(None, None, 5)
    seen, known = grey[rows, rows].astype(np.float32), state.background[rows, rows]
    lit = known >= np.median(known)
    gain = float(np.clip(np.median((seen[lit] + 1) / (known[lit] + 1)), 0.98, 1.02))
    differences = np.abs(seen - known * gain)
    noise = 1.48 * float(np.median(differences))
    threshold = max(CONTRAST_MIN / 2, NOISE_FACTOR * min(noise, 4.0))
    share = float(np.mean(differences > 2 * threshold))
    return state.background * np.float32(gain), share, threshold


def _begin(grey: Grey, state: LocateState) -> LocateState:
    background = _filled(grey)
    return replace(state, background=background, previous=grey, heat=np.zeros(grey.shape, np.float32))


def _filled(grey: Grey) -> Plane:
    """The picture with every animal-sized spot filled in from around it."""
    side = int(ANIMAL_SHARE * min(grey.shape)) | 1
    padded = cv2.copyMakeBorder(grey, side, side, side, side, cv2.BORDER_REPLICATE)
    kernel = np.ones((side, side), np.uint8)
    inner = (slice(side, -side), slice(side, -side))
    background = grey.astype(np.float32)
    for operation, sign in ((cv2.MORPH_CLOSE, -1), (cv2.MORPH_OPEN, 1)):
        around = cv2.morphologyEx(padded, operation, kernel)[inner]
        residual = cv2.absdiff(grey, around)
        mask = (residual > CONTRAST_MIN).astype(np.uint8)
        mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        count, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
        for label in range(1, count):
            if not AREA_MIN < stats[label, 4] / grey.size < AREA_MAX:
                continue
            region = cv2.dilate((labels == label).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
            background[region] = around[region]
    return background


def _heat(grey: Grey, state: LocateState, threshold: float) -> Plane:
    moved = cv2.absdiff(grey, state.previous) > threshold
    return np.maximum(state.heat * np.float32(COOL), moved).astype(np.float32)


def _blobs(grey: Grey, background: Plane, heat: Plane, threshold: float, state: LocateState) -> list[_Blob]:
    base = cv2.convertScaleAbs(background)
    signs = [s for s in (-1, 1) if s * state.polarity > -0.8]
    blobs = []
    for sign in signs:
        difference = cv2.subtract(base, grey) if sign < 0 else cv2.subtract(grey, base)
        _, mask = cv2.threshold(difference, threshold, 1, cv2.THRESH_BINARY)
        mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        count, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
        for label in range(1, count):
            left, top, width, height, area = (int(v) for v in stats[label])
            if not AREA_MIN < area / grey.size < AREA_MAX:
                continue
            box = (slice(top, top + height), slice(left, left + width))
            inside = (labels[box] == label).astype(np.uint8)
            blobs.append(_blob(inside, left, top, difference[box], heat[box], grey, base, sign))
    return [replace(blob, score=_score(blob, state)) for blob in blobs]


def _blob(
    mask: Grey, left: int, top: int, difference: Grey, heat: Plane, grey: Grey, base: Grey, sign: float
) -> _Blob:
    rows, columns = np.nonzero(mask)
    area = len(rows)
    contrast = float(difference[rows, columns].mean())
    life = float(heat[rows, columns].mean())
    body = _body(mask)
    moments = cv2.moments(body, binaryImage=True)
    mass = moments["m00"]
    x, y = moments["m10"] / mass, moments["m01"] / mass
    a, b, c = moments["mu20"] / mass, moments["mu11"] / mass, moments["mu02"] / mass
    root = float(np.sqrt(((a - c) / 2) ** 2 + b * b))
    long, short = (a + c) / 2 + root, max((a + c) / 2 - root, 1 / 12)
    return _Blob(
        left, top, mask, left + x, top + y, area, 4 * float(np.sqrt(long)), 4 * float(np.sqrt(short)),
        contrast, sign, life, _outline(mask, left, top, grey, base),
    )  # fmt: skip


def _body(mask: Grey) -> Grey:
    """The mask without tail and feet."""
    side = max(3, int(0.3 * np.sqrt(mask.sum()))) | 1
    padded = cv2.copyMakeBorder(mask, side, side, side, side, cv2.BORDER_CONSTANT, value=0)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    body = cv2.morphologyEx(padded, cv2.MORPH_OPEN, kernel)[side:-side, side:-side]
    return body if body.any() else mask


def _outline(mask: Grey, left: int, top: int, grey: Grey, base: Grey) -> float:
    pad = 2
    height, width = mask.shape
    rows = slice(max(top - pad, 0), top + height + pad)
    columns = slice(max(left - pad, 0), left + width + pad)
    seen, known = grey[rows, columns], base[rows, columns]
    whole = np.zeros(seen.shape, np.uint8)
    y, x = top - rows.start, left - columns.start
    whole[y : y + height, x : x + width] = mask
    kernel = np.ones((3, 3), np.uint8)
    rim = cv2.morphologyEx(whole, cv2.MORPH_GRADIENT, kernel) > 0
    here = float(cv2.morphologyEx(seen, cv2.MORPH_GRADIENT, kernel)[rim].sum())
    there = float(cv2.morphologyEx(known, cv2.MORPH_GRADIENT, kernel)[rim].sum())
    return (here - there) / (here + there + 1)


def _score(blob: _Blob, state: LocateState) -> float:
    if blob.outline < GHOST:
        return 0.0
    size = 1.0
    near = 0.0
    if np.isfinite(state.x):
        distance = np.hypot(blob.x - state.x, blob.y - state.y) / np.sqrt(state.area)
        near = float(np.exp(-(distance**2) / 4))
        size = float(np.exp(-(np.log(blob.area / state.area) ** 2) / 2)) ** state.alive
    life = 0.1 + max(blob.life, near * (0.2 + state.alive))
    compact = min(1.0, 3 * blob.width / blob.length)
    return blob.contrast * float(np.sqrt(blob.area)) * size * life * compact


def _credible(blob: _Blob, state: LocateState) -> bool:
    if blob.contrast < CONTRAST_MIN or blob.score <= 0:
        return False
    return True


def _learn(grey: Grey, background: Plane, blobs: list[_Blob], best: _Blob | None, state: LocateState) -> Plane:
    step = np.clip((grey - background) * np.float32(0.1), -STEP, STEP)
    confirmed = state.alive > CONFIRMED
    kept = np.zeros(grey.shape, np.uint8)
    for blob in blobs:
        box = (slice(blob.top, blob.top + blob.mask.shape[0]), slice(blob.left, blob.left + blob.mask.shape[1]))
        if blob is best or not confirmed and blob.outline >= GHOST:
            kept[box] |= blob.mask
    kept = cv2.dilate(kept, np.ones((7, 7), np.uint8))
    learnt = np.where(kept > 0, background, background + step)
    for blob in blobs:
        if blob.outline < GHOST:
            box = (slice(blob.top, blob.top + blob.mask.shape[0]), slice(blob.left, blob.left + blob.mask.shape[1]))
            inside = (blob.mask > 0) & (kept[box] == 0)
            learnt[box][inside] = grey[box][inside]
    return learnt.astype(np.float32)


def _sighting(blob: _Blob, state: LocateState) -> Sighting:
    height, width = state.background.shape
    across, down = state.shape[1] / width, state.shape[0] / height
    scale = float(np.sqrt(across * down))
    confidence = min(1.0, blob.contrast / 40) * (0.5 + 0.5 * max(state.alive, min(1.0, blob.life)))
    return Sighting(
        True,
        (blob.x + 0.5) * across - 0.5,
        (blob.y + 0.5) * down - 0.5,
        confidence,
        blob.area * across * down,
        blob.length * scale,
        max(1.0, blob.length / blob.width),
    )


def _remember(blob: _Blob, sighting: Sighting, state: LocateState) -> LocateState:
    alive = min(1.0, state.alive * FORGET + 0.1 * min(blob.life * 2, 1.0))
    lengths = state.lengths_px
    window = state.window_px
    if not window:
        lengths = (*lengths, sighting.length_px)
        if len(lengths) == WINDOW_FRAMES:
            window = _window(lengths, state.shape)
            lengths = ()
    area = blob.area if not np.isfinite(state.area) else state.area * (blob.area / state.area) ** 0.05
    polarity = state.polarity + 0.05 * min(1.0, blob.life * 2) * (blob.sign - state.polarity)
    return replace(
        state, x=blob.x, y=blob.y, area=area, alive=alive, polarity=polarity, lengths_px=lengths, window_px=window
    )


def _window(lengths_px: tuple[float, ...], shape: tuple[int, int]) -> int:
    side = 8 * round(2 * float(np.median(lengths_px)) / 8)
    return int(min(max(side, 48), min(shape)))
