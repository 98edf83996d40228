"""The picture without the animal, and the blobs that differ from it.

*Nothing that could be an animal is background until proven otherwise.* The background starts as the first picture
with every animal-like spot painted over from its surroundings, so that an animal that has never moved is already a
difference from the background. Spots are extremal regions: connected parts darker (or lighter) than some level,
ringed by something clearly lighter (darker), in the manner of MSER (Matas et al. 2002).

*The animal is never learnt.* Elsewhere the background follows the picture by bounded steps, the sigma-delta
approximation of a temporal median (Manzanera & Richefeu 2007).

*A difference whose outline is in the background, not in the picture, is a place that something has left* (a "ghost",
Cucchiara et al. 2003), and becomes background at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]
"""Grey search picture or mask, uint8 [h, w]."""

Labels = NDArray[np.int32]
"""Numbers of the connected parts of a picture, int32 [h, w], and what is counted of them."""

Plane = NDArray[np.float32]
"""Per-pixel memory, float32 [h, w]."""

Box = tuple[slice, slice]
"""Rows and columns of a part of the search picture."""

SEARCH_PX = 214  # long side of the search picture: the smallest animal, 1/15 of the frame, is still 14 px long
AREA_MIN, AREA_MAX = 0.0008, 0.16  # of the picture: limits of what may be an animal
USUAL_AREA, AREA_SLACK = 0.03, 1.3  # of an animal not yet known: share of the picture, and its logarithm's range
AREA_SPREAD = 0.6  # of the logarithm beyond that: a known animal turns, rears and stretches
AIM = 0.6  # how much less is believed at the border of the picture than in its middle
BORDER_FACTORS = (1.0, 0.85, 0.3, 0.05, 0.05)  # for touching so many sides of the picture
CONTRAST_MIN = 10.0  # grey levels between animal and background below which nothing is believed
NOISE_FACTOR = 5.0  # a difference counts from that many standard deviations of the picture's noise
GAIN_STEP = 0.3  # most that the exposure may change between frames without being a switch of the light
LEVELS = 14  # grey levels at which spots are looked for
RING_PX = 5  # width of the surroundings that a spot is compared with
TEXTURE_PX = 9  # scale of the grain of bedding and floors; wider would count the furniture
TEXTURE_FACTOR = 5.0  # a spot stands out from that many standard deviations of the texture
SPOT_MIN = 0.05  # plausibility below which a spot is nothing
PARTS_MAX = 40  # at one level; real pictures have up to 18. More is a pattern, and the smallest are left out
SPOTS_SHARE = 0.5  # of the best spot's plausibility: what is painted over at the start
CORE_STABILITY = 0.35  # a core is believed less than a blob of its own
HOT = 0.4  # motion within the last half second
SOLID = 0.8  # of its ellipse: a blob that fills less may be the animal and something else
LEARN_RATE = 0.1  # share of a difference that the background takes over per frame
LEARN_STEP = 1.0  # ... but at most so many grey levels
GHOST_OUTLINE = -0.15  # below: the outline is in the background alone
_SQUARE_3, _SQUARE_5, _SQUARE_7 = (np.ones((side, side), np.uint8) for side in (3, 5, 7))


@dataclass(frozen=True, slots=True)
class Blob:
    """A connected part of the search picture, all in its pixels."""

    left: int
    top: int
    mask: Grey  # of its bounding box, 0 or 1
    sign: int  # -1 darker than the surroundings, +1 lighter
    contrast: float  # mean difference from the surroundings, grey levels
    area: float
    x: float  # centre of the body, without tail and shadow
    y: float
    length: float  # axes of the ellipse with the body's moments
    width: float
    solidity: float  # body area over the ellipse's
    borders: int  # how many sides of the picture it touches
    off_centre: float  # 0 in the middle of the picture .. 1 at its border
    stability: float = 1.0  # share that it keeps of itself when the level that cuts it out is tightened by a step
    life: float = 0.0  # share of its outline that has moved lately
    outline: float = 1.0  # -1: only in the background .. +1: only in the picture

    @property
    def box(self) -> Box:
        """Rows and columns of its bounding box."""
        height, width = self.mask.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @property
    def is_ghost(self) -> bool:
        """Whether it is a place that something has left."""
        return self.outline < GHOST_OUTLINE


def search_stride(shape: tuple[int, int]) -> int:
    """Pixels of the full frame, of (height, width) `shape`, per pixel of the search picture."""
    return max(1, round(max(shape) / SEARCH_PX))


def search_picture(pixels: NDArray[np.uint8]) -> Grey:
    """The frame, uint8 [H, W, 3] RGB, as a grey picture whose long side is about SEARCH_PX.

    Its pixel (x, y) is the frame's at stride * (x, y): reading every pixel would cost more than all the rest.
    """
    stride = search_stride(pixels.shape[:2])
    height, width = (side // stride for side in pixels.shape[:2])
    return _smoothed(pixels[: height * stride, : width * stride], stride)


def search_picture_in(pixels: NDArray[np.uint8], box: Box, elsewhere: Grey) -> Grey:
    """The search picture where only `box` is looked at; the rest is `elsewhere`, an earlier search picture."""
    stride = search_stride(pixels.shape[:2])
    rows, columns = (
        slice(max(side.start - 1, 0), min(side.stop + 1, size)) for side, size in zip(box, elsewhere.shape, strict=True)
    )
    wider = _smoothed(
        pixels[rows.start * stride : rows.stop * stride, columns.start * stride : columns.stop * stride], stride
    )
    top, left = box[0].start - rows.start, box[1].start - columns.start
    picture = elsewhere.copy()
    picture[box] = wider[top : top + box[0].stop - box[0].start, left : left + box[1].stop - box[1].start]
    return picture


def _smoothed(pixels: NDArray[np.uint8], stride: int) -> Grey:
    height, width = (side // stride for side in pixels.shape[:2])
    small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.asarray(cv2.blur(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), (3, 3)), dtype=np.uint8)


def guess_background(grey: Grey) -> Plane:
    """A first background from one picture: animal-like spots are painted over (inpainting, Telea 2004)."""
    usual_area = USUAL_AREA * grey.size
    ranked = sorted(((plausibility(spot, usual_area), spot) for spot in spots(grey)), key=lambda pair: -pair[0])
    painted = np.zeros_like(grey)
    for score, spot in ranked:
        if score < max(SPOT_MIN, SPOTS_SHARE * ranked[0][0]):
            break
        painted[spot.box] |= spot.mask
    painted = np.asarray(cv2.dilate(painted, _SQUARE_7), dtype=np.uint8)
    return np.asarray(cv2.inpaint(grey, painted, 3, cv2.INPAINT_TELEA), dtype=np.float32)


def spots(grey: Grey) -> Iterator[Blob]:
    """Everything in one picture that could be an animal, darker or lighter than its surroundings."""
    texture = 1.48 * float(np.median(cv2.absdiff(grey, cv2.blur(grey, (TEXTURE_PX, TEXTURE_PX)))))
    least = max(CONTRAST_MIN, TEXTURE_FACTOR * texture)
    low, high = np.percentile(grey, (0.5, 99.8))
    levels = np.linspace(low, high, LEVELS + 1)[1:-1]
    for sign, kind in ((-1, cv2.THRESH_BINARY_INV), (1, cv2.THRESH_BINARY)):
        looser = np.zeros(grey.shape, np.int32)  # area of the part that a pixel belongs to at the level before
        for level in levels[::sign]:  # from loose to tight
            _, mask = cv2.threshold(grey, level, 1, kind)
            opened = cv2.morphologyEx(mask, cv2.MORPH_OPEN, _SQUARE_5)
            labels, stats = _labelled(np.asarray(opened, dtype=np.uint8))
            for left, top, part in _sized(labels, stats, grey.size):
                difference = _against_ring(grey, part, left, top, sign, least)
                if difference is not None:
                    row, column = divmod(int(part.argmax()), part.shape[1])
                    stability = np.count_nonzero(part) / max(looser[top + row, left + column], 1)
                    spot = measure(part, left, top, sign, difference, grey.shape)
                    yield replace(spot, stability=min(1.0, stability))
            areas = stats[:, 4].copy()
            areas[0] = 0
            looser = areas[labels]


def compare(grey: Grey, background: Plane) -> tuple[Plane, float, float]:
    """The background in this frame's light, the threshold for a difference, the share of pixels that differ much."""
    seen, known = grey[::6, ::6].astype(np.float32), background[::6, ::6]
    lit = known >= known.mean()
    ratio = _median((seen[lit] + 1) / (known[lit] + 1))
    gain = np.float32(min(max(ratio, 1 - GAIN_STEP), 1 + GAIN_STEP))
    differences = np.abs(seen - known * gain)
    noise = 1.48 * _median(differences.ravel())
    threshold = max(CONTRAST_MIN / 2, NOISE_FACTOR * min(noise, CONTRAST_MIN / 2))
    return background * gain, threshold, float(np.mean(differences > 2 * threshold))


def shown(background: Plane) -> Grey:
    """The background as a picture."""
    return np.asarray(cv2.convertScaleAbs(background), dtype=np.uint8)


def blobs(
    grey: Grey, known: Grey, heat: Grey, threshold: float, signs: Sequence[int], largest: float, box: Box
) -> list[Blob]:
    """Animal-sized differences from the known background in `box`; `heat` is recent motion, 0..255.

    A ragged one, and one of more than `largest` pixels, also yields its core: the animal beside its shadow, or on a
    floor that was painted over.
    """
    found: list[Blob] = []
    for sign in signs:
        cores = 0
        difference = cv2.subtract(*((known[box], grey[box]) if sign < 0 else (grey[box], known[box])))
        _, mask = cv2.threshold(difference, threshold, 1, cv2.THRESH_BINARY)
        for x, y, part in _parts(np.asarray(mask, dtype=np.uint8), grey.size):
            inside = np.asarray(difference[y : y + part.shape[0], x : x + part.shape[1]], dtype=np.uint8)
            left, top = box[1].start + x, box[0].start + y
            life, outline = _rim(part, left, top, grey, known, heat)
            blob = measure(part, left, top, sign, inside, grey.shape, life, outline)
            found.append(blob)
            if (blob.solidity < SOLID or blob.area > largest) and cores < PARTS_MAX:
                split = _split(blob, inside, grey, known, heat)
                cores += len(split)
                found += split
    return found


def _split(blob: Blob, difference: Grey, grey: Grey, known: Grey, heat: Grey) -> list[Blob]:
    """The parts of a blob that differ more than it does on average; of one that is not ragged, those in motion."""
    dense = blob.mask * (difference > blob.contrast)
    belief = CORE_STABILITY
    if blob.solidity >= SOLID:
        dense *= heat[blob.box] > 255 * HOT
        belief *= max(0.0, 1 - 2 * blob.life)  # the more of its own outline moves, the more it is one animal
    found = []
    for left, top, part in _parts(dense.astype(np.uint8), grey.size):
        inside = difference[top : top + part.shape[0], left : left + part.shape[1]]
        left, top = left + blob.left, top + blob.top
        life, outline = _rim(part, left, top, grey, known, heat)
        core = measure(part, left, top, blob.sign, inside, grey.shape, life, outline)
        found.append(replace(core, stability=belief))
    return found


def learn(grey: Grey, background: Plane, kept: Sequence[Blob], ghosts: Sequence[Blob], frames: int) -> Plane:
    """The background after the `frames` that end with this one: unchanged around `kept`, the picture at `ghosts`."""
    mask = np.zeros_like(grey)
    for blob in kept:
        mask[blob.box] |= blob.mask
    frozen = np.asarray(cv2.dilate(mask, _SQUARE_7), dtype=np.bool_)
    rate, limit = np.float32(1 - (1 - LEARN_RATE) ** frames), LEARN_STEP * frames
    step = np.clip((grey - background) * rate, -limit, limit)
    step[frozen] = 0
    learnt: Plane = background + step
    for ghost in ghosts:
        left_place = (ghost.mask > 0) & ~frozen[ghost.box]
        learnt[ghost.box][left_place] = grey[ghost.box][left_place]
    return learnt


def plausibility(blob: Blob, usual_area: float, known: float = 0.0) -> float:
    """How well a blob looks like an animal, 0..1, apart from what it does.

    `known`, 0..1, is how far the animal is known: its size varies less than that of animals at large then, and that
    cameras are aimed at where the animal is has nothing more to tell.
    """
    contrast = blob.contrast / (blob.contrast + 4 * CONTRAST_MIN)
    beyond = max(0.0, abs(np.log(blob.area / usual_area)) - AREA_SLACK * (1 - known))
    size = float(np.exp(-((beyond / AREA_SPREAD) ** 2) / 2))
    shape = min(1.0, 4 * blob.width / blob.length) * min(1.0, max(0.0, (blob.solidity - 0.65) / 0.2))
    aim = float((1 - AIM * blob.off_centre) ** (1 - known))
    return contrast * size * shape * aim * blob.stability * BORDER_FACTORS[blob.borders]


def measure(
    mask: Grey,
    left: int,
    top: int,
    sign: int,
    difference: Grey,
    shape: tuple[int, ...],
    life: float = 0.0,
    outline: float = 1.0,
) -> Blob:
    """Describe the part `mask` of a picture of `shape`, whose bounding box starts at (left, top)."""
    contrast = cv2.mean(difference, mask=mask)[0]
    body = _body(mask, difference, contrast)
    moments = cv2.moments(body, binaryImage=True)
    area = moments["m00"]
    xx, xy, yy = (moments[name] / area for name in ("mu20", "mu11", "mu02"))
    root = float(np.hypot((xx - yy) / 2, xy))
    length = 4 * math.sqrt((xx + yy) / 2 + root + 1 / 12)  # 1/12: the extent of a pixel itself
    width = 4 * math.sqrt(max((xx + yy) / 2 - root, 0) + 1 / 12)
    x, y = left + moments["m10"] / area, top + moments["m01"] / area
    height, across = mask.shape
    borders = (left <= 0) + (top <= 0) + (left + across >= shape[1]) + (top + height >= shape[0])
    return Blob(
        left=left,
        top=top,
        mask=mask,
        sign=sign,
        contrast=contrast,
        area=area,
        x=x,
        y=y,
        length=length,
        width=width,
        solidity=area / (np.pi / 4 * length * width),
        borders=int(borders),
        off_centre=2 * max(abs(x / shape[1] - 0.5), abs(y / shape[0] - 0.5)),
        life=life,
        outline=outline,
    )


def _labelled(mask: Grey) -> tuple[Labels, Labels]:
    """Labels [h, w] and statistics [parts, 5] of the connected parts."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    return np.asarray(labels, dtype=np.int32), np.asarray(stats, dtype=np.int32)


def _sized(labels: Labels, stats: Labels, size: int) -> Iterator[tuple[int, int, Grey]]:
    """Left, top and mask of every connected part that has the size of an animal in a picture of `size` pixels.

    Of more than PARTS_MAX only the largest: a pattern over the whole picture must not hold up the frames behind it.
    """
    parts = [
        (label, part) for label, part in enumerate(stats.tolist()) if label and AREA_MIN < part[4] / size < AREA_MAX
    ]
    if len(parts) > PARTS_MAX:
        parts = sorted(sorted(parts, key=lambda part: -part[1][4])[:PARTS_MAX])
    for label, (left, top, width, height, _) in parts:
        yield left, top, (labels[top : top + height, left : left + width] == label).astype(np.uint8)


def _parts(mask: Grey, size: int) -> Iterator[tuple[int, int, Grey]]:
    """The same of a mask that is mostly empty."""
    opened = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, _SQUARE_3), dtype=np.uint8)
    x, y, width, height = cv2.boundingRect(opened)
    for left, top, part in _sized(*_labelled(opened[y : y + height, x : x + width]), size) if width else ():
        yield x + left, y + top, part


def _body(mask: Grey, difference: Grey, contrast: float) -> Grey:
    """The mask without tail, feet, and the shadow or reflection, which differ less from the background."""
    core = mask * (difference > contrast / 2)
    side = max(3, int(0.3 * math.sqrt(cv2.countNonZero(core)))) | 1
    padded = cv2.copyMakeBorder(core, side, side, side, side, cv2.BORDER_CONSTANT, value=0)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    body = cv2.morphologyEx(padded, cv2.MORPH_OPEN, kernel)[side:-side, side:-side]
    return np.asarray(body if body.any() else mask, dtype=np.uint8)


def _window(mask: Grey, left: int, top: int, shape: tuple[int, ...], pad: int) -> tuple[Box, Grey]:
    """The bounding box of a part, wider by `pad` but inside the picture, and the part's mask in it."""
    x, y = max(left - pad, 0), max(top - pad, 0)
    right, bottom = min(left + mask.shape[1] + pad, shape[1]), min(top + mask.shape[0] + pad, shape[0])
    inside = np.zeros((bottom - y, right - x), np.uint8)
    inside[top - y : top - y + mask.shape[0], left - x : left - x + mask.shape[1]] = mask
    return (slice(y, bottom), slice(x, right)), inside


def _median(values: Plane) -> float:
    """The (upper) median; numpy's own costs five times as much for a thousand values."""
    return float(np.partition(values, len(values) // 2)[len(values) // 2])


def _against_ring(grey: Grey, mask: Grey, left: int, top: int, sign: int, least: float) -> Grey | None:
    """Difference of a spot from what surrounds it, over its bounding box; None if its mean is below `least`."""
    window, inside = _window(mask, left, top, grey.shape, RING_PX + 1)
    side = 2 * RING_PX + 3
    ring = cv2.dilate(inside, np.ones((side, side), np.uint8)) - cv2.dilate(inside, _SQUARE_3)
    # Not the mean: all around, but for a small part, the surroundings must stand off.
    around = float(np.percentile(grey[window][ring > 0], 15 if sign < 0 else 85)) if ring.any() else 0.0
    box = grey[top : top + mask.shape[0], left : left + mask.shape[1]]
    difference = np.clip(sign * (box.astype(np.int16) - around), 0, 255).astype(np.uint8)
    return difference if cv2.mean(difference, mask=mask)[0] >= least else None


def _rim(mask: Grey, left: int, top: int, grey: Grey, known: Grey, heat: Grey) -> tuple[float, float]:
    """Share of a part's outline that has moved lately, and whether the outline is of the picture or the background."""
    window, inside = _window(mask, left, top, grey.shape, 2)
    rim = cv2.morphologyEx(inside, cv2.MORPH_GRADIENT, _SQUARE_3)
    here = cv2.mean(cv2.morphologyEx(grey[window], cv2.MORPH_GRADIENT, _SQUARE_3), mask=rim)[0]
    there = cv2.mean(cv2.morphologyEx(known[window], cv2.MORPH_GRADIENT, _SQUARE_3), mask=rim)[0]
    return cv2.mean(heat[window], mask=rim)[0] / 255, (here - there) / (here + there + 1)
