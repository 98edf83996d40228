"""Which temporal networks a dataset file asks for, and which of them learn by themselves."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mbr_live.datasets.settings import ModelSettings
from mbr_live.training.temporal import Ensemble, Separate, TemporalModel, build_temporal


def temporal_of(model: ModelSettings, feature_dim: int, behaviours: int) -> TemporalModel:
    """Untrained, for D = `feature_dim` features of the crop and the kinematic channels of `model`."""
    if model.behaviours == "separate":
        return Separate([_joint(model, feature_dim, 1) for _ in range(behaviours)])
    return _joint(model, feature_dim, behaviours)


def _joint(model: ModelSettings, feature_dim: int, behaviours: int) -> TemporalModel:
    """A single temporal network on features alone needs no standardising."""
    features = list(range(feature_dim))
    if not model.channels and model.ensemble == 1:
        return build_temporal(model.temporal, feature_dim=feature_dim, behaviours=behaviours)
    place = {name: feature_dim + at for at, name in enumerate(model.channels)}
    sets = [[*features, *(place[name] for name in names)] for names in model.channel_sets] or [features]
    columns = [sets[number % len(sets)] for number in range(model.ensemble)]
    members = [build_temporal(model.temporal, feature_dim=len(each), behaviours=behaviours) for each in columns]
    return Ensemble(members, columns, plain=feature_dim, raw=len(model.channels))


@dataclass(frozen=True, slots=True)
class Learner:
    """One network that learns by itself: a member of an ensemble, or the only one."""

    network: TemporalModel
    ensemble: Ensemble | None  # that it is a member of
    number: int  # in the ensemble
    of: tuple[int, ...]  # [k] the behaviours that it has logits for, of all K

    def alone(self) -> TemporalModel:
        """The network on inputs as they come, [B, T, D + M] -> logits [B, T, k]; its weights are shared."""
        if self.ensemble is None:
            return self.network
        return _Member(self.ensemble, self.number)


class _Member(TemporalModel):
    """A member of an ensemble without the others."""

    def __init__(self, ensemble: Ensemble, number: int) -> None:
        super().__init__()
        self.ensemble, self.number = ensemble, number
        self.receptive_field_frames = ensemble.members[number].receptive_field_frames
        self.state_size = ensemble.members[number].state_size

    def forward(self, features: Tensor) -> Tensor:
        return self.ensemble.of_member(self.number, self.ensemble.standardised(features))


def learners_of(temporal: TemporalModel, behaviours: int) -> list[Learner]:
    """In the order in which they learn, one after the other."""
    if isinstance(temporal, Separate):
        return [learner for k, model in enumerate(temporal.models) for learner in _learners(model, (k,))]
    return _learners(temporal, tuple(range(behaviours)))


def _learners(model: TemporalModel, of: tuple[int, ...]) -> list[Learner]:
    if isinstance(model, Ensemble):
        return [Learner(member, model, number, of) for number, member in enumerate(model.members)]
    return [Learner(model, None, 0, of)]
