"""Networks that turn the features of a lane into one logit per behaviour, as torch modules for training.

A live model has two forms with the same weights: whole sequences for training, and one step with an explicit packed
state. Zeros are the state before the first frame. The two forms agree at every frame, and a frame's output depends on
no later one. An offline model looks ahead: it has the whole-sequence form alone, and live refuses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mbr_live.datasets.temporal_config import LstmConfig, TcnConfig, TemporalConfig, TransformerConfig
from mbr_live.types import MbrError

LIMIT = 4.0  # standard deviations: further out, an input says no more


class TemporalModel(nn.Module):
    """Features [B, T, D] -> logits [B, T, K], with dropout where the model is being trained."""

    state_size: int
    """S, numbers of the packed state; 0 for an offline model, which has none."""

    receptive_field_frames: int
    """Frames that an output can depend on; 0 where there is no bound."""

    def step(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One frame: features [B, D], state [B, S] -> logits [B, K], state [B, S]. Live models alone have it."""
        raise TypeError(f"{type(self).__name__} looks ahead: it takes whole sequences, not frame by frame")

    @property
    def is_live(self) -> bool:
        """Whether it can label frame by frame."""
        return self.state_size > 0


def build_temporal(config: TemporalConfig, *, feature_dim: int, behaviours: int) -> TemporalModel:
    """An untrained model of D = `feature_dim` features and K = `behaviours`."""
    match config:
        case TcnConfig():
            return Tcn(config, feature_dim=feature_dim, behaviours=behaviours)
        case LstmConfig():
            return Lstm(config, feature_dim=feature_dim, behaviours=behaviours)
        case TransformerConfig():
            return Transformer(config, feature_dim=feature_dim, behaviours=behaviours)


class Ensemble(TemporalModel):
    """Members with weights of their own, each on some columns of the input; the logits are the mean of theirs.

    The last columns of the input are as they come, and are standardised here. The packed state is the members' states,
    one after the other.
    """

    members: Sequence[TemporalModel]
    mean: Tensor
    std: Tensor

    def __init__(
        self, members: Sequence[TemporalModel], columns: Sequence[Sequence[int]], *, plain: int, raw: int
    ) -> None:
        """`columns` are what each member takes of the `plain` columns of the input and the `raw` ones after them, which
        are to be standardised.
        """
        super().__init__()
        if len({member.is_live for member in members}) > 1:
            raise MbrError("An ensemble mixes members that look ahead with causal ones. Give all the same `offline`.")
        self.members = cast(Sequence[TemporalModel], nn.ModuleList(members))
        self.columns = [list(each) for each in columns]
        self.plain_columns, self.raw_columns = plain, raw
        self.register_buffer("mean", torch.zeros(raw))
        self.register_buffer("std", torch.ones(raw))
        self.sizes = [member.state_size for member in members]
        self.state_size = sum(self.sizes)
        reaches = [member.receptive_field_frames for member in members]
        self.receptive_field_frames = max(reaches) if all(reaches) else 0

    def forward(self, features: Tensor) -> Tensor:
        inputs = self.standardised(features)
        logits = [self.of_member(number, inputs) for number in range(len(self.columns))]
        return torch.stack(logits).mean(dim=0)

    def step(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self.standardised(features)
        logits, kept = [], []
        for member, columns, memory in zip(
            self.members, self.columns, torch.split(state, self.sizes, dim=1), strict=True
        ):
            said, memory = member.step(inputs[..., columns], memory)
            logits.append(said)
            kept.append(memory)
        return torch.stack(logits).mean(dim=0), torch.cat(kept, dim=1)

    def standardised(self, features: Tensor) -> Tensor:
        """Inputs [..., D + M] with the last M at mean 0, standard deviation 1 and within LIMIT."""
        plain, raw = torch.split(features, [self.plain_columns, self.raw_columns], dim=-1)
        return torch.cat((plain, ((raw - self.mean) / self.std).clamp(-LIMIT, LIMIT)), dim=-1)

    def of_member(self, number: int, inputs: Tensor) -> Tensor:
        """Logits [B, T, K] of one member from standardised inputs [B, T, D + M]."""
        logits: Tensor = self.members[number](inputs[..., self.columns[number]])
        return logits


class Calibrated(TemporalModel):
    """A model whose logits are scaled and shifted, per behaviour."""

    scale: Tensor
    offset: Tensor

    def __init__(self, model: TemporalModel, scale: Sequence[float], offset: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.state_size, self.receptive_field_frames = model.state_size, model.receptive_field_frames
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("offset", torch.tensor(offset))

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.model(features) * self.scale + self.offset
        return logits

    def step(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        logits, state = self.model.step(features, state)
        return logits * self.scale + self.offset, state


class Separate(TemporalModel):
    """Models of one behaviour each, on the same input. The packed state is theirs, one after the other."""

    models: Sequence[TemporalModel]

    def __init__(self, models: Sequence[TemporalModel]) -> None:
        super().__init__()
        self.models = cast(Sequence[TemporalModel], nn.ModuleList(models))
        self.sizes = [model.state_size for model in models]
        self.state_size = sum(self.sizes)
        reaches = [model.receptive_field_frames for model in models]
        self.receptive_field_frames = max(reaches) if all(reaches) else 0

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([model(features) for model in self.models], dim=-1)

    def step(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        memories = torch.split(state, self.sizes, dim=1)
        stepped = [model.step(features, memory) for model, memory in zip(self.models, memories, strict=True)]
        return torch.cat([logits for logits, _ in stepped], dim=-1), torch.cat([kept for _, kept in stepped], dim=1)


class Tcn(TemporalModel):
    """Causal temporal convolutional network (Bai, Kolter & Koltun 2018).

    Normalisation is per frame (LayerNorm over channels), so that a frame's output depends on earlier frames
    through the convolutions alone. The packed state holds, one convolution after the other, the last
    (kernel - 1) * dilation inputs of each, oldest first; zeros are the zero padding before the first frame.
    """

    blocks: Sequence[_CausalBlock]

    def __init__(self, config: TcnConfig, *, feature_dim: int, behaviours: int) -> None:
        super().__init__()
        self.entry = _Entry(feature_dim, config.channels)
        blocks = [_CausalBlock(config, dilation=2**index) for index in range(config.blocks)]
        self.blocks = cast(Sequence[_CausalBlock], nn.ModuleList(blocks))
        self.exit = nn.Linear(config.channels, behaviours)
        self.sizes = [conv.state_size for block in blocks for conv in (block.first, block.second)]
        self.state_size = sum(self.sizes)
        self.receptive_field_frames = 1 + self.state_size // config.channels

    def forward(self, features: Tensor) -> Tensor:
        x = self.entry(features)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.exit(x)
        return logits

    def step(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x = self.entry(features)
        memories = iter(torch.split(state, self.sizes, dim=1))
        kept: list[Tensor] = []
        for block in self.blocks:
            x, first, second = block.step(x, next(memories), next(memories))
            kept += first, second
        return self.exit(x), torch.cat(kept, dim=1)


class _Entry(nn.Sequential):
    """Features -> channels, the same for every frame: normalised, so that no feature's scale rules the others."""

    def __init__(self, feature_dim: int, channels: int) -> None:
        super().__init__(nn.Linear(feature_dim, channels), nn.ReLU(), nn.LayerNorm(channels))


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


class Lstm(TemporalModel):
    """Long short-term memory (Hochreiter & Schmidhuber 1997). The packed state is h and c of every layer in turn."""

    def __init__(self, config: LstmConfig, *, feature_dim: int, behaviours: int) -> None:
        super().__init__()
        self.entry = _Entry(feature_dim, config.channels)
        between = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(
            config.channels,
            config.channels,
            config.layers,
            batch_first=True,
            dropout=between,
            bidirectional=config.offline,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.exit = nn.Linear(config.channels * (2 if config.offline else 1), behaviours)
        self.state_size = 0 if config.offline else 2 * config.layers * config.channels
        self.receptive_field_frames = 0

    def forward(self, features: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.entry(features))
        logits: Tensor = self.exit(self.dropout(hidden))
        return logits

    def step(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if not self.is_live:
            return super().step(features, state)
        x = self.entry(features)
        memories = iter(torch.split(state, self.lstm.hidden_size, dim=1))
        kept: list[Tensor] = []
        for layer in range(self.lstm.num_layers):
            x, cell = self._cell(layer, x, next(memories), next(memories))
            kept += x, cell
        return self.exit(self.dropout(x)), torch.cat(kept, dim=1)

    def _cell(self, layer: int, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        w_in, w_hidden, b_in, b_hidden = self.lstm.all_weights[layer]
        gates = functional.linear(x, w_in, b_in) + functional.linear(hidden, w_hidden, b_hidden)
        enter, forget, new, out = gates.chunk(4, dim=1)  # torch's order
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
        return torch.sigmoid(out) * torch.tanh(cell), cell


class Transformer(TemporalModel):
    """Transformer (Vaswani et al. 2017) with attention over a sliding window and a learnt bias per distance.

    The packed state holds, layer after layer, keys and values of the last window_frames - 1 frames, oldest first, and
    at its end, for each of these frames, whether there was one: a frame that never was is not attended to.
    """

    layers: Sequence[_AttentionLayer]

    def __init__(self, config: TransformerConfig, *, feature_dim: int, behaviours: int) -> None:
        super().__init__()
        self.entry = _Entry(feature_dim, config.channels)
        layers = [_AttentionLayer(config) for _ in range(config.layers)]
        self.layers = cast(Sequence[_AttentionLayer], nn.ModuleList(layers))
        self.exit = nn.Sequential(nn.LayerNorm(config.channels), nn.Linear(config.channels, behaviours))
        self.before = config.window_frames - 1
        self.layer_size = self.before * 2 * config.channels
        self.state_size = 0 if config.offline else config.layers * self.layer_size + self.before
        reach = config.layers * self.before
        self.receptive_field_frames = 1 + reach * (2 if config.offline else 1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.entry(features)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.exit(x)
        return logits

    def step(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if not self.is_live:
            return super().step(features, state)
        x = self.entry(features)
        *memories, there = torch.split(state, [self.layer_size] * len(self.layers) + [self.before], dim=1)
        kept: list[Tensor] = []
        for layer, memory in zip(self.layers, memories, strict=True):
            x, memory = layer.step(x, memory, there)
            kept.append(memory)
        there = torch.cat((there[:, 1:], torch.ones_like(there[:, :1])), dim=1)
        return self.exit(x), torch.cat((*kept, there), dim=1)


_NEVER = -1e9  # added to the score of what must not be attended to; finite, so that no runtime makes NaN of it


class _AttentionLayer(nn.Module):
    """Attention and a two-layer perceptron, each normalised before and added to its input (Xiong et al. 2020)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.channels, self.heads, self.offline = config.channels, config.heads, config.offline
        self.before, self.scale = config.window_frames - 1, (config.heads / config.channels) ** 0.5
        self.norm = nn.LayerNorm(config.channels)
        self.query = nn.Linear(config.channels, config.channels)
        self.memory = nn.Linear(config.channels, 2 * config.channels)  # key and value
        distances = config.window_frames + (self.before if config.offline else 0)
        self.bias = nn.Parameter(torch.zeros(config.heads, distances))  # from the furthest past to the furthest future
        self.mix = nn.Linear(config.channels, config.channels)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(config.channels),
            nn.Linear(config.channels, 2 * config.channels),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(2 * config.channels, config.channels),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.shape[1]
        seen = self.norm(x)
        here = torch.arange(frames, device=x.device)
        place = here[None, :] - here[:, None] + self.before  # [T of the query, T of the key], place in the bias
        reachable = (place >= 0) & (place < self.bias.shape[1])
        bias = self.bias[:, place.clamp(0, self.bias.shape[1] - 1)].masked_fill(~reachable, _NEVER)
        return self._perceive(x + self._attend(self.query(seen), self.memory(seen), bias[None]))

    def step(self, x: Tensor, memory: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, C]; memory [B, before * 2C] and `there` [B, before] of the frames before."""
        seen = self.norm(x)[:, None]
        window = torch.cat((memory.reshape(-1, self.before, 2 * self.channels), self.memory(seen)), dim=1)
        missing = torch.cat((1 - there, torch.zeros_like(there[:, :1])), dim=1)
        bias = self.bias[None, :, None] + _NEVER * missing[:, None, None]
        mixed = self._attend(self.query(seen), window, bias)
        return self._perceive(x + mixed[:, 0]), window[:, 1:].flatten(1)

    def _attend(self, query: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        """Query [B, Q, C], memory [B, M, 2C], bias [B or 1, heads, Q, M] -> [B, Q, C]."""
        key, value = memory.chunk(2, dim=2)
        heads = (part.reshape(*part.shape[:2], self.heads, -1).transpose(1, 2) for part in (query, key, value))
        q, k, v = heads
        mixed = torch.softmax(q @ k.transpose(2, 3) * self.scale + bias, dim=3) @ v
        attended: Tensor = self.dropout(self.mix(mixed.transpose(1, 2).flatten(2)))
        return attended

    def _perceive(self, x: Tensor) -> Tensor:
        perceived: Tensor = x + self.dropout(self.perceptron(x))
        return perceived
