"""Pictures that show nothing: a covered or dazzled lens, or a camera that sends the same picture again and again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mbr_live.types import Image

FROZEN_FRAMES = 50  # no camera delivers the same noise for five seconds
_DARK_LEVEL = 20  # of 255; the noise of a covered lens stays below
_LIT_SHARE = 0.001  # a picture with fewer pixels above that level shows nothing
_WHITE_LEVEL = 250
_DAZZLED_SHARE, _SEEING_SHARE = 0.9, 0.7  # of white values: blind from the one on, and again not below the other
_FLAT_SPAN = 6.0  # grey levels between the darkest and the lightest part of a picture without anything in it
_NOISE_SPAN = 60  # grey levels: single pixels that differ by more are no noise, which saves the rest of the look
_PART_PX = 32  # averaged, so that noise does not count as something
_LOOK_EVERY_ROWS = 32  # every 32nd row is looked at: all of them would cost more than finding the animal

Blindness = Literal["", "dark", "dazzled", "flat", "frozen"]
"""Why a picture shows nothing; empty where it shows something. dazzled: over-exposed; flat: one even grey or colour."""


def _no_rows() -> Image:
    return np.zeros((0, 0, 3), np.uint8)


@dataclass(frozen=True, slots=True)
class BlindState:
    """What is remembered of the pictures of one camera."""

    rows: Image = field(default_factory=_no_rows)  # of the last picture, those that are looked at
    same_pictures: int = 0  # how often these came in a row
    why: Blindness = ""  # of the last picture


def is_blind(pixels: Image, state: BlindState) -> tuple[bool, BlindState]:
    """Whether a picture, uint8 [H, W, 3], shows nothing, and the next state, which says why.

    Dark: hardly a pixel rises above the noise. Dazzled: nearly all are white. Flat: no part differs from the others.
    Frozen: the very same picture, noise and all, again and again.
    """
    rows = np.ascontiguousarray(pixels[::_LOOK_EVERY_ROWS])
    # The first row tells two pictures apart as a rule, and costs nothing.
    is_same = np.array_equal(rows[0], state.rows[:1].reshape(-1, 3)) and np.array_equal(rows, state.rows)
    same = min(state.same_pictures, FROZEN_FRAMES) + 1 if is_same else 1
    why = _why(rows, was_dazzled=state.why == "dazzled") or ("frozen" if same > FROZEN_FRAMES else "")
    return bool(why), BlindState(rows, same, why)


def _why(rows: Image, *, was_dazzled: bool) -> Blindness:
    if np.count_nonzero(rows > _DARK_LEVEL) < _LIT_SHARE * rows.size:
        return "dark"
    if np.count_nonzero(rows >= _WHITE_LEVEL) > (_SEEING_SHARE if was_dazzled else _DAZZLED_SHARE) * rows.size:
        return "dazzled"
    return "flat" if _is_flat(rows) else ""


def _is_flat(rows: Image) -> bool:
    parts = rows.shape[1] // _PART_PX
    if not parts or np.ptp(rows[::2, :: _PART_PX // 2, 1]) > _NOISE_SPAN:
        return False
    means = rows[:, : parts * _PART_PX, 1].reshape(len(rows), parts, _PART_PX).mean(axis=2)
    return bool(np.ptp(means) < _FLAT_SPAN)
