"""Pictures that show nothing: a covered lens, or a camera that sends the same picture again and again."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mbr_live.types import Image

FROZEN_FRAMES = 50  # no camera delivers the same noise for five seconds
_DARK_LEVEL = 20  # of 255; the noise of a covered lens stays below
_LIT_SHARE = 0.001  # a picture with fewer pixels above that level shows nothing
_LOOK_EVERY_ROWS = 32  # every 32nd row is looked at: all of them would cost more than finding the animal


def _no_rows() -> Image:
    return np.zeros((0, 0, 3), np.uint8)


@dataclass(frozen=True, slots=True)
class BlindState:
    """What is remembered of the pictures of one camera."""

    rows: Image = field(default_factory=_no_rows)  # of the last picture, those that are looked at
    same_pictures: int = 0  # how often these came in a row


def is_blind(pixels: Image, state: BlindState) -> tuple[bool, BlindState]:
    """Dark: hardly a pixel rises above the noise. Frozen: the very same picture, noise and all, again and again."""
    rows = np.ascontiguousarray(pixels[::_LOOK_EVERY_ROWS])
    # The first row tells two pictures apart as a rule, and costs nothing.
    is_same = np.array_equal(rows[0], state.rows[:1].reshape(-1, 3)) and np.array_equal(rows, state.rows)
    same = min(state.same_pictures, FROZEN_FRAMES) + 1 if is_same else 1
    dark = bool(np.count_nonzero(rows > _DARK_LEVEL) < _LIT_SHARE * rows.size)
    return dark or same > FROZEN_FRAMES, BlindState(rows, same)
