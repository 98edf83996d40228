"""The feature network as a torch module for training, and the export of both networks to the graphs of a bundle.

The residual trunk turns one crop into a feature vector; it sees no motion. What comes after it is in
`mbr_live.training.temporal`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from mbr_live.manifest import FEATURES, TEMPORAL
from mbr_live.training.temporal import TemporalModel
from mbr_live.types import CROP_PX

OPSET = 17
"""The newest ONNX operator set that every runtime we plan for reads."""

_EXAMPLE_FRAMES = 8  # of the sequence that an export is traced with; its length does not enter the graph

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Extractor(nn.Module):
    """Crops uint8 [B, H, W, 3] RGB -> features float32 [B, D]."""

    feature_dim: int
    """D, numbers per crop."""


class TrunkConfig(BaseModel):
    """Channels of the stem and of each residual stage, and blocks per stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    widths: Annotated[tuple[int, ...], Field(min_length=2)] = (24, 32, 64, 128)
    blocks: Annotated[int, Field(ge=1)] = 1


class Trunk(Extractor):
    """A slim ResNet (He et al. 2016, basic blocks): crops uint8 [B, H, W, 3] RGB -> features float32 [B, D].

    The stem goes to a quarter of the resolution at once, which makes it three times as fast as the usual stem. The
    maximum over the picture is taken besides the mean, since the animal is a small part of it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        stem, *stages = config.widths
        self.feature_dim = 2 * stages[-1]
        self.register_buffer("mean", 255.0 * torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", 255.0 * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        layers: list[nn.Module] = [_convolution(3, stem, stride=4, size=7), nn.ReLU()]
        channels = stem
        for width in stages:
            for block in range(config.blocks):
                layers.append(_ResidualBlock(channels, width, stride=1 if block else 2))
                channels = width
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm1d(self.feature_dim)

    def forward(self, crops: Tensor) -> Tensor:
        pictures = crops.permute(0, 3, 1, 2).to(self.mean.dtype)
        maps = self.layers((pictures - self.mean) / self.std)
        features: Tensor = self.norm(torch.cat((maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))), dim=1))
        return features


class _ResidualBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.first = _convolution(channels_in, channels, stride=stride)
        self.second = _convolution(channels, channels)
        same = stride == 1 and channels_in == channels
        self.skip = nn.Identity() if same else _convolution(channels_in, channels, stride=stride, size=1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.second(functional.relu(self.first(x)))
        return functional.relu(inner + self.skip(x))


def _convolution(channels_in: int, channels: int, *, stride: int = 1, size: int = 3) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels))


class _Step(nn.Module):
    """The one-step form as a module of its own, which is what the exporter wants."""

    def __init__(self, temporal: TemporalModel) -> None:
        super().__init__()
        self.temporal = temporal

    def forward(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.temporal.step(features, state)


def export_onnx(trunk: Extractor | None, temporal: TemporalModel, folder: Path, *, kinematics: int = 0) -> None:
    """Write features.onnx, if there is a trunk, and temporal.onnx to `folder`: the latter one step of a live model, or
    whole sequences of one that looks ahead. The batch dimension is free, or the length of the sequence.

    `kinematics` is the number of channels that the temporal network takes besides the trunk's features. The modules
    are left in evaluation mode.
    """
    if trunk:
        crops = torch.zeros(1, CROP_PX, CROP_PX, 3, dtype=torch.uint8)
        _export(trunk, (crops,), folder / FEATURES, ["crops"], ["features"])
    input_dim = (trunk.feature_dim if trunk else 0) + kinematics
    if temporal.is_live:
        features, state = torch.zeros(1, input_dim), torch.zeros(1, temporal.state_size)
        _export(_Step(temporal), (features, state), folder / TEMPORAL, ["features", "state"], ["logits", "state_out"])
    else:
        sequence = torch.zeros(1, _EXAMPLE_FRAMES, input_dim)
        _export(temporal, (sequence,), folder / TEMPORAL, ["features"], ["logits"], free={1: "T"})


def _export(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    file: Path,
    input_names: list[str],
    output_names: list[str],
    *,
    free: Mapping[int, str] = MappingProxyType({0: "B"}),
) -> None:
    module.eval()
    with warnings.catch_warnings():
        # The newer exporter can not emit opset 17, so the older one is used on purpose.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.|mbr_live\.training\.models")
        # What an LSTM's trace fixes, the batch and the number of features, stays as it is; only the length varies.
        warnings.filterwarnings("ignore", message="Converting a tensor", module=r"torch\.nn\.modules\.rnn")
        warnings.filterwarnings("ignore", message="Exporting a model to ONNX with a batch_size other than 1")
        torch.onnx.export(
            module,
            inputs,
            str(file),
            input_names=input_names,
            output_names=output_names,
            dynamic_axes={name: dict(free) for name in (*input_names, *output_names)},
            opset_version=OPSET,
            dynamo=False,
        )
