"""From crops to what the temporal network takes.

Features are computed by the graph that the bundle will have, in the engine that `batch` has, so that training sees to
the bit what later runs see. They are kept on disk under a key of the crops (which has that of the video and of the code
that makes them), the graph, the engine and the change of a copy. What a killed training has computed of a recording is
gone on with.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbr_live.bundle import FEATURES, Bundle
from mbr_live.datasets.dataset import Dataset, Progress, key_of
from mbr_live.engines.choice import cores
from mbr_live.engines.openvino_engine import OpenVinoEngine
from mbr_live.engines.protocol import Engine
from mbr_live.training.export import write_untaught
from mbr_live.training.lessons import Lesson
from mbr_live.training.models import Extractor
from mbr_live.training.preparation import crops_of, save_array
from mbr_live.training.temporal import TemporalModel

COMPUTED_BY = ("engines/openvino_engine.py", "engines/protocol.py", "datasets/augmentation.py")
"""The modules that features depend on, beside those that crops do; a change of one of them makes these anew."""

_BATCH_FRAMES = 64
_FLOAT_BYTES = 4


def inputs_of(
    extractor: Extractor | None,
    temporal: TemporalModel,
    lessons: Sequence[Lesson],
    plan: Dataset,
    folder: Path,
    progress: Progress,
) -> dict[str, Tensor]:
    """What the temporal network takes of every lesson, [N, D + M], by name; features are kept in `folder`."""
    inputs = {}
    for lesson, features in zip(lessons, _features(extractor, temporal, lessons, plan, folder, progress), strict=True):
        parts = [] if features is None else [features]
        if lesson.recording.channels is not None:
            parts.append(torch.from_numpy(lesson.recording.channels))
        inputs[lesson.name] = torch.cat(parts, dim=1)
    return inputs


def _features(
    extractor: Extractor | None,
    temporal: TemporalModel,
    lessons: Sequence[Lesson],
    plan: Dataset,
    folder: Path,
    progress: Progress,
) -> Iterator[Tensor | None]:
    """Features [N, D] lesson by lesson; None where there is no extractor."""
    if extractor is None:
        yield from (None for _ in lessons)
        return
    with tempfile.TemporaryDirectory() as temporary:
        bundle = write_untaught(Path(temporary) / "features", plan, extractor, temporal)
        for array in computed(bundle, lessons, folder, progress):
            yield torch.from_numpy(array)


def _crops(lesson: Lesson, first: int) -> NDArray[np.uint8]:
    """A batch of crops of a lesson, from row `first` on, changed where it is a changed copy."""
    crops = np.array(crops_of(lesson.recording)[first : first + _BATCH_FRAMES])
    return lesson.change.of(crops, first) if lesson.change else crops


def computed(
    bundle: Bundle, lessons: Sequence[Lesson], folder: Path, progress: Progress
) -> Iterator[NDArray[np.float32]]:
    """Features [N, D] by the feature network of a bundle, lesson by lesson; what is in `folder` is not computed again.

    Progress is in frames.
    """
    folder.mkdir(parents=True, exist_ok=True)
    engine = OpenVinoEngine(bundle, threads=cores())
    total, before = sum(len(lesson.recording.ticks) for lesson in lessons), 0
    for lesson in lessons:

        def report(done: int, before: int = before) -> None:
            progress("features", before + done, total)

        file = _file(lesson, bundle, engine.name, folder)
        _complete(file, lesson, bundle.manifest.feature_dim, engine, report)
        before += len(lesson.recording.ticks)
        progress("features", before, total)
        yield np.load(file, allow_pickle=False)


def _file(lesson: Lesson, bundle: Bundle, engine: str, folder: Path) -> Path:
    """Where the features of a lesson are kept, named by all that they depend on."""
    crops_file = lesson.recording.crops_file
    if crops_file is None:
        raise ValueError(f"{lesson.name} was prepared without crops")
    graph = bundle.manifest.files[FEATURES].sha256
    name = crops_file.name.removesuffix(crops_file.suffix)
    key = key_of(f"{name} {graph} {engine} {lesson.change}", COMPUTED_BY)
    return folder / f"{name}.{key}.features.npy"


def _complete(file: Path, lesson: Lesson, feature_dim: int, engine: Engine, report: Callable[[int], None]) -> None:
    """Compute what is missing of the features of a lesson; `report` is told the frames that are done."""
    rows_file = file.with_suffix(".rows")
    if file.is_file():
        return
    with rows_file.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # another training may be computing the same
        if not file.is_file():
            done = stream.seek(0, os.SEEK_END) // (_FLOAT_BYTES * feature_dim)
            stream.truncate(done * _FLOAT_BYTES * feature_dim)
            for first in range(done, len(crops_of(lesson.recording)), _BATCH_FRAMES):
                features = engine.features(_crops(lesson, first))
                stream.write(features.tobytes())
                stream.flush()
                os.fsync(stream.fileno())
                report(first + len(features))
            save_array(file, np.fromfile(rows_file, np.float32).reshape(-1, feature_dim))
        rows_file.unlink(missing_ok=True)
