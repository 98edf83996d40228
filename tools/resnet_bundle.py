"""A benchmark bundle: ResNet-50 cut after `layer2` (512 features), a TCN of 253 frames, and int8 features.

    pip install torchvision
    python tools/resnet_bundle.py --out resnet50-512

The weights are random, from a seed: speed does not depend on them, and its labels mean nothing. Batch normalisation
takes its statistics from the simulated animal, so that activations are as large as those of a trained network.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from mbr_live.bundle import Bundle, write_bundle
from mbr_live.datasets.temporal_config import TcnConfig
from mbr_live.engines.parity import probe
from mbr_live.manifest import CARD, FEATURES, TEMPORAL, Behaviour, Manifest, TrainingCard
from mbr_live.quantisation.calibrate import Given, calibrate
from mbr_live.simulation.camera import record
from mbr_live.training.models import export_onnx
from mbr_live.training.temporal import Tcn

FEATURE_DIM = 512
BEHAVIOURS = ("first", "second")
TEXT = "ResNet-50 cut after layer2 with random weights, for measuring speed. Its labels mean nothing.\n"


class CutResNet(nn.Module):
    """ResNet-50 (He et al. 2016) to `layer2` and the mean over the picture: crops [B, H, W, 3] -> features [B, 512]."""

    mean: Tensor
    std: Tensor
    feature_dim = FEATURE_DIM

    def __init__(self) -> None:
        super().__init__()
        net = resnet50(weights=None)
        self.layers = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2)
        self.register_buffer("mean", 255.0 * torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1))
        self.register_buffer("std", 255.0 * torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1))

    def forward(self, crops: Tensor) -> Tensor:
        pictures = crops.permute(0, 3, 1, 2).to(self.mean.dtype)
        features: Tensor = self.layers((pictures - self.mean) / self.std).mean(dim=(2, 3))
        return features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="of simulated recording to calibrate int8 on")
    options = parser.parse_args()
    made = resnet_bundle(options.out, options.seed, options.seconds)
    print(f"{made.path}: {made.sha256[:12]}", file=sys.stderr)


def resnet_bundle(out: Path, seed: int, seconds: float) -> Bundle:
    torch.manual_seed(seed)
    trunk, temporal = CutResNet(), Tcn(TcnConfig(blocks=6), feature_dim=FEATURE_DIM, behaviours=len(BEHAVIOURS))
    normalise(trunk)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export_onnx(trunk, temporal, folder)  # type: ignore[arg-type]
        contents = {name: (folder / name).read_bytes() for name in (FEATURES, TEMPORAL)}
        exact = write_bundle(folder / "bundle", manifest(temporal, seed), {**contents, CARD: TEXT.encode()})
        video = folder / "box.mp4"
        record("box", seed, seconds, video, folder / "box.csv")
        return calibrate(
            exact,
            [Given(video.name, (video,))],
            out,
            folder / "frames.json",
            progress=lambda what, done: print(f"\r{what}: {done}   ", end="", file=sys.stderr),
        )


def normalise(trunk: nn.Module) -> None:
    """Set the statistics of batch normalisation to those of the probe."""
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over all batches
    with torch.no_grad():
        trunk.train()(torch.from_numpy(np.ascontiguousarray(probe())))
    trunk.eval()


def manifest(temporal: Tcn, seed: int) -> Manifest:
    # Thresholds that random logits do not cross, so that rounding does not toss labels about.
    rule = {"enter": 0.99, "exit": 0.98, "min_bout_s": 0.3, "bridge_s": 0.2}
    return Manifest(
        format=1, name="resnet50-512-random", crop_px=160, rate_fps=10, feature_dim=FEATURE_DIM,
        behaviours=tuple(Behaviour(name=name, **rule) for name in BEHAVIOURS),
        state_size=temporal.state_size, receptive_field_frames=temporal.receptive_field_frames,
        warmup_frames=20, max_gap_s=0.5, files={},
        training=TrainingCard(
            summary=TEXT, date="2026-11-25", seed=seed, recordings=("none",), frames=1, steps={},
            versions={"torch": torch.__version__}, scores=(),
        ),
    )  # fmt: skip


if __name__ == "__main__":
    main()
