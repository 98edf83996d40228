"""Does an engine compute what the reference computes? And how fast? On pictures that every machine can make.

The probe is the simulated animal: real enough for a network to answer to it, and the same everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from mbr_live.bundle import Bundle
from mbr_live.engines.protocol import Crops, Engine, Floats
from mbr_live.manifest import Manifest
from mbr_live.simulation.camera import Simulation
from mbr_live.stages.locate import crop
from mbr_live.types import CROP_PX

PROBE_WINDOW_PX = 140
_PROBE_SCENES = ("box", "clutter", "dark")
_PROBE_SEED = 9001
_CROPS_PER_SCENE = 8
_FRAMES_APART = 7

# An engine that computes in float32 differs from the reference by the order of its sums alone. What bfloat16 costs was
# measured with a ResNet-50 and the demo network: 0.013 and 0.006 of the features, 0.01 of a probability.
F32_FEATURE_ERROR, F32_PROBABILITY_ERROR = 1e-5, 1e-4
BF16_FEATURE_ERROR, BF16_PROBABILITY_ERROR = 0.03, 0.05
# Float16 has eight times the precision of bfloat16; not yet measured on a GPU.
F16_FEATURE_ERROR, F16_PROBABILITY_ERROR = 0.01, 0.02
GPU_F32_FEATURE_ERROR, GPU_F32_PROBABILITY_ERROR = 1e-4, 1e-3  # other algorithms of convolution, too


@dataclass(frozen=True, slots=True)
class Parity:
    """How far an engine is from the reference on the probe."""

    feature_error: float  # norm of the difference over the norm of the reference; 0 without a feature network
    probability_error: float  # the largest of any behaviour and frame


@cache
def probe() -> Crops:
    """Pictures of the simulated animal, uint8 [24, 160, 160, 3]."""
    crops = []
    for scene in _PROBE_SCENES:
        simulation = Simulation(scene, _PROBE_SEED)
        for number in range(_CROPS_PER_SCENE * _FRAMES_APART):
            truth = simulation.advance()
            if number % _FRAMES_APART == 0:
                crops.append(crop(simulation.render(), truth.x_px, truth.y_px, PROBE_WINDOW_PX))
    return np.stack(crops)


def probe_features(engine: Engine, manifest: Manifest) -> Floats:
    """Features of the probe with kinematics of an animal that rests, float32 [24, D + M]."""
    features = engine.features(probe()) if manifest.feature_dim else np.zeros((len(probe()), 0), np.float32)
    return np.concatenate((features, np.zeros((len(features), len(manifest.kinematics)), np.float32)), axis=1)


def probe_probabilities(engine: Engine, manifest: Manifest) -> Floats:
    """Probabilities of the probe as one recording, float32 [24, K]."""
    features = probe_features(engine, manifest)
    if not manifest.causal:
        return _sigmoid(engine.sequence(features))
    state, logits = np.zeros((1, manifest.state_size), np.float32), []
    for frame in features:
        of_frame, state = engine.step(frame[None], state)
        logits.append(of_frame[0])
    return _sigmoid(np.stack(logits))


def parity(engine: Engine, reference: Engine, manifest: Manifest) -> Parity:
    """Hold an engine against the reference."""
    found, true = (probe_features(each, manifest) for each in (engine, reference))
    scale = float(np.linalg.norm(true))
    probabilities = (probe_probabilities(each, manifest) for each in (engine, reference))
    return Parity(
        feature_error=float(np.linalg.norm(found - true)) / scale if scale else 0.0,
        probability_error=float(np.max(np.abs(np.subtract(*probabilities)))),
    )


def limits(bundle: Bundle, precision: str, *, gpu: bool = False) -> Parity:
    """The largest differences at which an engine of a precision passes.

    What int8 costs was measured when the bundle was calibrated; an engine passes where it costs no more here.
    """
    if precision == "int8" and bundle.manifest.int8:
        return Parity(1.25 * bundle.manifest.int8.feature_error + 0.005, 1.0)
    if precision == "f16":
        return Parity(F16_FEATURE_ERROR, F16_PROBABILITY_ERROR)
    if gpu:
        return Parity(GPU_F32_FEATURE_ERROR, GPU_F32_PROBABILITY_ERROR)
    if precision == "bf16":
        return Parity(BF16_FEATURE_ERROR, BF16_PROBABILITY_ERROR)
    return Parity(F32_FEATURE_ERROR, F32_PROBABILITY_ERROR)


def passes(found: Parity, allowed: Parity) -> bool:
    """Whether the differences are within the limits; NaN is not."""
    return found.feature_error <= allowed.feature_error and found.probability_error <= allowed.probability_error


def one_frame(engine: Engine, manifest: Manifest) -> None:
    """All that an engine computes for a frame, of a blank one; a step only where the bundle has one."""
    given = np.zeros((1, manifest.input_dim), np.float32)
    if manifest.feature_dim:
        given[:, : manifest.feature_dim] = engine.features(np.zeros((1, CROP_PX, CROP_PX, 3), np.uint8))
    if manifest.causal:
        engine.step(given, np.zeros((1, manifest.state_size), np.float32))


def timed_s(work: Callable[[], object], at_least_s: float, at_least: int = 3) -> list[float]:
    """How long `work` takes, call by call, after one call that is not counted."""
    work()
    times_s: list[float] = []
    while sum(times_s) < at_least_s or len(times_s) < at_least:
        start_s = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - start_s)
    return times_s


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -60, 60))), np.float32)
