"""Files that trainings keep for others: there only when they are whole, and made by one training at a time.

Features are named by all that they depend on, and what a killed training has computed of them is gone on with.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from mbr_live.bundle import Bundle
from mbr_live.datasets.augmentation import Change
from mbr_live.datasets.dataset import key_of
from mbr_live.engines.openvino_engine import name_in
from mbr_live.locks import locked
from mbr_live.manifest import FEATURES

COMPUTED_BY = ("engines/openvino_engine.py", "engines/protocol.py", "datasets/augmentation.py")
"""The modules that features depend on, beside those that crops do; a change of one of them makes these anew."""

_FLOAT_BYTES = 4


def features_file(folder: Path, crops: str, change: Change | None, network: Bundle) -> Path:
    """Where features are kept: of crops, whose name has the video and the code that made them, changed or not, by the
    feature network of a bundle in OpenVINO.
    """
    graph = network.manifest.files[FEATURES].sha256
    key = key_of(f"{crops} {graph} {name_in('f32')} {change}", COMPUTED_BY)
    return folder / f"{crops}.{key}.features.npy"


class Rows:
    """The features of a recording that are there, to be continued."""

    def __init__(self, stream: BinaryIO, feature_dim: int) -> None:
        self._stream = stream
        row_bytes = _FLOAT_BYTES * feature_dim
        self.done = stream.seek(0, os.SEEK_END) // row_bytes
        """Rows that are there already."""
        stream.truncate(self.done * row_bytes)

    def add(self, features: NDArray[np.float32]) -> None:
        """Append float32 [B, D]; they are on the disk when this returns."""
        self._stream.write(features.tobytes())
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.done += len(features)


@contextmanager
def continued(file: Path, feature_dim: int) -> Iterator[Rows | None]:
    """What there is of a file of features [N, D], to add the rest to; None where all of it is there.

    The file is there when the block has ended without an error.
    """
    if file.is_file():
        yield None
        return
    with alone(rows_file := file.with_suffix(".rows")) as stream:
        if file.is_file():
            yield None
        else:
            yield Rows(stream, feature_dim)
            save_array(file, np.fromfile(rows_file, np.float32).reshape(-1, feature_dim))


@contextmanager
def alone(path: Path, refusal: str | None = None) -> Iterator[BinaryIO]:
    """Append to a file that is this process's alone; it is gone when all went well.

    Another that wants it waits or, given a `refusal`, gets that as an MbrError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path, refusal) as stream:
        yield stream
        path.unlink(missing_ok=True)


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write a .npy file that is there only when all of it is."""
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    partial.replace(path)
