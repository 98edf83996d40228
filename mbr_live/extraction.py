"""From crops to what the temporal network takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbr_live.dataset import Progress
from mbr_live.models import Trunk
from mbr_live.preparation import Recording, crops_of

_FEATURE_BATCH = 64


def inputs_of(trunk: Trunk | None, recordings: Sequence[Recording], progress: Progress) -> dict[str, Tensor]:
    """What the temporal network takes of every recording, [N, D + M], by name."""
    inputs = {}
    for done, recording in enumerate(recordings, start=1):
        parts = [] if trunk is None else [_features(trunk, crops_of(recording))]
        if recording.channels is not None:
            parts.append(torch.from_numpy(recording.channels))
        inputs[recording.name] = torch.cat(parts, dim=1)
        if trunk:
            progress("features", done, len(recordings))
    return inputs


def _features(trunk: Trunk, crops: NDArray[np.uint8]) -> Tensor:
    """Features [N, D] of all crops of a recording."""
    trunk.eval()
    batches = range(0, len(crops), _FEATURE_BATCH)
    with torch.inference_mode():
        parts = [trunk(torch.from_numpy(np.array(crops[at : at + _FEATURE_BATCH]))) for at in batches]
    return torch.cat(parts).clone()
