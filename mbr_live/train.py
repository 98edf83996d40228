"""Trains a bundle from a dataset file.

First the trunk learns to tell the behaviours from single frames of all recordings, augmented each by itself. Then the
temporal network learns on long sequences of the trunk's features. Sequences start anywhere, with the zero padding of
a fresh lane, so that its probabilities mean something soon after a start. Behaviours are independent of each other
(binary cross-entropy each). A model of kinematics alone has no trunk, and trains in minutes; the members of an
ensemble learn one after the other, each from sequences of its own. The same dataset file, versions and machine give
the same weights.

Training both together on short clips was tried: at the same cost it learnt an order of magnitude more slowly, since
the frames of a clip are nearly the same picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import Tensor

from mbr_live import dataset, fitting, preparation
from mbr_live.bundle import Bundle, check_replaceable
from mbr_live.card import score_table, training_card
from mbr_live.checkpoints import Checkpoints
from mbr_live.curves import Curves
from mbr_live.dataset import Dataset, ModelSettings
from mbr_live.export import write_model
from mbr_live.extraction import inputs_of
from mbr_live.fitting import Validated
from mbr_live.frame_stage import train_on_frames
from mbr_live.learning import deterministic
from mbr_live.lessons import lesson_of
from mbr_live.models import Trunk, TrunkConfig
from mbr_live.preparation import Recording
from mbr_live.sequence_stage import standardise, train_on_sequences
from mbr_live.temporal import Ensemble, TemporalModel, build_temporal
from mbr_live.types import UNKNOWN, MbrError
from mbr_live.validation import validate

THREADS = 2  # a fixed number, since sums in another order give other weights
SMALL_THREADS = 1  # without a trunk there is too little to share: two would wait for each other
_CROPS_OF_A_KEY = 16
_SCORED_EVERY_STEPS = 10


def train_program(dataset_file: Path, out: Path, logs: Path | None = None) -> None:
    """Train as `dataset_file` says and write the bundle to `out`; shows progress and the scores."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        bundle = train(dataset_file, out, progress=show, logs=logs)
    console.print(score_table(bundle.manifest.training.scores))
    console.print(f"Bundle written to {bundle.path}")


def train(
    dataset_file: Path,
    out: Path,
    *,
    progress: dataset.Progress,
    cache: Path | None = None,
    logs: Path | None = None,
) -> Bundle:
    """Train as `dataset_file` says and write the bundle to `out`, learning curves to `logs`.

    Recordings are cached in `cache`, by default the user's cache folder. Raises MbrError for a dataset file that is
    not valid, or where `out` holds something that is not a bundle.
    """
    return train_on(dataset.read_dataset(dataset_file), out, progress=progress, cache=cache, logs=logs)


def train_on(
    plan: Dataset, out: Path, *, progress: dataset.Progress, cache: Path | None = None, logs: Path | None = None
) -> Bundle:
    """As `train`, with a dataset that was read before."""
    check_replaceable(out)
    curves = Curves(logs)
    cache = cache or dataset.cache_folder()
    recordings = preparation.prepare(plan, cache, progress)
    checkpoints = Checkpoints(cache / f"{plan.name}.{_key(plan, recordings)}.checkpoints")
    lessons = [lesson_of(recording, plan.max_gap_frames) for recording in recordings]
    lessons_to_learn = [lesson for lesson in lessons if lesson.recording.split == "train"]
    lessons_to_validate = [lesson for lesson in lessons if lesson.recording.split == "validation"]
    with deterministic(plan.training.seed, SMALL_THREADS if plan.model.extractor == "none" else THREADS):
        trunk, temporal = _networks(plan.model, len(plan.behaviours))
        if trunk:
            train_on_frames(trunk, lessons_to_learn, plan.training, checkpoints, curves, progress)
        inputs = inputs_of(trunk, recordings, progress)
        if isinstance(temporal, Ensemble):
            standardise(temporal, [inputs[lesson.recording.name] for lesson in lessons_to_learn])

        def validated_now() -> list[Validated]:
            return [
                stretch
                for lesson in lessons_to_validate
                for stretch in validate(temporal, lesson, inputs[lesson.recording.name], plan.warmup_frames)
            ]

        def follow(step: int, loss: Tensor) -> None:
            curves.learnt("sequences", step, loss, temporal)
            if curves.drawn and step % _SCORED_EVERY_STEPS == 0:
                curves.scored(
                    step, {spec.name: fitting.pr_auc(k, validated_now()) for k, spec in enumerate(plan.behaviours)}
                )
                temporal.train()

        train_on_sequences(temporal, lessons_to_learn, inputs, plan.training, checkpoints, follow, progress)
        validated = validated_now()
    curves.close()
    if not any(np.any(stretch.truth != UNKNOWN) for stretch in validated):
        raise MbrError(
            f"Dataset {plan.name}: no frame of the validation recordings is labelled after the warm-up of "
            f"{plan.warmup_frames} frames. Validate on longer recordings, or set warmup_frames lower."
        )
    rule = plan.training.threshold
    behaviours = tuple(fitting.choose_thresholds(spec, k, validated, rule) for k, spec in enumerate(plan.behaviours))
    versions = {"torch": torch.__version__}
    card = training_card(plan, recordings, _steps(plan), versions, list(fitting.scores(behaviours, validated)))
    bundle = write_model(out, plan, behaviours, card, trunk, temporal)
    checkpoints.clear()
    return bundle


def _key(plan: Dataset, recordings: Sequence[Recording]) -> str:
    """Of all that the weights depend on; of the crops, whose making is cached by content, a few tell."""
    digest = hashlib.sha256(f"{plan.model_dump_json()} {torch.__version__}".encode())
    for recording in recordings:
        digest.update(f"{recording.name} {recording.split} {len(recording.ticks)}".encode())
        every = max(1, len(recording.ticks) // _CROPS_OF_A_KEY)
        crops = None if recording.crops is None else recording.crops[::every]
        for array in (recording.ticks, recording.truth, recording.judged, recording.channels, crops):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return dataset.key_of(digest.hexdigest(), ("*.py",))


def _networks(model: ModelSettings, behaviours: int) -> tuple[Trunk | None, TemporalModel]:
    """Untrained. A single temporal network on features alone needs no standardising."""
    trunk = Trunk(TrunkConfig()) if model.extractor == "slim" else None
    features = list(range(trunk.feature_dim if trunk else 0))
    if not model.channels and model.ensemble == 1:
        return trunk, build_temporal(model.temporal, feature_dim=len(features), behaviours=behaviours)
    place = {name: len(features) + at for at, name in enumerate(model.channels)}
    sets = [[*features, *(place[name] for name in names)] for names in model.channel_sets] or [features]
    columns = [sets[number % len(sets)] for number in range(model.ensemble)]
    members = [build_temporal(model.temporal, feature_dim=len(each), behaviours=behaviours) for each in columns]
    return trunk, Ensemble(members, columns, plain=len(features), raw=len(model.channels))


def _steps(plan: Dataset) -> dict[str, int]:
    """Steps of every stage."""
    frames = {} if plan.model.extractor == "none" else {"frames": plan.training.frame_steps}
    return frames | {"sequences": plan.model.ensemble * plan.training.sequence_steps}
