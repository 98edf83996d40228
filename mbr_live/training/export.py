"""From trained networks to the bundle that runs."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path

from mbr_live import __version__
from mbr_live.bundle import Bundle, write_bundle
from mbr_live.datasets.dataset import Dataset
from mbr_live.datasets.extractor_config import FROM_SCRATCH, IMAGENET
from mbr_live.drift import Reference
from mbr_live.manifest import CARD, FORMAT, REFERENCE, Behaviour, Manifest, TrainingCard
from mbr_live.stages.kinematics import VERSION
from mbr_live.training.card import card_text
from mbr_live.training.extractors import file_hash
from mbr_live.training.models import Extractor, export_onnx
from mbr_live.training.temporal import TemporalModel
from mbr_live.types import CROP_PX, RATE_FPS


def write_model(
    out: Path,
    plan: Dataset,
    behaviours: tuple[Behaviour, ...],
    card: TrainingCard,
    extractor: Extractor | None,
    temporal: TemporalModel,
    reference: Reference | None = None,
) -> Bundle:
    """Export the networks and write the bundle of a dataset to `out`."""
    manifest = Manifest(
        format=FORMAT,
        name=plan.name,
        behaviours=behaviours,
        crop_px=CROP_PX,
        rate_fps=RATE_FPS,
        feature_dim=extractor.feature_dim if extractor else 0,
        kinematics=plan.model.channels,
        kinematics_version=VERSION if plan.model.channels else 0,
        crop=plan.model.crop,
        extractor=_described(plan, card),
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
        export_onnx(extractor, temporal, Path(folder), kinematics=len(plan.model.channels))
        contents = {name: Path(folder, name).read_bytes() for name in manifest.contents if name != CARD}
    contents[CARD] = card_text(manifest).encode()
    if reference:
        contents[REFERENCE] = reference.model_dump_json().encode()
    return write_bundle(out, manifest, contents)


def write_untaught(out: Path, plan: Dataset, extractor: Extractor | None, temporal: TemporalModel) -> Bundle:
    """A bundle to compute features with while its temporal network has yet to learn."""
    undecided = tuple(
        Behaviour(name=spec.name, enter=0.5, exit=0.5, min_bout_s=0.0, bridge_s=0.0) for spec in plan.behaviours
    )
    card = TrainingCard(
        summary="Features alone: its temporal network has learnt nothing.",
        date=datetime.now(UTC).date().isoformat(),
        seed=plan.training.seed,
        recordings=(),
        frames=1,
        steps={},
        versions={"mbr-live": __version__},
        scores=(),
    )
    return write_model(out, plan, undecided, card, extractor, temporal)


def _described(plan: Dataset, card: TrainingCard) -> str:
    """What the feature network is, for people."""
    model = plan.model
    if model.extractor == "none":
        return ""
    parts: list[str] = [model.extractor]
    if model.resize_px:
        parts.append(f"resized to {model.resize_px} px")
    if plan.weights_file:
        parts.append(f"weights {plan.weights_file.name} ({file_hash(plan.weights_file)[:12]})")
    elif model.initial_weights == IMAGENET:
        parts.append("ImageNet weights")
    if model.initial_weights != FROM_SCRATCH:
        stays = model.is_frozen and not card.steps.get("fine-tuning")
        parts.append("frozen" if stays else "trained further")
    if model.features == "maximum":
        parts.append("each vector divided by its maximum")
    return ", ".join(parts)
