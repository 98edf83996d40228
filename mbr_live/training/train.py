"""Trains a bundle from a dataset file.

First the extractor learns to tell the behaviours from single frames of all recordings, augmented each by itself, unless
it stays as it was published. Then the temporal network learns on long sequences of the extractor's features. In the
end, where it is asked for, both learn together. Behaviours are independent of each other (binary cross-entropy each). A
model of kinematics alone has no extractor, and trains in minutes. The same dataset file, versions and machine give the
same weights.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from mbr_live.bundle import Bundle, check_replaceable
from mbr_live.datasets import dataset
from mbr_live.datasets.dataset import Dataset
from mbr_live.places import check_writable
from mbr_live.progress import bars
from mbr_live.training import fitting, preparation
from mbr_live.training.cache_files import alone
from mbr_live.training.card import score_table, training_card
from mbr_live.training.checkpoints import Checkpoints
from mbr_live.training.curves import Curves, Told
from mbr_live.training.export import write_model
from mbr_live.training.extraction import feature_network, inputs_of
from mbr_live.training.extractors import build_extractor, file_hash
from mbr_live.training.fine_tuning import fine_tune
from mbr_live.training.fitting import Validated
from mbr_live.training.frame_stage import train_on_frames
from mbr_live.training.learning import deterministic
from mbr_live.training.lessons import Lesson, copies_of, lesson_of
from mbr_live.training.models import Extractor
from mbr_live.training.networks import temporal_of
from mbr_live.training.preparation import Recording
from mbr_live.training.reference import build_reference
from mbr_live.training.sequence_stage import Follow, standardise, train_on_sequences
from mbr_live.training.temporal import Calibrated, TemporalModel
from mbr_live.training.validation import Validation
from mbr_live.types import UNKNOWN, MbrError

_log = logging.getLogger(__name__)

THREADS = 2  # a fixed number, since sums in another order give other weights
SMALL_THREADS = 1  # without a trunk there is too little to share: two would wait for each other
_SCORED_EVERY_STEPS = 10
_UNDER_WAY = (
    "Dataset {}: the same training is under way in another process, and would give the same weights. Wait until it has "
    "ended, or copy its bundle."
)


def train_program(dataset_file: Path, out: Path, logs: Path | None = None, weights: Path | None = None) -> None:
    """Train as `dataset_file` says and write the bundle to `out`; shows progress and the scores."""
    console = Console(stderr=True)
    with bars(console) as show:
        bundle = train(dataset_file, out, progress=show, logs=logs, weights=weights)
    if bundle.manifest.training.scores:
        console.print(score_table(bundle.manifest.training.scores))
    console.print(f"Bundle written to {bundle.path}")


def train(
    dataset_file: Path,
    out: Path,
    *,
    progress: dataset.Progress,
    cache: Path | None = None,
    logs: Path | None = None,
    weights: Path | None = None,
) -> Bundle:
    """Train as `dataset_file` says and write the bundle to `out`, learning curves to `logs`.

    Recordings are cached in `cache`, by default the user's cache folder. The extractor starts from the file `weights`,
    if it is given. Raises MbrError for a dataset file that is not valid, or where `out` holds something that is not a
    bundle.
    """
    plan = dataset.read_dataset(dataset_file)
    plan = plan.with_weights(weights) if weights else plan
    return train_on(plan, out, progress=progress, cache=cache, logs=logs)


def train_on(
    plan: Dataset,
    out: Path,
    *,
    progress: dataset.Progress,
    cache: Path | None = None,
    logs: Path | None = None,
    told: Told | None = None,
    checkpoints_in: Path | None = None,
) -> Bundle:
    """As `train`, with a dataset that was read before.

    `told` is told validation scores on the way, and may raise to give up. Checkpoints are kept in the cache, or in a
    folder of their own.
    """
    check_replaceable(out)
    if logs:
        check_writable(logs)
    cache = cache or dataset.cache_folder()
    with ExitStack() as held:
        with deterministic(plan.training.seed, SMALL_THREADS if plan.model.extractor == "none" else THREADS):
            # Before hours of cropping: weights may be missing.
            extractor = build_extractor(plan.model, plan.weights_file)
            temporal = temporal_of(plan.model, extractor.feature_dim if extractor else 0, len(plan.behaviours))
            with feature_network(extractor if plan.model.is_frozen else None, temporal, plan) as published:
                recordings = preparation.prepare(plan, cache, progress, published)
                _warn_of_what_is_not_shown(plan, recordings)
                key = f"{plan.name}.{_key(plan, recordings)}"
                checkpoints = Checkpoints((checkpoints_in or cache) / f"{key}.checkpoints")
                held.enter_context(alone((checkpoints_in or cache) / f"{key}.lock", _UNDER_WAY.format(plan.name)))
                curves = Curves(logs, told)
                learnt = _Stages(
                    plan, recordings, extractor, temporal, published, cache, checkpoints, curves, progress
                ).run()
                curves.close()
        _check_judged(plan, recordings, learnt.validated)
        settings = plan.training
        fitted = fitting.fit(
            plan.behaviours, settings.threshold, settings.calibration, learnt.validated, plan.max_gap_frames
        )
        card = training_card(plan, recordings, learnt.steps, {"torch": torch.__version__}, fitted)
        if settings.calibration != "none":
            temporal = Calibrated(
                temporal, [each.scale for each in fitted.calibrations], [each.offset for each in fitted.calibrations]
            )
        reference = build_reference(plan, [each.name for each in recordings], fitted.validated, cache, progress)
        bundle = write_model(out, plan, fitted.behaviours, card, extractor, temporal, reference)
        checkpoints.clear()
    return bundle


def _warn_of_what_is_not_shown(plan: Dataset, recordings: Sequence[Recording]) -> None:
    """Nothing can be learnt of a behaviour without an example, and its labels would be taken for a finding."""
    taught = [recording.truth for recording in recordings if recording.split == "train"]
    for k, behaviour in enumerate(plan.behaviours):
        if plan.problems.empty_behaviour != "ignore" and not any(np.any(truth[:, k] == 1) for truth in taught):
            _log.warning(
                "Dataset %s: %s is shown in no recording that is trained on, so nothing can be learnt of it. Add one, "
                "or leave the behaviour out.", plan.name, behaviour.name,
            )  # fmt: skip


def _check_judged(plan: Dataset, recordings: Sequence[Recording], validated: Sequence[Validated]) -> None:
    judged = any(np.any(stretch.truth != UNKNOWN) for stretch in validated)
    kept_aside = any(recording.split == "validation" for recording in recordings)
    if not judged and (kept_aside or plan.is_fitted):
        raise MbrError(
            f"Dataset {plan.name}: no frame of the validation recordings is labelled after the warm-up of "
            f"{plan.warmup_frames} frames. Validate on longer recordings, or set warmup_frames lower."
        )


@dataclass(frozen=True, slots=True)
class _Learnt:
    """What came of the stages, beside the weights."""

    validated: list[Validated]
    steps: dict[str, int]  # of each stage


class _Stages:
    """The stages of one training, one after the other."""

    def __init__(
        self,
        plan: Dataset,
        recordings: Sequence[Recording],
        extractor: Extractor | None,
        temporal: TemporalModel,
        published: Bundle | None,
        cache: Path,
        checkpoints: Checkpoints,
        curves: Curves,
        progress: dataset.Progress,
    ) -> None:
        self._plan, self._settings = plan, plan.training
        self._extractor, self._temporal = extractor, temporal
        self._published = published  # of an extractor that stays as it is, as far as the sequences
        self._cache, self._checkpoints, self._curves, self._progress = cache, checkpoints, curves, progress
        every = [each for recording in recordings for each in recording.with_copies()]
        lessons = [lesson_of(recording, plan.max_gap_frames) for recording in every]
        self._taught = [lesson for lesson in lessons if lesson.recording.split == "train"]
        self._copies = copies_of(self._taught, self._settings.recording_augmentation, self._settings.seed)
        self._kept_aside = [lesson for lesson in lessons if lesson.recording.split == "validation"]

    def run(self) -> _Learnt:
        """Every stage that the dataset file asks for."""
        steps: dict[str, int] = {}
        if self._extractor and not self._plan.model.is_frozen:
            train_on_frames(
                self._extractor, self._taught, self._settings, self._checkpoints, self._curves, self._progress
            )
            steps["frames"] = self._settings.frame_steps
        taught = [*self._taught, *self._copies]
        inputs = self._inputs([*taught, *self._kept_aside], self._published)
        standardise(self._temporal, [inputs[lesson.name] for lesson in taught])
        validation = Validation(self._kept_aside, inputs, self._plan.warmup_frames)
        steps["sequences"] = train_on_sequences(
            self._temporal, taught, validation, inputs, self._settings, self._checkpoints,
            self._follow(validation), self._progress,
        )  # fmt: skip
        if self._extractor and self._settings.fine_tuning.steps:
            steps["fine-tuning"] = self._fine_tune(self._extractor, validation)
            validation = self._validation_anew() if steps["fine-tuning"] else validation
        return _Learnt(validation.validated(self._temporal), steps)

    def _fine_tune(self, extractor: Extractor, validation: Validation) -> int:
        every = range(len(self._plan.behaviours))
        return fine_tune(
            extractor, self._temporal, self._taught, self._settings,
            validation.pr_auc(self._temporal, every),
            lambda: self._validation_anew().pr_auc(self._temporal, every),
            self._checkpoints, self._curves, self._progress,
        )  # fmt: skip

    def _validation_anew(self) -> Validation:
        """The recordings kept aside, with the features of the extractor as it is now."""
        return Validation(self._kept_aside, self._inputs(self._kept_aside), self._plan.warmup_frames)

    def _inputs(self, lessons: Sequence[Lesson], published: Bundle | None = None) -> dict[str, Tensor]:
        """What the temporal network takes, by name of the lesson. Features of an extractor as it was published are
        kept for other trainings, those of one that has learnt until this training is over.
        """
        if published:
            return inputs_of(published, lessons, self._cache, self._progress)
        with feature_network(self._extractor, self._temporal, self._plan) as network:
            return inputs_of(network, lessons, self._checkpoints.folder, self._progress)

    def _follow(self, validation: Validation) -> Follow:
        def follow(step: int, loss: Tensor) -> None:
            self._curves.learnt("sequences", step, loss, self._temporal)
            if self._curves.drawn and self._kept_aside and step % _SCORED_EVERY_STEPS == 0:
                found = validation.validated(self._temporal)
                scores = {spec.name: fitting.pr_auc(k, found) for k, spec in enumerate(self._plan.behaviours)}
                self._curves.scored(step, scores)
                self._temporal.train()

        return follow


def _key(plan: Dataset, recordings: Sequence[Recording]) -> str:
    """Of all that the weights depend on."""
    digest = hashlib.sha256(f"{plan.model_dump_json()} {torch.__version__}".encode())
    digest.update(file_hash(plan.weights_file).encode() if plan.weights_file else b"")
    for recording in recordings:
        digest.update(f"{recording.name} {recording.split} {len(recording.ticks)} {recording.crops_name}".encode())
        for array in (recording.ticks, recording.truth, recording.judged, recording.channels):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return dataset.key_of(digest.hexdigest(), ("**/*.py",))
