"""Several bundles as one: the same logits, a bundle that runs, and nothing fitted to what a member has seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="training is not installed: pip install 'mbr-live[train]'")
pytest.importorskip("sklearn", reason="training is not installed: pip install 'mbr-live[train]'")

from live import mbr_live  # noqa: E402
from test_bundle import manifest  # noqa: E402

from mbr_live.batch.batch import Job, run_job  # noqa: E402
from mbr_live.bundle import Bundle, check_live, load_bundle, write_bundle  # noqa: E402
from mbr_live.datasets.dataset import read_dataset  # noqa: E402
from mbr_live.engines.openvino_engine import OpenVinoEngine  # noqa: E402
from mbr_live.engines.protocol import Engine  # noqa: E402
from mbr_live.engines.torch_engine import TorchEngine  # noqa: E402
from mbr_live.evaluation.comparison import LabelFolder  # noqa: E402
from mbr_live.evaluation.evaluate import evaluate  # noqa: E402
from mbr_live.evaluation.program import truths  # noqa: E402
from mbr_live.manifest import CARD, FEATURES, REFERENCE, TEMPORAL  # noqa: E402
from mbr_live.sinks.label_log import read_labels  # noqa: E402
from mbr_live.stages.kinematics import ALL, SHAPE, VERSION  # noqa: E402
from mbr_live.training.ensemble import ensemble  # noqa: E402
from mbr_live.training.merging import Weights, merge  # noqa: E402
from mbr_live.training.models import Trunk, TrunkConfig, export_onnx  # noqa: E402
from mbr_live.training.probability_calibration import fit_weights  # noqa: E402
from mbr_live.training.temporal import LstmConfig, TcnConfig, TemporalConfig, TransformerConfig, build_temporal  # noqa: E402
from mbr_live.training.train import train  # noqa: E402
from mbr_live.types import MbrError  # noqa: E402

DATASET = """
name = "small"
summary = "Made by a test."
warmup_frames = 10
window_px = 160
simulated = [
    { condition = "box", seed = 3, minutes = 0.3, split = "train" },
    { condition = "box", seed = 5, minutes = 0.3, split = "validation" },
]

[[behaviours]]
name = "grooming"

[[behaviours]]
name = "rearing"

[model]
extractor = "none"
kinematics = "all"
temporal = { kind = "tcn", channels = 8, blocks = 2 }

[training]
sequence_frames = 40
sequences_per_step = 2
sequence_steps = 20
"""


def silent(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


def untrained(
    folder: Path, config: TemporalConfig, *, trunk: Trunk | None = None, channels: tuple[str, ...] = (), **more: object
) -> Bundle:
    """A network whose weights are far from those it begins with, and its bundle."""
    dim = trunk.feature_dim if trunk else 0
    temporal = build_temporal(config, feature_dim=dim + len(channels), behaviours=2).eval()
    with torch.no_grad():
        for name, weights in temporal.named_parameters():
            if name.endswith("bias"):
                weights.normal_()
    folder.mkdir()
    export_onnx(trunk, temporal, folder, kinematics=len(channels))
    described = manifest(
        feature_dim=dim, kinematics=channels, kinematics_version=VERSION if channels else 0, causal=temporal.is_live,
        state_size=temporal.state_size, receptive_field_frames=temporal.receptive_field_frames, **more,
    )  # fmt: skip
    contents = {name: (folder / name).read_bytes() for name in described.contents if name != CARD} | {CARD: b"card"}
    return write_bundle(folder / "bundle", described, contents)


def merged_bundle(members: list[Bundle], weights: Weights, folder: Path) -> Bundle:
    parts = merge(members, weights)
    described = manifest(
        feature_dim=parts.feature_dim, kinematics=parts.kinematics, state_size=parts.state_size,
        kinematics_version=VERSION if parts.kinematics else 0, causal=members[0].manifest.causal,
    )  # fmt: skip
    return write_bundle(folder, described, {**parts.contents, CARD: b"card"})


def test_the_graph_says_what_the_members_say_weighted(tmp_path: Path) -> None:
    """Shared and other feature networks, other channels, other kinds of networks."""
    torch.manual_seed(1)
    shared, other = Trunk(TrunkConfig()).eval(), Trunk(TrunkConfig(widths=(8, 16))).eval()
    members = [
        untrained(tmp_path / "a", TcnConfig(channels=8, blocks=2), trunk=shared, channels=ALL[:4]),
        untrained(tmp_path / "b", LstmConfig(channels=6), trunk=shared, channels=(SHAPE[-1], ALL[2])),
        untrained(tmp_path / "c", TransformerConfig(channels=8, layers=1, heads=2, window_frames=6), trunk=other),
    ]
    weights = Weights(np.array([[0.2, 1.0], [0.5, 0.0], [0.3, 2.0]], np.float32), np.array([0.1, -1.0], np.float32))
    whole = merged_bundle(members, weights, tmp_path / "whole")
    assert whole.manifest.feature_dim == shared.feature_dim + other.feature_dim, "the shared network is there twice"
    rng = np.random.default_rng(0)
    engine, engines = OpenVinoEngine(whole), [OpenVinoEngine(member) for member in members]
    state = np.zeros((1, whole.manifest.state_size), np.float32)
    states = [np.zeros((1, member.manifest.state_size), np.float32) for member in members]
    reference, reference_state = TorchEngine(whole), state
    for _ in range(12):
        crops = rng.integers(0, 256, (1, 160, 160, 3), np.uint8)
        values = dict(zip([*ALL, *SHAPE], rng.normal(size=len(ALL) + len(SHAPE)).astype(np.float32), strict=True))
        expected = weights.offset.copy()
        for n, (member, one) in enumerate(zip(members, engines, strict=True)):
            logits, states[n] = one.step(inputs(one, member, crops, values), states[n])
            expected = expected + weights.members[n] * logits[0]
        logits, state = engine.step(inputs(engine, whole, crops, values), state)
        np.testing.assert_allclose(logits[0], expected, rtol=1e-4, atol=1e-4)
        logits, reference_state = reference.step(inputs(reference, whole, crops, values), reference_state)
        np.testing.assert_allclose(logits[0], expected, rtol=1e-4, atol=1e-4)


def inputs(engine: Engine, bundle: Bundle, crops: np.ndarray, values: dict[str, np.float32]) -> np.ndarray:
    channels = np.array([[values[name] for name in bundle.manifest.kinematics]], np.float32)
    return np.concatenate([engine.features(crops), channels], axis=1)


def test_members_that_look_ahead_make_one_that_does(tmp_path: Path) -> None:
    torch.manual_seed(2)
    members = [
        untrained(tmp_path / "a", LstmConfig(channels=6, offline=True), channels=ALL[:3]),
        untrained(
            tmp_path / "b",
            TransformerConfig(channels=4, layers=1, heads=1, window_frames=5, offline=True),
            channels=ALL[1:5],
        ),
    ]
    whole = merged_bundle(members, Weights.mean(2, 2), tmp_path / "whole")
    assert FEATURES not in whole.manifest.files and whole.manifest.kinematics == ALL[:5]
    features = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    parts = [
        OpenVinoEngine(members[0]).sequence(features[:, :3].copy()),
        OpenVinoEngine(members[1]).sequence(features[:, 1:5].copy()),
    ]
    for engine in (OpenVinoEngine(whole), TorchEngine(whole)):
        np.testing.assert_allclose(engine.sequence(features), sum(parts) / 2, rtol=1e-4, atol=1e-4)
    with pytest.raises(MbrError, match="looks ahead"):
        check_live(whole)


def test_the_whole_sees_the_crops_that_its_members_see(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = LstmConfig(channels=4)
    blind = untrained(tmp_path / "blind", config, channels=ALL[:3])
    outlines = [
        untrained(tmp_path / name, config, trunk=Trunk(TrunkConfig()).eval(), crop="silhouette", extractor=text)
        for name, text in (("one", "a slim network"), ("two", "another"))
    ]
    pixels = untrained(tmp_path / "pixels", config, trunk=Trunk(TrunkConfig()).eval())
    whole = ensemble([each.path for each in (blind, *outlines)], tmp_path / "whole", progress=silent)
    assert whole.manifest.crop == "silhouette"
    assert whole.manifest.extractor == "a slim network; another"
    for mixed in ([pixels, *outlines], [blind, outlines[0], pixels]):
        with pytest.raises(MbrError, match=r"has crops of kind \w+, .* has \w+\. Members need the same"):
            ensemble([each.path for each in mixed], tmp_path / "mixed", progress=silent)
    assert not (tmp_path / "mixed").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"window_px": 200}, r"has a crop window of None, .*b/bundle has 200"),
        ({"max_gap_s": 0.1}, r"has max_gap_s 0\.5, .* has 0\.1"),
        ({"config": LstmConfig(channels=4, offline=True)}, "has causal True, .* has False"),
    ],
)
def test_members_that_do_not_go_together(tmp_path: Path, change: dict[str, object], said: str) -> None:
    config = change.pop("config", LstmConfig(channels=4))
    one = untrained(tmp_path / "a", LstmConfig(channels=4), channels=ALL[:3])
    other = untrained(tmp_path / "b", config, channels=ALL[:3], **change)
    with pytest.raises(MbrError, match=said):
        ensemble([one.path, other.path], tmp_path / "out", progress=silent)
    with pytest.raises(MbrError, match="expected at least two"):
        ensemble([one.path], tmp_path / "out", progress=silent)
    with pytest.raises(MbrError, match=r"'my mice' can not name a bundle.*Choose another folder"):
        ensemble([one.path, one.path], tmp_path / "my mice", progress=silent)
    with pytest.raises(MbrError, match="weights are learnt from validation recordings"):
        ensemble([one.path, one.path], tmp_path / "out", "learnt", progress=silent)
    assert not (tmp_path / "out").exists()


# Learning weights


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(10, 300))
def test_weights_are_not_negative_and_not_worse_than_the_mean(seed: int, members: int, frames: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random(frames) < 0.3
    logits = (np.where(truth, 1.0, -1.0)[:, None] + rng.normal(0, 2, (frames, members))).astype(np.float32)
    weights, offset = fit_weights(logits, truth)
    assert np.all(weights >= 0)

    def loss(w: np.ndarray, b: float) -> float:
        """What is documented: cross-entropy with Platt's targets, and the distance from the mean."""
        shown = truth.sum()
        target = np.where(truth, (shown + 1) / (shown + 2), 1 / (frames - shown + 2))
        said = logits.astype(np.float64) @ w + b
        return float(np.mean(np.logaddexp(0, said) - target * said) + 0.01 * np.sum((w - 1 / members) ** 2))

    alike = np.full(members, 1 / members)
    if 0 < truth.sum() < frames:
        assert loss(weights, offset) <= loss(alike, 0.0) + 1e-5
    else:
        assert weights.tolist() == alike.tolist() and offset == 0


def test_a_member_that_knows_nothing_gets_no_say() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(5000) < 0.3
    logits = np.column_stack((np.where(truth, 1.5, -1.5) + rng.normal(0, 1, 5000), rng.normal(0, 2, 5000)))
    weights, _ = fit_weights(logits.astype(np.float32), truth)
    assert weights[0] > 10 * weights[1]


# From bundles to a bundle


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def members(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A dataset file and two bundles that were trained by it, from other seeds."""
    folder = tmp_path_factory.mktemp("members")
    paths = []
    for seed in (1, 2):
        file = folder / f"small-{seed}.toml"
        file.write_text(DATASET.replace("[training]", f"[training]\nseed = {seed}"))
        paths.append(train(file, folder / f"m{seed}", progress=silent, cache=cache).path)
    return file, paths


@pytest.mark.parametrize("kind", ["mean", "learnt"])
def test_an_ensemble_scores_in_batch_what_it_says(
    members: tuple[Path, list[Path]], cache: Path, tmp_path: Path, kind: str
) -> None:
    file, paths = members
    whole = ensemble(paths, tmp_path / "both", kind, file, progress=silent, cache=cache)
    check_live(whole)
    plan = read_dataset(file)
    scored = truths(plan, "validation", cache)
    engine = OpenVinoEngine(whole)
    for truth in scored:
        run_job(Job(truth.log_name, truth.videos), tmp_path / "labels", whole, engine)
    found, _ = evaluate(
        "small", "validation", whole.manifest.behaviour_names, scored, [LabelFolder("x", tmp_path / "labels")]
    )
    (recording,) = found.models[0].recordings
    assert len(whole.manifest.training.scores) == 2
    for score in whole.manifest.training.scores:
        frames = recording.behaviours[score.behaviour].frames
        assert (frames.pr_auc, frames.f1) == pytest.approx((score.pr_auc, score.f1), abs=2e-3)
    training = whole.manifest.training
    assert [fit.calibration for fit in training.fits] == ["none" if kind == "mean" else "weights"] * 2
    assert "An ensemble of 2 models" in training.summary and "x [2]" in training.summary
    assert len(training.data) == 2, "the members were made of the same recordings"
    assert REFERENCE in whole.manifest.files and whole.manifest.name == "both"


def test_the_program_makes_the_mean_of_two_and_batch_runs_it(
    members: tuple[Path, list[Path]], box_video: Path, tmp_path: Path
) -> None:
    _, paths = members
    out = tmp_path / "both"
    done = mbr_live("ensemble", *map(str, paths), "--out", str(out))
    assert done.returncode == 0, done.stderr
    whole = load_bundle(out)
    assert whole.manifest.state_size == sum(load_bundle(path).manifest.state_size for path in paths)
    logs = {}
    for path in (*paths, out):
        bundle = load_bundle(path)
        run_job(Job("box", (box_video,)), tmp_path / path.name, bundle, OpenVinoEngine(bundle))
        rows = read_labels(tmp_path / path.name / "box.labels.csv")
        logs[path.name] = np.array([row.probabilities for row in rows if row.probabilities])
    one, two, both = logs.values()
    between = (both >= np.minimum(one, two) - 2e-6) & (both <= np.maximum(one, two) + 2e-6)
    assert between.all() and len(both) > 50
    refused = mbr_live("ensemble", *map(str, paths), "--out", str(out), "--weights", "best")
    assert refused.returncode == 2 and "expected mean or learnt" in refused.stderr


def test_what_a_member_was_trained_on_can_not_judge_it(members: tuple[Path, list[Path]], tmp_path: Path) -> None:
    _, paths = members
    turned = DATASET.replace('"train"', '"?"').replace('"validation"', '"train"').replace('"?"', '"validation"')
    (tmp_path / "turned.toml").write_text(turned)
    with pytest.raises(MbrError, match=r"was trained on box-3.*keeps for validation"):
        ensemble(paths, tmp_path / "out", "mean", tmp_path / "turned.toml", progress=silent)
    fewer = DATASET.replace('[[behaviours]]\nname = "rearing"\n', "")
    (tmp_path / "fewer.toml").write_text(fewer)
    with pytest.raises(MbrError, match="its behaviours are not those of the members"):
        ensemble(paths, tmp_path / "out", "mean", tmp_path / "fewer.toml", progress=silent)
    assert TEMPORAL and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("mean", None, "none of its validation recordings is labelled"),
        ("learnt", None, "none of its validation recordings is labelled"),
        ("mean", "grooming,rearing\n0,0\n1,0\n", "no judged frame .* warm-up is 10 frames"),
    ],
)
def test_nothing_is_fitted_to_recordings_without_marks(
    members: tuple[Path, list[Path]], cache: Path, box_video: Path, tmp_path: Path,
    kind: str, labels: str | None, message: str,
) -> None:  # fmt: skip
    _, paths = members
    (tmp_path / "marks.csv").write_text(labels or "")
    unmarked = f'''[[recordings]]
        video = "{box_video}"
        group = "another"
        split = "validation"
        {'labels = "marks.csv"' if labels else ""}'''
    text = DATASET.replace('    { condition = "box", seed = 5, minutes = 0.3, split = "validation" },\n', "")
    (tmp_path / "plan.toml").write_text(text.replace("[model]", f"{unmarked}\n\n[model]"))
    with pytest.raises(MbrError, match=message):
        ensemble(paths, tmp_path / "out", kind, tmp_path / "plan.toml", progress=silent, cache=cache)
    assert not (tmp_path / "out").exists()
