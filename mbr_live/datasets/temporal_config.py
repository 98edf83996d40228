"""What a temporal network can be told to be; the networks are in `mbr_live.training.temporal`, which needs torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Channels = Annotated[int, Field(ge=2)]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: Channels = 64
    dropout: Dropout = 0.3


class TcnConfig(_Config):
    """Causal temporal convolutional network; block i is dilated by 2**i."""

    kind: Literal["tcn"] = "tcn"
    blocks: Annotated[int, Field(ge=1, le=12)] = 4
    kernel: Annotated[int, Field(ge=2)] = 3


class LstmConfig(_Config):
    """Long short-term memory, from the past alone or (`offline`) from both sides."""

    kind: Literal["lstm"] = "lstm"
    layers: Annotated[int, Field(ge=1, le=8)] = 1
    offline: bool = False


class TransformerConfig(_Config):
    """Transformer whose frames attend to the `window_frames` up to them or, `offline`, also to as many after them."""

    kind: Literal["transformer"] = "transformer"
    layers: Annotated[int, Field(ge=1, le=8)] = 2
    heads: Annotated[int, Field(ge=1)] = 4
    window_frames: Annotated[int, Field(ge=2)] = 64
    offline: bool = False

    @model_validator(mode="after")
    def _heads_divide(self) -> TransformerConfig:
        if self.channels % self.heads:
            raise ValueError(f"channels = {self.channels} can not be divided among heads = {self.heads}")
        return self


TemporalConfig = Annotated[TcnConfig | LstmConfig | TransformerConfig, Field(discriminator="kind")]
