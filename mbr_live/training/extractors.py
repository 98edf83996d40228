"""Published networks as extractors, cut where their features are taken, and the weights that they start from.

The networks are timm's, and are cut by leaving out what comes after, so that every tensor keeps the name that it has in
published files; torchvision's files of ResNets have the same names. Scaling and normalisation are those of the weights
of these names, and are part of the exported graph, as is the resize.
"""

from __future__ import annotations

import hashlib
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from mbr_live.datasets.extractor_config import FROM_SCRATCH, IMAGENET, PictureSettings
from mbr_live.datasets.settings import Unfit
from mbr_live.training.models import IMAGENET_MEAN, IMAGENET_STD, Extractor, Trunk, TrunkConfig

_HALF = (0.5, 0.5, 0.5)
_HEADS = ("fc.", "classif.", "last_linear.")  # the classifiers of published files, which are left out here
_COUNTER = "num_batches_tracked"  # of a batch normalisation; older files lack it, and nothing reads it
_FLOOR = 1e-6
_UNREADABLE = (
    OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, safetensors.SafetensorError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Published:
    """A network that there are ImageNet weights of."""

    name: str  # of network and weights, as timm has them
    feature_dim: int
    last: str  # the part that the features are taken after
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of RGB from 0 to 1, as its weights were trained
    std: tuple[float, float, float] = IMAGENET_STD


_DEEP = "layer4.1.act1"  # first 1 x 1 of the second block of the last stage, with its norm and ReLU

PUBLISHED: Mapping[str, Published] = {
    "resnet18": Published("resnet18.tv_in1k", 512, "layer4"),
    "resnet50": Published("resnet50.tv_in1k", 2048, "layer4"),
    "resnet50-layer2": Published("resnet50.tv_in1k", 512, "layer2"),
    "resnet50-deep": Published("resnet50.tv_in1k", 512, _DEEP),
    "inception-resnet-v2": Published("inception_resnet_v2.tf_in1k", 1536, "conv2d_7b", _HALF, _HALF),
}


class PublishedExtractor(Extractor):
    """Crops uint8 [B, H, W, 3] RGB -> the mean over the picture of a network's maps, float32 [B, D]."""

    mean: Tensor
    std: Tensor

    def __init__(self, published: Published, body: nn.Module, resize_px: int | None) -> None:
        super().__init__()
        self.feature_dim, self.resize_px, self.body = published.feature_dim, resize_px, body
        self.register_buffer("mean", 255.0 * torch.tensor(published.mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255.0 * torch.tensor(published.std).view(1, 3, 1, 1))

    def forward(self, crops: Tensor) -> Tensor:
        pictures = crops.permute(0, 3, 1, 2).to(self.mean.dtype)
        if self.resize_px:
            size = (self.resize_px, self.resize_px)
            pictures = functional.interpolate(pictures, size, mode="bilinear", align_corners=False)
        features: Tensor = self.body((pictures - self.mean) / self.std).mean(dim=(2, 3))
        return features


class MaximumNormalised(Extractor):
    """The features of another extractor, each vector divided by its largest value."""

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.feature_dim, self.extractor = extractor.feature_dim, extractor

    def forward(self, crops: Tensor) -> Tensor:
        features: Tensor = self.extractor(crops)
        return features / features.amax(dim=1, keepdim=True).clamp_min(_FLOOR)


def build_extractor(settings: PictureSettings, weights_file: Path | None = None) -> Extractor | None:
    """The network that sees the crops, with the weights that it starts from; None where pictures are not looked at.

    Raises Unfit where the weights are not to be had, or are not those of the network.
    """
    if settings.extractor == "none":
        return None
    extractor: Extractor
    if settings.extractor == "slim":
        extractor = Trunk(TrunkConfig())
    else:
        published = PUBLISHED[settings.extractor]
        network = _network(published.name)
        body = _cut(network, published.last)
        if settings.initial_weights == IMAGENET:
            body.load_state_dict(_of_body(body, _from_hub(published.name)))
        elif settings.initial_weights != FROM_SCRATCH and weights_file:
            _load(body, weights_file, settings.extractor, set(network.state_dict()))
        extractor = PublishedExtractor(published, body, settings.resize_px)
    return MaximumNormalised(extractor) if settings.features == "maximum" else extractor


def file_hash(weights_file: Path) -> str:
    """SHA-256 of a file of weights; Unfit where it can not be read."""
    try:
        with weights_file.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Unfit(f"Weights {weights_file} can not be read ({error.strerror}). Check the path.") from error


def _network(name: str, *, with_weights: bool = False) -> nn.Module:
    try:
        import timm  # takes seconds, and most trainings need none of it
    except ModuleNotFoundError as error:
        raise Unfit(f"Extractor {name}: {error.name} is not installed. Run: pip install 'mbr-live[train]'") from error
    network: nn.Module = timm.create_model(name, pretrained=with_weights)
    return network


def _cut(network: nn.Module, last: str) -> nn.Sequential:
    """A network up to and with its part `last` ("a", or "a.1.b" of stage a), whose tensors keep their names."""
    stage, *inner = last.split(".")
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for name, part in network.named_children():
        parts[name] = part
        if name == stage:
            break
    if inner:
        number, part_name = int(inner[0]), inner[1]
        blocks = list(parts[stage].children())
        parts[stage] = nn.Sequential(*blocks[:number], _cut(blocks[number], part_name))
    return nn.Sequential(parts)


def _from_hub(name: str) -> dict[str, Tensor]:
    """ImageNet weights, from the hub or from where an earlier download has left them."""
    try:
        return dict(_network(name, with_weights=True).state_dict())
    except (OSError, RuntimeError, ValueError) as error:
        raise Unfit(
            f"ImageNet weights of {name} can not be had from the hub ({type(error).__name__}). Save them on a machine "
            f'with a network (docs/training.md says how) and give the file: weights = "FILE" in the dataset file, or '
            '--weights FILE. Or train from scratch: weights = "none".'
        ) from error


def _read(weights_file: Path) -> dict[str, Tensor]:
    """Named tensors of a .pth or .safetensors file; nothing in it is executed."""
    file_hash(weights_file)
    try:
        if weights_file.suffix == ".safetensors":
            return safetensors.torch.load(weights_file.read_bytes())
        found = torch.load(weights_file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise _unreadable(
            weights_file, str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        ) from error
    if not isinstance(found, Mapping) or not all(isinstance(each, Tensor) for each in found.values()):
        raise _unreadable(weights_file, "it holds more, or other things, than named tensors")
    return dict(found)


def _unreadable(weights_file: Path, reason: str) -> Unfit:
    return Unfit(
        f"Weights {weights_file} are not a state dict that can be read without running code ({reason}). Give a .pth "
        "that torch.save(model.state_dict(), FILE) wrote, or a .safetensors file."
    )


def _load(body: nn.Module, weights_file: Path, extractor: str, published: set[str]) -> None:
    """Put the weights of a file into a network; `published` are the names of all tensors of the network before it was
    cut."""
    found = _read(weights_file)
    wanted = body.state_dict()
    for problem, names in (
        ("lack", [name for name in wanted if name not in found and not name.endswith(_COUNTER)]),
        ("hold, as no part of it,", [name for name in found if name not in published and not name.startswith(_HEADS)]),
        (
            "have another shape of",
            [name for name in wanted if name in found and found[name].shape != wanted[name].shape],
        ),
        ("are not finite in", [name for name in wanted if name in found and not torch.isfinite(found[name]).all()]),
    ):
        if names:
            raise Unfit(
                f"Weights {weights_file} are not those of {extractor}: they {problem} {_listed(names)}. Give a file of "
                f"this network, whole ({PUBLISHED[extractor].name}), or name the extractor that they are of."
            )
    body.load_state_dict(_of_body(body, found))


def _of_body(body: nn.Module, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: found.get(name, tensor) for name, tensor in body.state_dict().items()}


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
