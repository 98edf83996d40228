"""Pictures that show nothing: a covered lens, or a camera that sends the same picture again and again."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from mbr_live.types import Image

FROZEN_FRAMES = 50  # no camera delivers the same noise for five seconds
_DARK_LEVEL = 20  # of 255; the noise of a covered lens stays below
_LIT_SHARE = 0.001  # a picture with fewer pixels above that level shows nothing
_LOOK_EVERY_ROWS = 32  # every 32nd row is looked at: 0.02 ms instead of 1 ms at 640 x 480


@dataclass(frozen=True, slots=True)
class BlindState:
    """What is remembered of the pictures of one camera."""

    picture_crc: int = 0
    same_pictures: int = 0  # how often that picture came in a row


def is_blind(pixels: Image, state: BlindState) -> tuple[bool, BlindState]:
    """Dark: hardly a pixel rises above the noise. Frozen: the very same picture, noise and all, again and again."""
    rows = np.ascontiguousarray(pixels[::_LOOK_EVERY_ROWS])
    crc = zlib.crc32(rows.data)
    same = state.same_pictures + 1 if crc == state.picture_crc else 1
    dark = bool(np.count_nonzero(rows > _DARK_LEVEL) < _LIT_SHARE * rows.size)
    return dark or same > FROZEN_FRAMES, BlindState(crc, min(same, FROZEN_FRAMES + 1))
