"""The card of a bundle: what the model was trained on and how well it does, as data and for people to read."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from rich.table import Table

from mbr_live import __version__
from mbr_live.bundle import Manifest, Score, TrainingCard
from mbr_live.dataset import Dataset
from mbr_live.preparation import Recording


def training_card(
    plan: Dataset,
    recordings: Sequence[Recording],
    steps: Mapping[str, int],
    versions: Mapping[str, str],
    scores: Sequence[Score],
) -> TrainingCard:
    """The card of a model that was trained today on `recordings`; `versions` are of the libraries that trained it."""
    return TrainingCard(
        summary="\n\n".join((plan.summary.strip(), *plan.caveats)),
        date=datetime.now(UTC).date().isoformat(),
        seed=plan.training.seed,
        recordings=tuple(dict.fromkeys(f"{recording.subject} ({recording.split})" for recording in recordings)),
        frames=sum(len(recording.ticks) for recording in recordings if recording.split == "train"),
        steps=dict(steps),
        versions={"mbr-live": __version__, "python": platform.python_version(), **versions},
        scores=tuple(scores),
    )


def card_text(manifest: Manifest) -> str:
    """The card as Markdown."""
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
            *_sees(manifest),
            f"- Memory: {_memory(manifest)}; unknown for the first {manifest.warmup_frames} frames",
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


def _sees(manifest: Manifest) -> Iterator[str]:
    """Lines on what the model takes besides the crop of a window of its own finding."""
    if manifest.kinematics:
        crop = f"{manifest.feature_dim} features of the crop and " if manifest.feature_dim else ""
        yield f"- Sees: {crop}{len(manifest.kinematics)} kinematic channels"
    if manifest.extractor:
        yield f"- Feature network: {manifest.extractor}"
    if manifest.crop == "silhouette":
        yield "- Crop: the silhouette of the animal in white on black"
    if manifest.window_px:
        yield f"- Crop window: {manifest.window_px} px, unless the camera has one of its own"


def _memory(manifest: Manifest) -> str:
    frames = manifest.receptive_field_frames
    reach = f"{frames} frames" if frames else "no bound"
    return reach if manifest.causal else f"{reach}, later frames among them, so for recorded files alone"


def score_table(scores: Sequence[Score]) -> Table:
    """The scores of the validation recordings, for a terminal."""
    table = Table("recording", "behaviour", "frames", "prevalence", "PR-AUC", "F1", title="Validation recordings")
    for s in scores:
        table.add_row(s.recording, s.behaviour, str(s.frames), f"{s.prevalence:.3f}", _shown(s.pr_auc), _shown(s.f1))
    return table


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
