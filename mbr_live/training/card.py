"""The card of a bundle: what the model was trained on and how well it does, as data and for people to read."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
from rich.markup import escape
from rich.table import Table

from mbr_live import __version__
from mbr_live.annotation.marks import Marks
from mbr_live.datasets.dataset import Dataset
from mbr_live.manifest import Data, Fit, Manifest, Score, TrainingCard
from mbr_live.training.fitting import Fitted, scores
from mbr_live.training.preparation import Recording
from mbr_live.types import UNKNOWN


def training_card(
    plan: Dataset,
    recordings: Sequence[Recording],
    steps: Mapping[str, int],
    versions: Mapping[str, str],
    fitted: Fitted,
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
        scores=tuple(scores(fitted.behaviours, fitted.validated)),
        data=tuple(_data(plan, recordings)),
        fits=fitted.fits,
    )


def _data(plan: Dataset, recordings: Sequence[Recording]) -> Iterator[Data]:
    specs = {spec.name: spec for spec in plan.all_recordings()}
    together: dict[tuple[str, str, str, str], list[Marks]] = {}
    for recording in recordings:
        spec = specs[recording.name]
        where = (spec.group, spec.condition, spec.camera, recording.split)
        together.setdefault(where, []).append(recording.truth)
    for (group, condition, camera, split), parts in together.items():
        truth = np.concatenate(parts)
        yield Data(
            group=group,
            condition=condition,
            camera=camera,
            split=split,
            recordings=len(parts),
            frames=len(truth),
            labelled=int(np.count_nonzero(np.any(truth != UNKNOWN, axis=1))),
            shown={each.name: int(np.count_nonzero(truth[:, k] == 1)) for k, each in enumerate(plan.behaviours)},
        )


def card_text(manifest: Manifest) -> str:
    """The card as Markdown."""
    training = manifest.training
    names = ", ".join(manifest.behaviour_names)
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
            *_score_lines(training.scores),
            "",
            *_data_lines(manifest),
            *_fit_lines(manifest),
        ]
    )


def _data_lines(manifest: Manifest) -> Iterator[str]:
    """Whose recordings it was made of, and what these show."""
    if not manifest.training.data:
        return
    names = manifest.behaviour_names
    yield from ("Frames that show the animal, those of them that somebody labelled, and what they show:", "")
    yield f"| group | condition | camera | split | recordings | frames | labelled | {' | '.join(names)} |"
    yield "|" + "---|" * (7 + len(names))
    for each in manifest.training.data:
        shown = " | ".join(str(each.shown.get(name, 0)) for name in names)
        where = f"{each.group} | {each.condition} | {each.camera} | {each.split}"
        yield f"| {where} | {each.recordings} | {each.frames} | {each.labelled} | {shown} |"
    yield ""


def _fit_lines(manifest: Manifest) -> Iterator[str]:
    """How labels are decided, and where that comes from."""
    if not manifest.training.fits:
        return
    says = "`fit`: by the validation recordings; `given`: by a person"
    if any("usual" in (fit.thresholds, fit.min_bout, fit.bridge) for fit in manifest.training.fits):
        says += "; `usual`: by nobody, since these recordings show the behaviour never or always"
    yield from (f"Labels are decided by, in this order ({says}):", "")
    yield "| behaviour | calibration | enter and exit threshold | bridge | minimum bout | fitted to | PR-AUC | F1 |"
    yield "|---|---|---|---|---|---|---|---|"
    fits = {fit.behaviour: fit for fit in manifest.training.fits}
    for behaviour in manifest.behaviours:
        fit = fits[behaviour.name]
        decided = (
            f"{behaviour.enter}, {behaviour.exit} ({fit.thresholds})",
            f"{behaviour.bridge_s} s ({fit.bridge})",
            f"{behaviour.min_bout_s} s ({fit.min_bout})",
            f"{fit.frames} frames, {fit.bouts} bouts",
        )
        scores = f"{_shown(fit.pr_auc)} | {_shown(fit.f1)}"
        yield f"| {behaviour.name} | {_calibration(fit)} | {' | '.join(decided)} | {scores} |"
    yield ""


def _calibration(fit: Fit) -> str:
    if fit.calibration in ("none", "weights"):
        return fit.calibration
    errors = f"expected error {_shown(fit.calibration_error_before)} before, {_shown(fit.calibration_error)} with it"
    return f"{fit.calibration}: {fit.scale:.3f} x logit {fit.offset:+.3f}, {errors}"


def _score_lines(of: Sequence[Score]) -> Iterator[str]:
    if not of:
        yield "Trained on all recordings: none was kept aside to score it on. Cross-validation scores models like it."
        return
    yield from ("Scores on the validation recordings, which also chose the thresholds:", "")
    yield from ("| recording | behaviour | frames | prevalence | PR-AUC | F1 |", "|---|---|---|---|---|---|")
    for s in of:
        figures = f"{s.prevalence:.3f} | {_shown(s.pr_auc)} | {_shown(s.f1)}"
        yield f"| {s.recording} | {s.behaviour} | {s.frames} | {figures} |"


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


def score_table(of: Sequence[Score]) -> Table:
    """The scores of the validation recordings, for a terminal."""
    table = Table("recording", "behaviour", "frames", "prevalence", "PR-AUC", "F1", title="Validation recordings")
    for s in of:
        table.add_row(
            escape(s.recording), s.behaviour, str(s.frames), f"{s.prevalence:.3f}", _shown(s.pr_auc), _shown(s.f1)
        )
    return table


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
