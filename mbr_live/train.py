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
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import Tensor, nn
from torch.nn import functional

from mbr_live import dataset, fitting, preparation
from mbr_live.annotations import Marks
from mbr_live.augmentation import augment
from mbr_live.bundle import (
    CARD,
    FORMAT,
    Behaviour,
    Bundle,
    Manifest,
    TrainingCard,
    check_replaceable,
    write_bundle,
)
from mbr_live.card import card_text, score_table, training_card
from mbr_live.checkpoints import Checkpoints, Stateful
from mbr_live.curves import Curves
from mbr_live.dataset import Dataset, ModelSettings, TrainingSettings
from mbr_live.engine import windows
from mbr_live.fitting import Validated
from mbr_live.kinematics import VERSION
from mbr_live.models import Trunk, TrunkConfig, export_onnx
from mbr_live.preparation import Recording
from mbr_live.temporal import Calibrated, Ensemble, TemporalModel, build_temporal
from mbr_live.types import CROP_PX, RATE_FPS, UNKNOWN, MbrError

THREADS = 2  # a fixed number, since sums in another order give other weights
SMALL_THREADS = 1  # without a trunk there is too little to share: two would wait for each other
_FEATURE_BATCH = 64
_CROPS_OF_A_KEY = 16
_SCORED_EVERY_STEPS = 10
_GRADIENT_NORM = 1.0
_FRAME_WEIGHT_DECAY = 0.01
_STD_FLOOR = 1e-3  # for a channel that does not vary


@dataclass(frozen=True, slots=True)
class _Lesson:
    """A recording laid out for training: P positions, which are the ticks of its stretches one after the other."""

    recording: Recording
    rows: NDArray[np.int64]  # [P] row of the recording that serves the position
    known: NDArray[np.bool_]  # [P] False where the row is held over a gap
    starts: NDArray[np.int64]  # [P] first position of its stretch
    stops: NDArray[np.int64]  # [P] position after the last one of its stretch

    @property
    def truth(self) -> Marks:
        return self.recording.truth[self.rows]


@dataclass(frozen=True, slots=True)
class _Sequence:
    """F positions of a lesson on end; what lies beyond the end of a stretch is not known."""

    lesson: _Lesson
    rows: NDArray[np.int64]
    known: NDArray[np.bool_]

    @property
    def truth(self) -> Marks:
        return self.lesson.recording.truth[self.rows]

    def weights(self, held_weight: float) -> NDArray[np.float32]:
        """[F] what the label of each frame weighs: less where it repeats that of a still that somebody judged."""
        return np.where(self.lesson.recording.judged[self.rows], 1.0, held_weight).astype(np.float32)


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
    lessons = [_lesson(each, plan.max_gap_frames) for recording in recordings for each in recording.with_copies()]
    lessons_to_learn = [lesson for lesson in lessons if lesson.recording.split == "train"]
    lessons_to_validate = [lesson for lesson in lessons if lesson.recording.split == "validation"]
    with _deterministic(plan.training.seed, SMALL_THREADS if plan.model.extractor == "none" else THREADS):
        trunk, temporal = _networks(plan.model, len(plan.behaviours))
        if trunk:
            _train_on_frames(trunk, lessons_to_learn, plan.training, checkpoints, curves, progress)
        inputs = _inputs(trunk, [lesson.recording for lesson in lessons], progress)
        if isinstance(temporal, Ensemble):
            _standardise(temporal, [inputs[lesson.recording.name] for lesson in lessons_to_learn])

        def validate() -> list[Validated]:
            return [
                stretch
                for lesson in lessons_to_validate
                for stretch in _validate(temporal, lesson, inputs[lesson.recording.name], plan.warmup_frames)
            ]

        def follow(step: int, loss: Tensor) -> None:
            curves.learnt("sequences", step, loss, temporal)
            if curves.drawn and lessons_to_validate and step % _SCORED_EVERY_STEPS == 0:
                found = validate()
                curves.scored(step, {spec.name: fitting.pr_auc(k, found) for k, spec in enumerate(plan.behaviours)})
                temporal.train()

        _train_on_sequences(temporal, lessons_to_learn, inputs, plan.training, checkpoints, follow, progress)
        validated = validate()
    curves.close()
    judged = any(np.any(stretch.truth != UNKNOWN) for stretch in validated)
    if not judged and (lessons_to_validate or plan.is_fitted):
        raise MbrError(
            f"Dataset {plan.name}: no frame of the validation recordings is labelled after the warm-up of "
            f"{plan.warmup_frames} frames. Validate on longer recordings, or set warmup_frames lower."
        )
    fitted = fitting.fit(plan.behaviours, plan.training.threshold, plan.training.calibration, validated)
    card = training_card(plan, recordings, _steps(plan), {"torch": torch.__version__}, fitted)
    if plan.training.calibration != "none":
        temporal = Calibrated(
            temporal, [each.scale for each in fitted.calibrations], [each.offset for each in fitted.calibrations]
        )
    bundle = _write(out, plan, fitted.behaviours, card, trunk, temporal)
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


@contextmanager
def _deterministic(seed: int, use_threads: int) -> Iterator[None]:
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(use_threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict)
        torch.set_num_threads(threads)


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


def _standardise(temporal: Ensemble, inputs: Sequence[Tensor]) -> None:
    """Set what the kinematic channels are standardised by from the recordings to train on."""
    channels = torch.cat([each[:, temporal.plain_columns :] for each in inputs])
    temporal.mean.copy_(channels.mean(dim=0))
    temporal.std.copy_(channels.std(dim=0, correction=0) + _STD_FLOOR)


def _lesson(recording: Recording, max_gap_frames: int) -> _Lesson:
    parts = preparation.stretches(recording.ticks, max_gap_frames)
    lengths = np.array([len(part.rows) for part in parts])
    stops = np.cumsum(lengths)
    return _Lesson(
        recording,
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.known for part in parts]),
        np.repeat(stops - lengths, lengths),
        np.repeat(stops, lengths),
    )


def _draw(
    lessons: Sequence[_Lesson],
    count: int,
    frames: int,
    rng: np.random.Generator,
    chances: NDArray[np.float64] | None = None,
) -> list[_Sequence]:
    """Sequences at random; every other one holds a frame of a behaviour, since most frames are of none.

    For these, `chances` [lessons, K] are those of a lesson to be drawn, by behaviour; without, all are alike.
    """
    drawn = []
    behaviours = lessons[0].recording.truth.shape[1]
    for number in range(count):
        wanted = int(rng.integers(behaviours)) if chances is not None and number % 2 else None
        if chances is None or wanted is None:
            lesson = lessons[int(rng.integers(len(lessons)))]
        else:
            lesson = lessons[int(rng.choice(len(lessons), p=chances[:, wanted]))]
        candidates = np.flatnonzero(np.any(lesson.truth != UNKNOWN, axis=1))
        if number % 2:
            wanted = int(rng.integers(behaviours)) if wanted is None else wanted
            shown = np.flatnonzero(lesson.truth[:, wanted] == 1)
            candidates = shown if len(shown) else candidates
        position = int(rng.choice(candidates))
        start = max(position - int(rng.integers(frames)), int(lesson.starts[position]))
        stop = min(start + frames, int(lesson.stops[position]))
        lack = frames - (stop - start)
        rows = np.pad(lesson.rows[start:stop], (0, lack), mode="edge")
        drawn.append(_Sequence(lesson, rows, np.pad(lesson.known[start:stop], (0, lack))))
    return drawn


def _chances(lessons: Sequence[_Lesson], settings: TrainingSettings) -> NDArray[np.float64] | None:
    """Chances [lessons, K] to be drawn for a behaviour, by the root of its frames; None where all are alike."""
    if settings.draw == "even":
        return None
    roots = np.sqrt([np.count_nonzero(lesson.truth == 1, axis=0) for lesson in lessons])
    roots[:, roots.sum(axis=0) == 0] = 1.0
    chances: NDArray[np.float64] = roots / roots.sum(axis=0)
    return chances


def _train_on_frames(
    trunk: Trunk,
    lessons: Sequence[_Lesson],
    settings: TrainingSettings,
    checkpoints: Checkpoints,
    curves: Curves,
    progress: dataset.Progress,
) -> None:
    """The trunk, through a linear map to the behaviours that is thrown away afterwards."""
    rng = np.random.default_rng((settings.seed, 1))
    behaviours = nn.Linear(trunk.feature_dim, lessons[0].recording.truth.shape[1])
    steps = settings.frame_steps
    optimiser = _Optimiser([trunk, behaviours], settings.frame_learning_rate, steps, _FRAME_WEIGHT_DECAY)
    for step in checkpoints.steps("frames", steps, optimiser.parts, rng):
        drawn = _draw(lessons, settings.frames_per_step, 1, rng)
        crops = np.concatenate([_crops(each.lesson.recording)[each.rows] for each in drawn])
        features = trunk(torch.from_numpy(augment(crops, settings.augmentation, rng)))
        loss = _loss(behaviours(features)[:, None], drawn, settings, unscored=0)
        optimiser.step(loss)
        curves.learnt("frames", step + 1, loss, trunk)
        progress("frames", step + 1, steps)


def _crops(recording: Recording) -> NDArray[np.uint8]:
    if recording.crops is None:
        raise ValueError(f"{recording.name} was prepared without crops")
    return recording.crops


def _inputs(trunk: Trunk | None, recordings: Sequence[Recording], progress: dataset.Progress) -> dict[str, Tensor]:
    """What the temporal network takes of every recording, [N, D + M], by name."""
    inputs = {}
    for done, recording in enumerate(recordings, start=1):
        parts = [] if trunk is None else [_features(trunk, _crops(recording))]
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


def _train_on_sequences(
    temporal: TemporalModel,
    lessons: Sequence[_Lesson],
    inputs: Mapping[str, Tensor],
    settings: TrainingSettings,
    checkpoints: Checkpoints,
    follow: Callable[[int, Tensor], None],
    progress: dataset.Progress,
) -> None:
    """The temporal networks alone, one after the other, on sequences longer than their memory; `follow` is told the
    loss of every step.
    """
    members = list(temporal.members) if isinstance(temporal, Ensemble) else [temporal]
    chances, steps = _chances(lessons, settings), settings.sequence_steps
    for number, member in enumerate(members):
        rng = np.random.default_rng((settings.seed, 2, number) if number else (settings.seed, 2))
        optimiser = _Optimiser([member], settings.sequence_learning_rate, steps, settings.sequence_weight_decay)
        stage = f"sequences-{number}" if number else "sequences"
        for step in checkpoints.steps(stage, steps, optimiser.parts, rng):
            drawn = _draw(lessons, settings.sequences_per_step, settings.sequence_frames, rng, chances)
            batch = torch.stack([inputs[each.lesson.recording.name][torch.from_numpy(each.rows)] for each in drawn])
            if isinstance(temporal, Ensemble):
                disturbed = _disturbed(temporal.standardised(batch), temporal.raw_columns, settings)
                logits = temporal.of_member(number, disturbed)
            else:
                logits = temporal(batch)
            loss = _loss(logits, drawn, settings, unscored=settings.unscored_frames)
            optimiser.step(loss)
            done = number * steps + step + 1
            follow(done, loss)
            progress("sequences", done, len(members) * steps)


def _disturbed(inputs: Tensor, channels: int, settings: TrainingSettings) -> Tensor:
    """Standardised inputs [B, T, D + M] whose M `channels` are those of another animal, camera or moment."""
    features, measured = torch.split(inputs, [inputs.shape[2] - channels, channels], dim=2)
    measured = measured + settings.sequence_noise * torch.randn_like(measured[:, :1])
    measured = measured + settings.frame_noise * torch.randn_like(measured)
    return torch.cat((features, functional.dropout(measured, settings.channel_dropout)), dim=2)


class _Optimiser:
    """AdamW with one learning-rate cycle and a bound on the gradient."""

    def __init__(self, modules: Sequence[nn.Module], learning_rate: float, steps: int, decay: float) -> None:
        for module in modules:
            module.train()
        self._parameters = [parameter for module in modules for parameter in module.parameters()]
        self._adam = torch.optim.AdamW(self._parameters, lr=learning_rate, weight_decay=decay)
        self._rate = torch.optim.lr_scheduler.OneCycleLR(self._adam, learning_rate, total_steps=steps + 1)
        learning: tuple[Stateful, ...] = (self._adam, self._rate, *modules)
        self.parts = {str(number): part for number, part in enumerate(learning)}  # all that learning changes

    def step(self, loss: Tensor) -> None:
        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, _GRADIENT_NORM)
        self._adam.step()
        self._rate.step()


def _loss(logits: Tensor, drawn: Sequence[_Sequence], settings: TrainingSettings, *, unscored: int) -> Tensor:
    """Mean binary cross-entropy over the labels of the known frames, by their weights, but for the first few, which
    have seen no movement yet; 0 where nothing is labelled.
    """
    truth = torch.from_numpy(np.stack([each.truth for each in drawn]))
    weights = torch.from_numpy(np.stack([each.weights(settings.held_weight) for each in drawn]))[..., None]
    known = torch.from_numpy(np.stack([each.known for each in drawn]))[..., None] & (truth != UNKNOWN) & (weights > 0)
    known[:, :unscored] = False
    if not known.any():
        return 0.0 * logits.sum()
    smoothing, weight = settings.label_smoothing, weights.expand_as(truth)[known]
    target = truth[known].float() * (1 - smoothing) + smoothing / 2
    return functional.binary_cross_entropy_with_logits(logits[known], target, weight=weight / weight.mean())


def _validate(temporal: TemporalModel, lesson: _Lesson, inputs: Tensor, warmup_frames: int) -> list[Validated]:
    """Logits of the frames that the pipeline would label, stretch by stretch."""
    temporal.eval()
    validated = []
    for start, stop in sorted(set(zip(lesson.starts.tolist(), lesson.stops.tolist(), strict=True))):
        rows, known = lesson.rows[start:stop], lesson.known[start:stop]
        sequence = inputs[torch.from_numpy(rows)]
        with torch.inference_mode():
            logits = [
                temporal(sequence[None, window.given])[0, window.kept]
                for window in windows(len(rows), temporal.receptive_field_frames)
            ]
            said = torch.cat(logits).numpy()
        # Held to what was judged, as the logs of these recordings would be: `evaluate` finds the same.
        labelled = known & (np.cumsum(known) > warmup_frames)
        truth = np.where(lesson.recording.judged[rows, None], lesson.recording.truth[rows], UNKNOWN).astype(np.int8)
        validated.append(Validated(lesson.recording.subject, said[labelled], truth[labelled]))
    return validated


def _steps(plan: Dataset) -> dict[str, int]:
    """Steps of every stage."""
    frames = {} if plan.model.extractor == "none" else {"frames": plan.training.frame_steps}
    return frames | {"sequences": plan.model.ensemble * plan.training.sequence_steps}


def _write(
    out: Path,
    plan: Dataset,
    behaviours: tuple[Behaviour, ...],
    card: TrainingCard,
    trunk: Trunk | None,
    temporal: TemporalModel,
) -> Bundle:
    manifest = Manifest(
        format=FORMAT,
        name=plan.name,
        behaviours=behaviours,
        crop_px=CROP_PX,
        rate_fps=RATE_FPS,
        feature_dim=trunk.feature_dim if trunk else 0,
        kinematics=plan.model.channels,
        kinematics_version=VERSION if plan.model.channels else 0,
        window_px=plan.window_px,
        causal=temporal.is_live,
        state_size=temporal.state_size,
        receptive_field_frames=temporal.receptive_field_frames,
        warmup_frames=plan.warmup_frames,
        max_gap_s=plan.max_gap_s,
        files={},
        training=card,
    )
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(trunk, temporal, Path(folder), kinematics=len(plan.model.channels))
        contents = {name: Path(folder, name).read_bytes() for name in manifest.contents if name != CARD}
    return write_bundle(out, manifest, {**contents, CARD: card_text(manifest).encode()})
