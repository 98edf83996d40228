"""The networks, as torch modules for training, and their export to the ONNX graphs of a bundle.

Two parts: a residual trunk turns one crop into a feature vector (it sees no motion), and a causal temporal
convolutional network turns the features of a lane into one logit per behaviour. The latter has two forms with
the same weights: whole sequences for training, and one step with an explicit packed state for live use.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from mbr_live.bundle import FEATURES, TEMPORAL
from mbr_live.types import CROP_PX

OPSET = 17
"""The newest ONNX operator set that every runtime we plan for reads."""

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class TrunkConfig(BaseModel):
    """Channels of the stem and of each residual stage, and blocks per stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    widths: Annotated[tuple[int, ...], Field(min_length=2)] = (24, 32, 64, 128)
    blocks: Annotated[int, Field(ge=1)] = 1


class TcnConfig(BaseModel):
    """Shape of the temporal network; block i is dilated by 2**i."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: Annotated[int, Field(ge=2)] = 64
    blocks: Annotated[int, Field(ge=1, le=12)] = 4
    kernel: Annotated[int, Field(ge=2)] = 3
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3


class Trunk(nn.Module):
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
        self.register_buffer("mean", 255.0 * torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", 255.0 * torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1))
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


class Tcn(nn.Module):
    """Causal temporal convolutional network (Bai, Kolter & Koltun 2018).

    Normalisation is per frame (LayerNorm over channels), so that a frame's output depends on earlier frames
    through the convolutions alone. The packed state holds, one convolution after the other, the last
    (kernel - 1) * dilation inputs of each, oldest first; zeros are the zero padding before the first frame.
    """

    blocks: Sequence[_CausalBlock]

    def __init__(self, config: TcnConfig, *, feature_dim: int, behaviours: int) -> None:
        super().__init__()
        self.entry = nn.Linear(feature_dim, config.channels)
        self.entry_norm = nn.LayerNorm(config.channels)
        blocks = [_CausalBlock(config, dilation=2**index) for index in range(config.blocks)]
        self.blocks = cast(Sequence[_CausalBlock], nn.ModuleList(blocks))
        self.exit = nn.Linear(config.channels, behaviours)
        self.sizes = [conv.state_size for block in blocks for conv in (block.first, block.second)]
        self.state_size = sum(self.sizes)
        self.receptive_field_frames = 1 + self.state_size // config.channels

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, T, D] of whole sequences -> logits [B, T, K]."""
        x = self._enter(features)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.exit(x)
        return logits

    def step(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One frame: features [B, D], state [B, S] -> logits [B, K], state [B, S]."""
        x = self._enter(features)
        memories = iter(torch.split(state, self.sizes, dim=1))
        kept: list[Tensor] = []
        for block in self.blocks:
            x, first, second = block.step(x, next(memories), next(memories))
            kept += first, second
        return self.exit(x), torch.cat(kept, dim=1)

    def _enter(self, features: Tensor) -> Tensor:
        entered: Tensor = self.entry_norm(functional.relu(self.entry(features)))
        return entered


class _CausalBlock(nn.Module):
    def __init__(self, config: TcnConfig, *, dilation: int) -> None:
        super().__init__()
        self.first = _CausalConvolution(config.channels, config.kernel, dilation)
        self.second = _CausalConvolution(config.channels, config.kernel, dilation)
        self.norms = nn.ModuleList(nn.LayerNorm(config.channels) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        inner = self._activate(0, self.first(x))
        return functional.relu(x + self._activate(1, self.second(inner)))

    def step(self, x: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner, first = self.first.step(x, first)
        inner, second = self.second.step(self._activate(0, inner), second)
        return functional.relu(x + self._activate(1, inner)), first, second

    def _activate(self, index: int, x: Tensor) -> Tensor:
        active: Tensor = self.dropout(functional.relu(self.norms[index](x)))
        return active


class _CausalConvolution(nn.Module):
    """Dilated causal convolution, written as one linear map of the frames it taps, oldest first."""

    def __init__(self, channels: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.channels, self.dilation, self.reach = channels, dilation, (kernel - 1) * dilation
        self.state_size = self.reach * channels
        self.map = nn.Linear(kernel * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.shape[1]
        padded = functional.pad(x, (0, 0, self.reach, 0))
        taps = [padded[:, start : start + frames] for start in range(0, self.reach + 1, self.dilation)]
        mapped: Tensor = self.map(torch.cat(taps, dim=2))
        return mapped

    def step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        window = torch.cat((memory, x), dim=1)
        stride = self.dilation * self.channels
        taps = [window[:, start : start + self.channels] for start in range(0, window.shape[1], stride)]
        return self.map(torch.cat(taps, dim=1)), window[:, self.channels :]


class _Step(nn.Module):
    """The one-step form as a module of its own, which is what the exporter wants."""

    def __init__(self, tcn: Tcn) -> None:
        super().__init__()
        self.tcn = tcn

    def forward(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.tcn.step(features, state)


def export_onnx(trunk: Trunk, tcn: Tcn, folder: Path) -> None:
    """Write features.onnx and temporal.onnx, with a free batch dimension, to `folder`.

    The modules are left in evaluation mode.
    """
    crops = torch.zeros(1, CROP_PX, CROP_PX, 3, dtype=torch.uint8)
    features, state = torch.zeros(1, trunk.feature_dim), torch.zeros(1, tcn.state_size)
    _export(trunk, (crops,), folder / FEATURES, ["crops"], ["features"])
    _export(_Step(tcn), (features, state), folder / TEMPORAL, ["features", "state"], ["logits", "state_out"])


def _export(
    module: nn.Module, inputs: tuple[Tensor, ...], file: Path, input_names: list[str], output_names: list[str]
) -> None:
    module.eval()
    with warnings.catch_warnings():
        # The newer exporter can not emit opset 17, so the older one is used on purpose.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.|mbr_live\.models")
        torch.onnx.export(
            module,
            inputs,
            str(file),
            input_names=input_names,
            output_names=output_names,
            dynamic_axes={name: {0: "B"} for name in (*input_names, *output_names)},
            opset_version=OPSET,
            dynamo=False,
        )
