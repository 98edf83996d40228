"""Torch on the CPU: the reference that the other engines are held against. Slow, float32, lane by lane.

Torch is not part of a run-time installation; this module is imported only when the engine is asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mbr_live.bundle import Bundle
from mbr_live.engines.onnx_torch import OnnxGraph
from mbr_live.engines.protocol import (
    ANY,
    Crops,
    Floats,
    Ports,
    check_lanes,
    check_stretch,
    feature_ports,
    no_features,
    no_sequence,
    no_step,
    temporal_ports,
    windows,
)
from mbr_live.manifest import FEATURES, FEATURES_INT8, TEMPORAL
from mbr_live.types import MbrError


class TorchEngine:
    """A bundle on the CPU. `int8`: the integers of the int8 graph computed in floating point, as ONNX defines them.

    Raises MbrError where the graphs do not fit the manifest or have operators that are not known.
    """

    def __init__(self, bundle: Bundle, *, int8: bool = False) -> None:
        torch.set_num_threads(1)  # of the whole process: torch knows no other way
        manifest = bundle.manifest
        self._bundle, self._int8 = bundle, int8
        file = FEATURES_INT8 if int8 else FEATURES
        self._features = _Graph(bundle, file, *feature_ports(bundle)) if manifest.feature_dim else None
        self._temporal = _Graph(bundle, TEMPORAL, *temporal_ports(bundle))

    @property
    def name(self) -> str:
        return f"torch {torch.__version__.split('+')[0]} cpu {'int8' if self._int8 else 'f32'}"

    def features(self, crops: Crops) -> Floats:
        if self._features is None:
            raise no_features(self._bundle)
        (features,) = self._features.per_lane(crops)
        return features

    def step(self, features: Floats, state: Floats) -> tuple[Floats, Floats]:
        if not self._bundle.manifest.causal:
            raise no_step(self._bundle)
        logits, state_out = self._temporal.per_lane(features, state)
        return logits, state_out

    def sequence(self, features: Floats) -> Floats:
        manifest = self._bundle.manifest
        if manifest.causal:
            raise no_sequence(self._bundle)
        check_stretch(f"Bundle {self._bundle.path}: {TEMPORAL}", features, manifest.input_dim)
        logits = np.empty((len(features), len(manifest.behaviours)), np.float32)
        for window in windows(len(features), manifest.receptive_field_frames):
            (found,) = self._temporal.run(features[window.given][None])
            logits[window.wanted] = found[0][window.kept]
        return logits


class _Graph:
    """One graph whose ports are as the manifest says."""

    def __init__(self, bundle: Bundle, file: str, inputs: Ports, outputs: Ports) -> None:
        self._subject, self._inputs, self._outputs = f"Bundle {bundle.path}: {file}", inputs, outputs
        self._graph = OnnxGraph(bundle.read(file), self._subject)
        for ports, found in ((inputs, self._graph.inputs), (outputs, self._graph.outputs)):
            _check_ports(self._subject, ports, found)

    def per_lane(self, *arrays: NDArray[Any]) -> list[Floats]:
        """Arrays [B, ...] in, fresh arrays [B, ...] out; torch's bytes would depend on how many lanes it is given."""
        lanes = check_lanes(self._subject, arrays, self._inputs)
        results = [np.empty((lanes, *shape[1:]), np.float32) for shape, _ in self._outputs.values()]
        for lane in range(lanes):
            for result, found in zip(results, self.run(*(array[lane : lane + 1] for array in arrays)), strict=True):
                result[lane] = found[0]
        return results

    def run(self, *arrays: NDArray[Any]) -> list[Floats]:
        # Copies in torch's own memory, whose alignment is always the same: sums depend on it.
        tensors = (torch.tensor(array.copy()) for array in arrays)
        found = self._graph(dict(zip(self._inputs, tensors, strict=True)))
        return [found[name].numpy() for name in self._outputs]


def _check_ports(subject: str, expected: Ports, found: dict[str, tuple[int | None, ...]]) -> None:
    for name, (shape, _) in expected.items():
        sizes = found.get(name)
        if (
            set(found) != set(expected)
            or sizes is None
            or len(sizes) != len(shape)
            or any(size not in (None, want) and want != ANY for size, want in zip(sizes, shape, strict=True))
        ):
            raise MbrError(
                f"{subject} has the ports {found}, the manifest says {name} {list(shape)}. They are of different "
                "models: copy the bundle again, or train it anew."
            )
