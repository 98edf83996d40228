"""From crops to what the temporal network takes.

Features are computed by the graph that the bundle will have, in the engine that `batch` has, so that training sees to
the bit what later runs see. They are kept on disk, and what a killed training has computed is gone on with.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbr_live.bundle import Bundle
from mbr_live.datasets.dataset import Dataset, Progress
from mbr_live.engines.choice import cores
from mbr_live.engines.openvino_engine import OpenVinoEngine
from mbr_live.engines.protocol import Engine
from mbr_live.training.cache_files import continued, features_file
from mbr_live.training.export import write_untaught
from mbr_live.training.lessons import Lesson
from mbr_live.training.models import Extractor
from mbr_live.training.preparation import crops_of
from mbr_live.training.temporal import TemporalModel

_BATCH_FRAMES = 64


@contextmanager
def feature_network(extractor: Extractor | None, temporal: TemporalModel, plan: Dataset) -> Iterator[Bundle | None]:
    """A bundle of the extractor as it is now, for as long as the block lasts; None where there is no extractor."""
    if extractor is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        yield write_untaught(Path(folder) / "features", plan, extractor, temporal)


def inputs_of(network: Bundle | None, lessons: Sequence[Lesson], folder: Path, progress: Progress) -> dict[str, Tensor]:
    """What the temporal network takes of every lesson, [N, D + M], by name; features are kept in `folder`."""
    features = computed(network, lessons, folder, progress) if network else repeat(None)
    inputs = {}
    for lesson, array in zip(lessons, features, strict=False):  # without a network there is no end of them
        parts = [each for each in (array, lesson.recording.channels) if each is not None]
        inputs[lesson.name] = torch.cat([torch.from_numpy(part) for part in parts], dim=1)
    return inputs


def computed(
    network: Bundle, lessons: Sequence[Lesson], folder: Path, progress: Progress
) -> Iterator[NDArray[np.float32]]:
    """Features [N, D] by the feature network of a bundle, lesson by lesson; what is in `folder` is not computed again.

    Progress is in frames.
    """
    opened = cache(lambda: OpenVinoEngine(network, threads=cores()))  # not where all is there
    total, before = sum(len(lesson.recording.ticks) for lesson in lessons), 0
    for lesson in lessons:

        def report(done: int, before: int = before) -> None:
            progress("features", before + done, total)

        file = features_file(folder, lesson.recording.crops_name, lesson.change, network)
        _complete(file, lesson, network.manifest.feature_dim, opened, report)
        before += len(lesson.recording.ticks)
        progress("features", before, total)
        yield np.load(file, allow_pickle=False)


def _complete(
    file: Path, lesson: Lesson, feature_dim: int, opened: Callable[[], Engine], report: Callable[[int], None]
) -> None:
    """Compute what is missing of the features of a lesson; `report` is told the frames that are done."""
    with continued(file, feature_dim) as rows:
        if rows is not None:
            while rows.done < len(crops_of(lesson.recording)):
                rows.add(opened().features(_crops(lesson, rows.done)))
                report(rows.done)


def _crops(lesson: Lesson, first: int) -> NDArray[np.uint8]:
    """A batch of crops of a lesson, from row `first` on, changed where it is a changed copy."""
    crops = np.array(crops_of(lesson.recording)[first : first + _BATCH_FRAMES])
    return lesson.change.of(crops, first) if lesson.change else crops
