"""What computes a bundle's two networks: one small protocol, whatever the runtime and the precision.

A bundle that looks ahead has a temporal graph of whole stretches instead of one step; it is given one stretch at a
time, of any length. The runtimes are modules of their own; `mbr_live.engines.choice` opens one by its kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mbr_live.bundle import Bundle
from mbr_live.types import MbrError

Crops = NDArray[np.uint8]
Floats = NDArray[np.float32]

ANY = -1  # a free dimension of a port
Port = tuple[tuple[int, ...], type[np.generic]]
"""Shape and type of one input or output of a graph."""

Ports = dict[str, Port]

_WINDOW_FRAMES = 1024  # attention takes memory for the square of it


class Engine(Protocol):
    """Computes features and logits of B lanes. Not thread-safe: one engine per thread."""

    @property
    def name(self) -> str:
        """Runtime, version, device and precision, four words, for the record of a run."""
        ...

    def features(self, crops: Crops) -> Floats:
        """Crops uint8 [B, H, W, 3] RGB -> features float32 [B, D]. MbrError for a bundle without a feature network."""
        ...

    def step(self, features: Floats, state: Floats) -> tuple[Floats, Floats]:
        """Features, with kinematics, [B, D + M] and packed state [B, S] -> logits [B, K] and state [B, S].

        A state of zeros is the start of a recording. Raises MbrError for a bundle that looks ahead.
        """
        ...

    def sequence(self, features: Floats) -> Floats:
        """Features, with kinematics, [T, D + M] of all ticks of one stretch -> logits [T, K].

        Raises MbrError for a causal bundle.
        """
        ...


def feature_ports(bundle: Bundle, lanes: int = 1) -> tuple[Ports, Ports]:
    """Inputs and outputs of the feature network."""
    side, dim = bundle.manifest.crop_px, bundle.manifest.feature_dim
    return {"crops": ((lanes, side, side, 3), np.uint8)}, {"features": ((lanes, dim), np.float32)}


def temporal_ports(bundle: Bundle) -> tuple[Ports, Ports]:
    """Inputs and outputs of the temporal network: of one step, or of whole stretches where the bundle looks ahead."""
    manifest = bundle.manifest
    d, s, k = manifest.input_dim, manifest.state_size, len(manifest.behaviours)
    if not manifest.causal:
        return {"features": ((1, ANY, d), np.float32)}, {"logits": ((1, ANY, k), np.float32)}
    return (
        {"features": ((1, d), np.float32), "state": ((1, s), np.float32)},
        {"logits": ((1, k), np.float32), "state_out": ((1, s), np.float32)},
    )


def check_lanes(subject: str, arrays: Sequence[NDArray[Any]], ports: Ports) -> int:
    """The number of lanes B of arrays [B, ...] that fit `ports`; MbrError where they do not."""
    lanes = len(arrays[0])
    for array, (shape, dtype) in zip(arrays, ports.values(), strict=True):
        if array.shape != (lanes, *shape[1:]) or array.dtype != dtype:
            raise MbrError(
                f"{subject} was given {array.dtype} {list(array.shape)}, "
                f"expected {np.dtype(dtype)} {[lanes, *shape[1:]]}."
            )
    return lanes


def check_stretch(subject: str, features: Floats, input_dim: int) -> None:
    """Raises MbrError where the features of a stretch are not float32 [T, `input_dim`]."""
    if features.shape != (len(features), input_dim) or features.dtype != np.float32:
        raise MbrError(
            f"{subject} was given {features.dtype} {list(features.shape)}, expected float32 [T, {input_dim}]."
        )


def no_features(bundle: Bundle) -> MbrError:
    """The error of an engine whose bundle has no feature network."""
    return MbrError(f"Bundle {bundle.path} has no feature network, and was given crops. Give it kinematics alone.")


def no_step(bundle: Bundle) -> MbrError:
    """The error of an engine that is asked for one step of a bundle that looks ahead."""
    return MbrError(
        f"Bundle {bundle.path}: it looks ahead, and was asked for the label of a single frame. "
        "It can only label recorded files: mbr-live batch."
    )


def no_sequence(bundle: Bundle) -> MbrError:
    """The error of an engine that is asked for a whole stretch of a causal bundle."""
    return MbrError(
        f"Bundle {bundle.path}: it is causal, and was asked for a whole stretch at once. "
        "Step through the frames one by one."
    )


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a stretch that a network labels at once."""

    given: slice  # frames that it sees
    wanted: slice  # frames whose labels are taken
    kept: slice  # the same, counted from the first that it sees


def windows(frames: int, receptive_field_frames: int) -> Iterator[Window]:
    """Windows that cover a stretch. Where the receptive field is bounded they overlap by it on both sides, so that
    every output is that of the whole stretch at bounded memory; where it is not (0), the stretch is one window.
    """
    length = _WINDOW_FRAMES if receptive_field_frames else max(frames, 1)
    reach = max(receptive_field_frames - 1, 0)
    for start in range(0, frames, length):
        first, stop = max(start - reach, 0), min(start + length, frames)
        yield Window(slice(first, stop + reach), slice(start, stop), slice(start - first, stop - first))
