"""Trains a bundle from a dataset file.

First the trunk learns to tell the behaviours from single frames of all recordings, augmented each by itself. Then
the temporal network learns on long sequences of the trunk's features. Sequences start anywhere, with the zero
padding of a fresh lane, so that its probabilities mean something soon after a start. Behaviours are independent of
each other (binary cross-entropy each). The same dataset file, versions and machine give the same weights.

Training both together on short clips was tried: at the same cost it learnt an order of magnitude more slowly, since
the frames of a clip are nearly the same picture.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from mbr_live import __version__, dataset, decide
from mbr_live.annotations import Marks
from mbr_live.bundle import (
    CARD,
    FEATURES,
    FORMAT,
    TEMPORAL,
    Behaviour,
    Bundle,
    Manifest,
    Score,
    TrainingCard,
    check_replaceable,
    write_bundle,
)
from mbr_live.dataset import BehaviourSpec, Dataset, Recording, TrainingSettings
from mbr_live.models import Trunk, TrunkConfig, export_onnx
from mbr_live.scoring import average_precision, f1
from mbr_live.temporal import Tcn
from mbr_live.temporal_config import TcnConfig
from mbr_live.types import CROP_PX, RATE_FPS, UNKNOWN, MbrError

THREADS = 2  # a fixed number, since sums in another order give other weights
_UNSCORED_FRAMES = 3  # of a sequence: too early to have seen a movement
_FEATURE_BATCH = 64
_GRADIENT_NORM = 1.0
_WEIGHT_DECAY = 0.01
_ENTER_THRESHOLDS = tuple(round(0.3 + 0.05 * step, 2) for step in range(11))
_EXIT_SHARES = (0.4, 0.6, 0.8, 1.0)


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


@dataclass(frozen=True, slots=True)
class _Validated:
    """What the networks say of the M frames of one stretch that the pipeline would label."""

    recording: str  # or the group of a clip
    probabilities: NDArray[np.float32]  # [M, K]
    truth: Marks  # [M, K]


def train_program(dataset_file: Path, out: Path) -> None:
    """Train as `dataset_file` says and write the bundle to `out`; shows progress and the scores."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        bundle = train(dataset_file, out, progress=show)
    console.print(_score_table(bundle.manifest.training.scores))
    console.print(f"Bundle written to {bundle.path}")


def train(dataset_file: Path, out: Path, *, progress: dataset.Progress, cache: Path | None = None) -> Bundle:
    """Train as `dataset_file` says and write the bundle to `out`.

    Recordings are cached in `cache`, by default the user's cache folder. Raises MbrError for a dataset file that is
    not valid, or where `out` holds something that is not a bundle.
    """
    plan = dataset.read_dataset(dataset_file)
    check_replaceable(out)
    recordings = dataset.prepare(plan, cache or dataset.cache_folder(), progress)
    lessons = [_lesson(recording, round(plan.max_gap_s * RATE_FPS)) for recording in recordings]
    lessons_to_learn = [lesson for lesson in lessons if lesson.recording.split == "train"]
    with _deterministic(plan.training.seed):
        trunk = Trunk(TrunkConfig())
        tcn = Tcn(TcnConfig(), feature_dim=trunk.feature_dim, behaviours=len(plan.behaviours))
        _train_on_frames(trunk, lessons_to_learn, plan.training, progress)
        features = _features(trunk, recordings, progress)
        _train_on_sequences(tcn, lessons_to_learn, features, plan.training, progress)
        validated = [
            stretch
            for lesson in lessons
            if lesson.recording.split == "validation"
            for stretch in _validate(tcn, lesson, features[lesson.recording.name], plan.warmup_frames)
        ]
    if not any(np.any(stretch.truth != UNKNOWN) for stretch in validated):
        raise MbrError(
            f"Dataset {dataset_file}: no frame of the validation recordings is labelled after the warm-up of "
            f"{plan.warmup_frames} frames. Validate on longer recordings, or set warmup_frames lower."
        )
    behaviours = tuple(_choose_thresholds(spec, k, validated) for k, spec in enumerate(plan.behaviours))
    card = _card(plan, recordings, tuple(_scores(behaviours, validated)))
    return _write(out, plan, behaviours, card, trunk, tcn)


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict)
        torch.set_num_threads(threads)


def _lesson(recording: Recording, max_gap_frames: int) -> _Lesson:
    parts = dataset.stretches(recording.ticks, max_gap_frames)
    lengths = np.array([len(part.rows) for part in parts])
    stops = np.cumsum(lengths)
    return _Lesson(
        recording,
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.known for part in parts]),
        np.repeat(stops - lengths, lengths),
        np.repeat(stops, lengths),
    )


def _draw(lessons: Sequence[_Lesson], count: int, frames: int, rng: np.random.Generator) -> list[_Sequence]:
    """Sequences at random; every other one holds a frame of a behaviour, since most frames are of none."""
    drawn = []
    for number in range(count):
        lesson = lessons[int(rng.integers(len(lessons)))]
        candidates = np.flatnonzero(np.any(lesson.truth != UNKNOWN, axis=1))
        if number % 2:
            shown = np.flatnonzero(lesson.truth[:, rng.integers(lesson.recording.truth.shape[1])] == 1)
            candidates = shown if len(shown) else candidates
        position = int(rng.choice(candidates))
        start = max(position - int(rng.integers(frames)), int(lesson.starts[position]))
        stop = min(start + frames, int(lesson.stops[position]))
        lack = frames - (stop - start)
        rows = np.pad(lesson.rows[start:stop], (0, lack), mode="edge")
        drawn.append(_Sequence(lesson, rows, np.pad(lesson.known[start:stop], (0, lack))))
    return drawn


def _train_on_frames(
    trunk: Trunk, lessons: Sequence[_Lesson], settings: TrainingSettings, progress: dataset.Progress
) -> None:
    """The trunk, through a linear map to the behaviours that is thrown away afterwards."""
    rng = np.random.default_rng((settings.seed, 1))
    behaviours = nn.Linear(trunk.feature_dim, lessons[0].recording.truth.shape[1])
    optimiser = _Optimiser([trunk, behaviours], settings.frame_learning_rate, settings.frame_steps)
    for step in range(settings.frame_steps):
        drawn = _draw(lessons, settings.frames_per_step, 1, rng)
        crops = np.concatenate([each.lesson.recording.crops[each.rows] for each in drawn])
        features = trunk(torch.from_numpy(dataset.augment(crops, settings.augmentation, rng)))
        optimiser.step(_loss(behaviours(features)[:, None], drawn, unscored=0))
        progress("frames", step + 1, settings.frame_steps)


def _features(trunk: Trunk, recordings: Sequence[Recording], progress: dataset.Progress) -> dict[str, Tensor]:
    """Features [N, D] of every recording, by name."""
    trunk.eval()
    features = {}
    for done, recording in enumerate(recordings, start=1):
        batches = range(0, len(recording.crops), _FEATURE_BATCH)
        with torch.inference_mode():
            parts = [trunk(torch.from_numpy(np.array(recording.crops[at : at + _FEATURE_BATCH]))) for at in batches]
        features[recording.name] = torch.cat(parts).clone()
        progress("features", done, len(recordings))
    return features


def _train_on_sequences(
    tcn: Tcn,
    lessons: Sequence[_Lesson],
    features: Mapping[str, Tensor],
    settings: TrainingSettings,
    progress: dataset.Progress,
) -> None:
    """The temporal network alone, on sequences longer than its memory."""
    rng = np.random.default_rng((settings.seed, 2))
    optimiser = _Optimiser([tcn], settings.sequence_learning_rate, settings.sequence_steps)
    for step in range(settings.sequence_steps):
        drawn = _draw(lessons, settings.sequences_per_step, settings.sequence_frames, rng)
        inputs = torch.stack([features[each.lesson.recording.name][torch.from_numpy(each.rows)] for each in drawn])
        optimiser.step(_loss(tcn(inputs), drawn, unscored=_UNSCORED_FRAMES))
        progress("sequences", step + 1, settings.sequence_steps)


class _Optimiser:
    """AdamW with one learning-rate cycle and a bound on the gradient."""

    def __init__(self, modules: Sequence[nn.Module], learning_rate: float, steps: int) -> None:
        for module in modules:
            module.train()
        self._parameters = [parameter for module in modules for parameter in module.parameters()]
        self._adam = torch.optim.AdamW(self._parameters, lr=learning_rate, weight_decay=_WEIGHT_DECAY)
        self._rate = torch.optim.lr_scheduler.OneCycleLR(self._adam, learning_rate, total_steps=steps + 1)

    def step(self, loss: Tensor) -> None:
        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, _GRADIENT_NORM)
        self._adam.step()
        self._rate.step()


def _loss(logits: Tensor, drawn: Sequence[_Sequence], *, unscored: int) -> Tensor:
    """Mean binary cross-entropy over the labels of the known frames, but for the first few, which have seen no
    movement yet; 0 where nothing is labelled.
    """
    truth = torch.from_numpy(np.stack([each.truth for each in drawn]))
    known = torch.from_numpy(np.stack([each.known for each in drawn]))[..., None] & (truth != UNKNOWN)
    known[:, :unscored] = False
    if not known.any():
        return 0.0 * logits.sum()
    return functional.binary_cross_entropy_with_logits(logits[known], truth[known].float())


def _validate(tcn: Tcn, lesson: _Lesson, features: Tensor, warmup_frames: int) -> list[_Validated]:
    """Probabilities of the frames that the pipeline would label, stretch by stretch."""
    tcn.eval()
    validated = []
    for start, stop in sorted(set(zip(lesson.starts.tolist(), lesson.stops.tolist(), strict=True))):
        rows, known = lesson.rows[start:stop], lesson.known[start:stop]
        with torch.inference_mode():
            probabilities = torch.sigmoid(tcn(features[torch.from_numpy(rows)][None])[0]).numpy()
        labelled = known & (np.cumsum(known) > warmup_frames)
        truth = lesson.recording.truth[rows]
        validated.append(_Validated(lesson.recording.subject, probabilities[labelled], truth[labelled]))
    return validated


def _choose_thresholds(spec: BehaviourSpec, k: int, validated: Sequence[_Validated]) -> Behaviour:
    """The enter and exit thresholds whose labels, decided as the pipeline does, agree best with the truth."""
    truth = _of_behaviour(k, validated)
    labelled = truth != UNKNOWN

    def agreement(behaviour: Behaviour) -> float:
        labels = np.concatenate([_labels(behaviour, stretch.probabilities[:, k]) for stretch in validated])
        return f1(labels[labelled], truth[labelled] == 1) or 0.0

    candidates = [
        Behaviour(
            name=spec.name,
            enter=enter,
            exit=round(enter * share, 2),
            min_bout_s=spec.min_bout_s,
            bridge_s=spec.bridge_s,
        )
        for enter in _ENTER_THRESHOLDS
        for share in _EXIT_SHARES
    ]
    return max(candidates, key=agreement)


def _of_behaviour(k: int, validated: Sequence[_Validated]) -> NDArray[np.int8]:
    return np.concatenate([stretch.truth[:, k] for stretch in validated])


def _labels(behaviour: Behaviour, probabilities: NDArray[np.float32]) -> NDArray[np.bool_]:
    rule = decide.Rule(
        behaviour.enter, behaviour.exit, round(behaviour.min_bout_s * RATE_FPS), round(behaviour.bridge_s * RATE_FPS)
    )
    state = decide.RuleState()
    labels = np.zeros(len(probabilities), np.bool_)
    for frame, probability in enumerate(probabilities.tolist()):
        labels[frame], state = decide.decide(probability, rule, state)
    return labels


def _scores(behaviours: Sequence[Behaviour], validated: Sequence[_Validated]) -> Iterator[Score]:
    for name in sorted({stretch.recording for stretch in validated}):
        of_recording = [stretch for stretch in validated if stretch.recording == name]
        for k, behaviour in enumerate(behaviours):
            probabilities = np.concatenate([stretch.probabilities[:, k] for stretch in of_recording])
            labels = np.concatenate([_labels(behaviour, stretch.probabilities[:, k]) for stretch in of_recording])
            marks = _of_behaviour(k, of_recording)
            labelled = marks != UNKNOWN
            if not labelled.any():
                continue  # nobody knows
            probabilities, labels, truth = probabilities[labelled], labels[labelled], marks[labelled] == 1
            yield Score(
                recording=name,
                behaviour=behaviour.name,
                frames=len(truth),
                prevalence=round(float(truth.mean()), 4),
                pr_auc=_rounded(average_precision(probabilities, truth)),
                f1=_rounded(f1(labels, truth)),
            )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _card(plan: Dataset, recordings: Sequence[Recording], scores: tuple[Score, ...]) -> TrainingCard:
    settings = plan.training
    return TrainingCard(
        summary="\n\n".join((plan.summary.strip(), *plan.caveats)),
        date=datetime.now(UTC).date().isoformat(),
        seed=settings.seed,
        recordings=tuple(dict.fromkeys(f"{recording.subject} ({recording.split})" for recording in recordings)),
        frames=sum(len(recording.ticks) for recording in recordings if recording.split == "train"),
        steps={"frames": settings.frame_steps, "sequences": settings.sequence_steps},
        versions={"mbr-live": __version__, "python": platform.python_version(), "torch": torch.__version__},
        scores=scores,
    )


def _write(
    out: Path, plan: Dataset, behaviours: tuple[Behaviour, ...], card: TrainingCard, trunk: Trunk, tcn: Tcn
) -> Bundle:
    manifest = Manifest(
        format=FORMAT,
        name=plan.name,
        behaviours=behaviours,
        crop_px=CROP_PX,
        rate_fps=RATE_FPS,
        feature_dim=trunk.feature_dim,
        state_size=tcn.state_size,
        receptive_field_frames=tcn.receptive_field_frames,
        warmup_frames=plan.warmup_frames,
        max_gap_s=plan.max_gap_s,
        files={},
        training=card,
    )
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(trunk, tcn, Path(folder))
        contents = {name: Path(folder, name).read_bytes() for name in (FEATURES, TEMPORAL)}
    return write_bundle(out, manifest, {**contents, CARD: _card_text(manifest).encode()})


def _card_text(manifest: Manifest) -> str:
    training = manifest.training
    names = ", ".join(manifest.behaviour_names)
    rows = [
        f"| {s.recording} | {s.behaviour} | {s.frames} | {s.prevalence:.3f} | {_shown(s.pr_auc)} | {_shown(s.f1)} |"
        for s in training.scores
    ]
    steps = " and ".join(f"{count} steps on {name}" for name, count in training.steps.items())
    versions = ", ".join(f"{name} {version}" for name, version in training.versions.items())
    return "\n".join(
        [
            f"# {manifest.name}",
            "",
            training.summary.strip(),
            "",
            f"- Behaviours: {names}, one probability each, {manifest.rate_fps} times a second",
            f"- Memory: {manifest.receptive_field_frames} frames; unknown for the first {manifest.warmup_frames}",
            f"- Trained on {training.date} with seed {training.seed}: {steps}, {training.frames} frames",
            f"- Recordings: {', '.join(training.recordings)}",
            f"- Versions: {versions}",
            "",
            "Scores on the validation recordings, which also chose the thresholds:",
            "",
            "| recording | behaviour | frames | prevalence | PR-AUC | F1 |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _score_table(scores: Sequence[Score]) -> Table:
    table = Table("recording", "behaviour", "frames", "prevalence", "PR-AUC", "F1", title="Validation recordings")
    for s in scores:
        table.add_row(s.recording, s.behaviour, str(s.frames), f"{s.prevalence:.3f}", _shown(s.pr_auc), _shown(s.f1))
    return table


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
