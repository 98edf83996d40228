"""`mbr-live ensemble`: several bundles as one bundle, whose logits are the mean of theirs, or weighted as was learnt.

The result runs live and offline like any other, at the cost of all its members. With a dataset, its thresholds, and
weights where they are learnt, are fitted to the validation recordings, which no member may have been trained on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from mbr_live import __version__
from mbr_live.annotation.marks import runs, where_judged
from mbr_live.batch.batch import Job, run_job
from mbr_live.bundle import Bundle, check_replaceable, load_bundle, write_bundle
from mbr_live.datasets.dataset import Dataset, Progress, cache_folder, read_dataset
from mbr_live.engines.openvino_engine import OpenVinoEngine
from mbr_live.evaluation.comparison import Compared, Truth, compare
from mbr_live.evaluation.program import truths
from mbr_live.manifest import CARD, FORMAT, REFERENCE, Behaviour, Data, Fit, Manifest, Score, TrainingCard
from mbr_live.names import bundle_name
from mbr_live.progress import bars
from mbr_live.sinks.label_log import LABELS_SUFFIX
from mbr_live.training import fitting
from mbr_live.training.card import card_text, score_table
from mbr_live.training.fitting import Fitted, Validated
from mbr_live.training.merging import Merged, Weights, check_mergeable, merge
from mbr_live.training.probability_calibration import fit_weights
from mbr_live.training.reference import build_reference
from mbr_live.types import CROP_PX, RATE_FPS, UNKNOWN, MbrError

WeightsKind = Literal["mean", "learnt"]
_LEAST_P = 1e-6  # a label log has six decimals


def ensemble_program(members: Sequence[Path], out: Path, kind: WeightsKind, dataset_file: Path | None) -> None:
    """Make an ensemble with progress bars; print its scores, where there are recordings to score."""
    console = Console(stderr=True)
    with bars(console) as show:
        bundle = ensemble(members, out, kind, dataset_file, progress=show)
    if bundle.manifest.training.scores:
        console.print(score_table(bundle.manifest.training.scores))
    console.print(f"Bundle written to {bundle.path}")


def ensemble(
    members: Sequence[Path],
    out: Path,
    kind: WeightsKind = "mean",
    dataset_file: Path | None = None,
    *,
    progress: Progress,
    cache: Path | None = None,
) -> Bundle:
    """Write the ensemble of `members` to `out`.

    Without a dataset, thresholds, minimum bouts and bridges are the means of the members'. MbrError where the members
    do not go together, or one of them was trained on what is to be fitted to.
    """
    check_replaceable(out)
    try:
        bundle_name(out.resolve().name)
    except ValueError as error:
        raise MbrError(f"ensemble: {out}: {error}. Choose another folder.") from error
    bundles = [load_bundle(path) for path in members]
    check_mergeable(bundles)
    weights = Weights.mean(len(bundles), len(bundles[0].manifest.behaviours))
    if dataset_file is None:
        if kind == "learnt":
            raise MbrError(
                "ensemble: weights are learnt from validation recordings. Give --dataset, or --weights mean."
            )
        behaviours = _mean_behaviours(bundles)
        merged = merge(bundles, weights)
        training = _card(bundles, weights, _as_members(behaviours), (), "as the members do, on average")
        return _write(out, bundles, merged, behaviours, training)
    plan = read_dataset(dataset_file)
    _check_unseen(plan, bundles)
    return _fitted(out, bundles, kind, plan, cache or cache_folder(), progress)


def _fitted(
    out: Path, bundles: Sequence[Bundle], kind: WeightsKind, plan: Dataset, cache: Path, progress: Progress
) -> Bundle:
    """As `ensemble`, with weights and thresholds by the validation recordings of `plan`."""
    scored = [each for each in truths(plan, "validation", cache) if np.any(each.annotations.marks != UNKNOWN)]
    if not scored:
        raise MbrError(
            f"Dataset {plan.name}: none of its validation recordings is labelled. Validate on labelled ones."
        )
    names = bundles[0].manifest.behaviour_names
    if tuple(each.name for each in plan.behaviours) != names:
        raise MbrError(f"Dataset {plan.name}: its behaviours are not those of the members ({', '.join(names)}).")
    weights = Weights.mean(len(bundles), len(names))
    with tempfile.TemporaryDirectory() as folder:
        if kind == "learnt":
            said = [_labelled(each, scored, plan, Path(folder, str(n)), progress) for n, each in enumerate(bundles)]
            weights = _learnt(said, len(names))
        whole = _write(
            Path(folder, "whole"), bundles, merge(bundles, weights), _mean_behaviours(bundles),
            _card(bundles, weights, (), (), ""),
        )  # fmt: skip
        found = _labelled(whole, scored, plan, Path(folder, "labels"), progress)
    validated = [stretch for each in found for stretch in _stretches(each, whole.manifest.max_gap_frames)]
    if not any(np.any(stretch.truth != UNKNOWN) for stretch in validated):
        raise MbrError(
            f"Dataset {plan.name}: no judged frame of the validation recordings is labelled by the members, whose "
            f"warm-up is {whole.manifest.warmup_frames} frames. Validate on longer recordings."
        )
    calibration = "none" if kind == "learnt" else plan.training.calibration
    fitted = fitting.fit(
        plan.behaviours, plan.training.threshold, calibration, validated, whole.manifest.max_gap_frames
    )
    scale, offset = (
        np.array([getattr(each, name) for each in fitted.calibrations], np.float32) for name in ("scale", "offset")
    )
    weights = Weights(weights.members * scale, weights.offset * scale + offset)
    how = f"by the validation recordings of {plan.name}; weights: {kind}"
    training = _card(
        bundles, weights, _fits(fitted, kind), tuple(fitting.scores(fitted.behaviours, fitted.validated)), how
    )
    reference = build_reference(
        plan, [spec.name for spec in plan.all_recordings() if spec.split != "test"], fitted.validated, cache, progress
    )
    return _write(
        out, bundles, merge(bundles, weights), fitted.behaviours, training, reference.model_dump_json().encode()
    )


def _check_unseen(plan: Dataset, bundles: Sequence[Bundle]) -> None:
    """MbrError where a member was trained on a group that the weights or thresholds would be fitted to."""
    kept = [spec for spec in plan.all_recordings() if spec.split == "validation"]
    for bundle in bundles:
        groups = {each.group for each in bundle.manifest.training.data if each.split == "train"}
        recordings = set(bundle.manifest.training.recordings)  # all that older cards say
        seen = [spec.name for spec in kept if spec.group in groups or f"{spec.name} (train)" in recordings]
        if seen:
            raise MbrError(
                f"ensemble: {bundle.path} was trained on {', '.join(seen[:5])}, or another recording of that group, "
                f"which the dataset {plan.name} keeps for validation. What is fitted there would believe it too much: "
                "train it with the same splits."
            )


def _labelled(
    bundle: Bundle, scored: Sequence[Truth], plan: Dataset, folder: Path, progress: Progress
) -> list[Compared]:
    """What a bundle says of every recording, beside the truth."""
    engine, found = OpenVinoEngine(bundle), []
    for done, truth in enumerate(scored, 1):
        run_job(Job(truth.log_name, truth.videos), folder, bundle, engine, window_px=plan.window_px)
        found.append(compare(folder / f"{truth.log_name}{LABELS_SUFFIX}", truth))
        progress(f"labels of {bundle.manifest.name}", done, len(scored))
    return found


def _logits(compared: Compared) -> NDArray[np.float32]:
    """[N, K] from the probabilities of a label log; NaN where unknown."""
    p = compared.probabilities.clip(_LEAST_P, 1 - _LEAST_P)
    logits: NDArray[np.float32] = np.log(p / (1 - p)).astype(np.float32)
    return logits


def _learnt(said: Sequence[Sequence[Compared]], behaviours: int) -> Weights:
    """Weights by all frames that everybody says something of and that somebody judged."""
    logits = np.stack([np.concatenate([_logits(each) for each in of_member]) for of_member in said])
    truth = np.concatenate([where_judged(each.marks, each.judged) for each in said[0]])
    weights, offset = np.empty((len(said), behaviours), np.float32), np.empty(behaviours, np.float32)
    for k in range(behaviours):
        known = (truth[:, k] != UNKNOWN) & ~np.isnan(logits[:, :, k]).any(axis=0)
        weights[:, k], offset[k] = fit_weights(logits[:, known, k].T, truth[known, k] == 1)
    return Weights(weights, offset)


def _stretches(compared: Compared, max_gap_frames: int) -> Iterator[Validated]:
    """The labelled ticks of a log, cut where the pipeline began anew."""
    known: NDArray[np.bool_] = np.logical_not(np.isnan(compared.probabilities).any(axis=1))
    name = compared.truth.group if compared.truth.clip else compared.truth.recording
    logits = _logits(compared)
    cuts = [start for start, stop in runs(known.view(np.int8), 0).tolist() if stop - start > max_gap_frames]
    for rows in np.split(np.arange(len(known)), cuts):
        chosen = rows[known[rows]]
        if len(chosen):
            yield Validated(name, logits[chosen], compared.marks[chosen], compared.judged[chosen])


def _mean_behaviours(bundles: Sequence[Bundle]) -> tuple[Behaviour, ...]:
    """Each decided by the means of the members' numbers."""
    return tuple(
        Behaviour(name=each[0].name, **{
            name: round(float(np.mean([getattr(one, name) for one in each])), 2)
            for name in ("enter", "exit", "min_bout_s", "bridge_s")
        })
        for each in zip(*(bundle.manifest.behaviours for bundle in bundles), strict=True)
    )  # fmt: skip


def _as_members(behaviours: Sequence[Behaviour]) -> tuple[Fit, ...]:
    return tuple(
        Fit(
            behaviour=each.name, thresholds="members", min_bout="members", bridge="members", calibration="none",
            frames=0, bouts=0, pr_auc=None, f1=None, calibration_error=None, calibration_error_before=None,
        )
        for each in behaviours
    )  # fmt: skip


def _fits(fitted: Fitted, kind: WeightsKind) -> tuple[Fit, ...]:
    if kind == "mean":
        return fitted.fits
    return tuple(fit.model_copy(update={"calibration": "weights"}) for fit in fitted.fits)


def _card(
    bundles: Sequence[Bundle], weights: Weights, fits: tuple[Fit, ...], scores: tuple[Score, ...], how: str
) -> TrainingCard:
    """What the members' cards say, and how they were put together."""
    cards = [bundle.manifest.training for bundle in bundles]
    lines = [f"An ensemble of {len(bundles)} models. Labels are decided {how}."]
    for k, behaviour in enumerate(bundles[0].manifest.behaviour_names):
        parts = [f"{weight:.3f} x [{number}]" for number, weight in enumerate(weights.members[:, k], 1)]
        lines.append(f"Logit of {behaviour}: {' + '.join(parts)} {weights.offset[k]:+.3f}.")
    said = [
        f"[{n}] {bundle.manifest.name}: {card.summary}"
        for n, (bundle, card) in enumerate(zip(bundles, cards, strict=True), 1)
    ]
    return TrainingCard(
        summary="\n\n".join((*lines, *said)),
        date=datetime.now(UTC).date().isoformat(),
        seed=cards[0].seed,
        recordings=tuple(dict.fromkeys(chain.from_iterable(card.recordings for card in cards))),
        frames=max(card.frames for card in cards),
        steps={f"{n}: {stage}": count for n, card in enumerate(cards, 1) for stage, count in card.steps.items()},
        versions={**{name: text for card in cards for name, text in card.versions.items()}, "mbr-live": __version__},
        scores=scores,
        data=_once(card.data for card in cards),
        fits=fits,
    )


def _once(of_members: Iterable[Sequence[Data]]) -> tuple[Data, ...]:
    """What any member was made of, each once."""
    found: list[Data] = []
    for each in chain.from_iterable(of_members):
        if each not in found:
            found.append(each)
    return tuple(found)


def _write(
    out: Path,
    bundles: Sequence[Bundle],
    merged: Merged,
    behaviours: tuple[Behaviour, ...],
    training: TrainingCard,
    reference: bytes | None = None,
) -> Bundle:
    members = [bundle.manifest for bundle in bundles]
    reaches = [member.receptive_field_frames for member in members]
    manifest = Manifest(
        format=FORMAT,
        name=out.resolve().name,
        behaviours=behaviours,
        crop_px=CROP_PX,
        rate_fps=RATE_FPS,
        feature_dim=merged.feature_dim,
        crop=merged.crop,
        extractor=merged.extractor,
        kinematics=merged.kinematics,
        kinematics_version=max(member.kinematics_version for member in members),
        window_px=members[0].window_px,
        causal=members[0].causal,
        state_size=merged.state_size,
        receptive_field_frames=max(reaches) if all(reaches) else 0,
        warmup_frames=max(member.warmup_frames for member in members),
        max_gap_s=members[0].max_gap_s,
        files={},
        training=training,
    )
    contents = {**merged.contents, CARD: card_text(manifest).encode()}
    return write_bundle(out, manifest, contents | ({REFERENCE: reference} if reference else {}))
