"""From trained networks to the bundle that runs."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mbr_live.bundle import CARD, FORMAT, Behaviour, Bundle, Manifest, TrainingCard, write_bundle
from mbr_live.card import card_text
from mbr_live.dataset import Dataset
from mbr_live.kinematics import VERSION
from mbr_live.models import Trunk, export_onnx
from mbr_live.temporal import TemporalModel
from mbr_live.types import CROP_PX, RATE_FPS


def write_model(
    out: Path,
    plan: Dataset,
    behaviours: tuple[Behaviour, ...],
    card: TrainingCard,
    trunk: Trunk | None,
    temporal: TemporalModel,
) -> Bundle:
    """Export the networks and write the bundle of a dataset to `out`."""
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
