"""What a dataset file can say of the feature network; `mbr_live.training.extractors` has the networks."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mbr_live.datasets.recordings import Section
from mbr_live.manifest import CropKind

ExtractorName = Literal[
    "slim", "resnet18", "resnet50", "resnet50-layer2", "resnet50-deep", "inception-resnet-v2", "none"
]

IMAGENET = "imagenet"
FROM_SCRATCH = "none"

OWN: tuple[ExtractorName, ...] = ("slim", "none")
"""Extractors that nobody has published weights for."""


class PictureSettings(Section):
    """What the model makes of the crop of a frame."""

    extractor: ExtractorName = "slim"  # the network that sees the crops; none: kinematics alone
    weights: str | None = None  # to start from: "imagenet", "none" or a file; default: imagenet where there are some
    frozen: bool | None = None  # whether they stay as they are; default: where there are some
    crop: CropKind = "rgb"  # silhouette: the animal in white on black
    resize_px: Annotated[int, Field(ge=75, le=640)] | None = None  # side of what the network sees; default: the crop's
    features: Literal["plain", "maximum"] = "plain"  # maximum: each feature vector is divided by its largest value

    @model_validator(mode="after")
    def _picture_fits(self) -> Self:
        own = self.extractor in OWN
        for name, given in (("weights", self.weights not in (None, FROM_SCRATCH)), ("resize_px", self.resize_px)):
            if own and given:
                raise ValueError(f"{name} is of published networks, and extractor is '{self.extractor}'")
        if self.extractor == "none" and (self.crop != "rgb" or self.features != "plain"):
            raise ValueError("crop and features are of pictures, and extractor is 'none'")
        if self.frozen and self.initial_weights == FROM_SCRATCH:
            raise ValueError("frozen = true would keep random weights; give weights, or frozen = false")
        return self

    @property
    def initial_weights(self) -> str:
        """ "imagenet", "none", or a file."""
        return self.weights or (FROM_SCRATCH if self.extractor in OWN else IMAGENET)

    @property
    def is_frozen(self) -> bool:
        """Whether the extractor sees frames with the weights that it was given, and learns nothing from them alone."""
        return self.initial_weights != FROM_SCRATCH if self.frozen is None else self.frozen
