"""Several bundles as one: the graphs of an ensemble. Needs onnx, which a run of the result does not.

Feature networks that are the same file are kept once; what different ones say stands side by side. The temporal
networks keep their weights, each takes its own columns of features and kinematics and its own part of the state, and
their logits are added up, weighted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper

from mbr_live.bundle import Bundle
from mbr_live.manifest import FEATURES, TEMPORAL, CropKind, Manifest
from mbr_live.stages.kinematics import CHANNELS
from mbr_live.types import MbrError


@dataclass(frozen=True, slots=True)
class Weights:
    """Logits of an ensemble: the sum of weight * logit over the members, and an offset; per behaviour."""

    members: NDArray[np.float32]  # [members, K]
    offset: NDArray[np.float32]  # [K]

    @classmethod
    def mean(cls, members: int, behaviours: int) -> Weights:
        """Every member counts alike."""
        return cls(np.full((members, behaviours), 1 / members, np.float32), np.zeros(behaviours, np.float32))


@dataclass(frozen=True, slots=True)
class Merged:
    """The graphs of an ensemble, and what its manifest has to say of them."""

    contents: dict[str, bytes]  # FEATURES, if there is a feature network, and TEMPORAL
    feature_dim: int
    crop: CropKind
    extractor: str
    kinematics: tuple[str, ...]
    state_size: int


def check_mergeable(members: Sequence[Bundle]) -> None:
    """MbrError where bundles can not be one: they would have to see, or to say, different things."""
    if len(members) < 2:
        raise MbrError(f"ensemble: found {len(members)} bundle, expected at least two.")
    for first, second in combinations(members, 2):  # all pairs: some things only some members have
        for what, one, two in _compared(first.manifest, second.manifest):
            if one != two:
                raise MbrError(
                    f"ensemble: {first.path} has {what} {one}, {second.path} has {two}. "
                    "Members need the same: train them from dataset files that agree in it."
                )


def _compared(one: Manifest, other: Manifest) -> list[tuple[str, object, object]]:
    """What has to be the same in all members."""
    return [
        ("behaviours", ", ".join(one.behaviour_names), ", ".join(other.behaviour_names)),
        ("causal", one.causal, other.causal),
        ("a crop window of", one.window_px, other.window_px),
        ("max_gap_s", one.max_gap_s, other.max_gap_s),
        *((("crops of kind", one.crop, other.crop),) if one.feature_dim and other.feature_dim else ()),
        *((("kinematics of version", one.kinematics_version, other.kinematics_version),) if
          one.kinematics and other.kinematics else ()),
    ]  # fmt: skip


def merge(members: Sequence[Bundle], weights: Weights) -> Merged:
    """The graphs of all members as one."""
    check_mergeable(members)
    networks: dict[str, bytes] = {}  # by hash
    places: dict[str, int] = {}  # first column of the features of each
    width = 0
    for member in members:
        if member.manifest.feature_dim:
            key = member.manifest.files[FEATURES].sha256
            if key not in networks:
                networks[key], places[key] = member.read(FEATURES), width
                width += member.manifest.feature_dim
    used = {name for member in members for name in member.manifest.kinematics}
    kinematics = tuple(name for name in CHANNELS if name in used)
    columns = []
    for member in members:
        manifest = member.manifest
        start = places[manifest.files[FEATURES].sha256] if manifest.feature_dim else 0
        channels = [width + kinematics.index(name) for name in manifest.kinematics]
        columns.append([*range(start, start + manifest.feature_dim), *channels])
    contents = {FEATURES: _side_by_side(list(networks.values()))} if networks else {}
    contents[TEMPORAL] = _added_up(members, columns, width + len(kinematics), weights)
    seeing = [member.manifest for member in members if member.manifest.feature_dim] or [members[0].manifest]
    return Merged(
        contents,
        width,
        seeing[0].crop,
        "; ".join(dict.fromkeys(manifest.extractor for manifest in seeing if manifest.extractor)),
        kinematics,
        sum(member.manifest.state_size for member in members),
    )


def _side_by_side(networks: Sequence[bytes]) -> bytes:
    """Feature networks on the same crops; their features one after the other."""
    if len(networks) == 1:
        return networks[0]
    models = [
        compose.add_prefix(onnx.load_from_string(network), f"f{number}/", rename_inputs=False)
        for number, network in enumerate(networks)
    ]
    join = helper.make_node("Concat", [f"f{number}/features" for number in range(len(models))], ["features"], axis=1)
    width = sum(model.graph.output[0].type.tensor_type.shape.dim[1].dim_value for model in models)
    output = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["B", width])
    return _assembled(models, [], [join], [], [models[0].graph.input[0]], [output])


def _added_up(members: Sequence[Bundle], columns: Sequence[Sequence[int]], width: int, weights: Weights) -> bytes:
    """Temporal networks on their columns of the input; their logits weighted and added."""
    causal, behaviours = members[0].manifest.causal, len(members[0].manifest.behaviours)
    models = [
        compose.add_prefix(onnx.load_from_string(member.read(TEMPORAL)), f"m{number}/")
        for number, member in enumerate(members)
    ]
    lead: list[int | str] = ["B"] if causal else [1, "T"]
    before = [
        helper.make_node("Gather", ["features", f"e/columns{n}"], [f"m{n}/features"], axis=len(lead))
        for n in range(len(members))
    ]
    after = [
        helper.make_node("Mul", [f"m{n}/logits", f"e/weights{n}"], [f"e/weighted{n}"]) for n in range(len(members))
    ]
    after += [
        helper.make_node("Sum", [f"e/weighted{n}" for n in range(len(members))], ["e/sum"]),
        helper.make_node("Add", ["e/sum", "e/offset"], ["logits"]),
    ]
    constants = [(f"e/columns{n}", np.array(each, np.int64)) for n, each in enumerate(columns)]
    constants += [(f"e/weights{n}", each.astype(np.float32)) for n, each in enumerate(weights.members)]
    constants += [("e/offset", weights.offset.astype(np.float32))]
    inputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, [*lead, width])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*lead, behaviours])]
    if causal:
        sizes = [member.manifest.state_size for member in members]
        parts, kept = ([f"m{n}/{name}" for n in range(len(members))] for name in ("state", "state_out"))
        before.append(helper.make_node("Split", ["state", "e/sizes"], parts, axis=1))
        after.append(helper.make_node("Concat", kept, ["state_out"], axis=1))
        constants.append(("e/sizes", np.array(sizes, np.int64)))
        inputs.append(helper.make_tensor_value_info("state", TensorProto.FLOAT, ["B", sum(sizes)]))
        outputs.append(helper.make_tensor_value_info("state_out", TensorProto.FLOAT, ["B", sum(sizes)]))
    initializers = [numpy_helper.from_array(array, name) for name, array in constants]
    return _assembled(models, before, after, initializers, inputs, outputs)


def _assembled(
    models: Sequence[onnx.ModelProto],
    before: Sequence[onnx.NodeProto],
    after: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
) -> bytes:
    """One graph of all nodes, in the order in which they are computed."""
    versions = {(opset.domain, opset.version) for model in models for opset in model.opset_import}
    if len(versions) > 1:
        raise MbrError(
            f"ensemble: the graphs of the members are of different ONNX operator sets ({sorted(versions)}). "
            "Train the members with one version of this program."
        )
    graph = helper.make_graph(
        [*before, *(node for model in models for node in model.graph.node), *after],
        "ensemble",
        list(inputs),
        list(outputs),
        [*(each for model in models for each in model.graph.initializer), *initializers],
    )
    merged = helper.make_model(graph, opset_imports=list(models[0].opset_import))
    merged.ir_version = max(model.ir_version for model in models)
    onnx.checker.check_model(merged)
    content: bytes = merged.SerializeToString(deterministic=True)
    return content
