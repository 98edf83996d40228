"""Cross-validation: every recording is scored by a bundle that has not seen its group, and no work is done twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch", reason="training is not installed: pip install 'mbr-live[train]'")

from mbr_live.annotation.marks import Annotations
from mbr_live.bundle import load_bundle
from mbr_live.cli import app
from mbr_live.datasets.dataset import Dataset, read_dataset
from mbr_live.datasets.recordings import RecordingSpec
from mbr_live.datasets.splits import Fold, folds
from mbr_live.evaluation.comparison import Truth
from mbr_live.evaluation.metrics import Evaluation
from mbr_live.sinks.label_log import read_labels
from mbr_live.sinks.run_manifest import read_run
from mbr_live.training import crossvalidate as crossvalidation
from mbr_live.training.crossvalidate import FoldRecord, crossvalidate
from mbr_live.types import MbrError

DATASET = """
name = "tiny"
summary = "Made by a test."
warmup_frames = 4
window_px = 160
groups_share_animal = true
behaviours = [{ name = "grooming" }, { name = "rearing" }]
simulated = [
    { condition = "box", seed = 3, minutes = 0.06, split = "train" },
    { condition = "box", seed = 4, minutes = 0.06, split = "train" },
    { condition = "box", seed = 5, minutes = 0.06, split = "validation" },
]

[training]
frames_per_step = 4
frame_steps = 2
sequence_frames = 20
sequences_per_step = 2
sequence_steps = 2
"""


class Done:
    """What a cross-validation has reported."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        self.stages.append(stage)

    @property
    def trained(self) -> set[str]:
        return {stage.split(":")[0] for stage in self.stages if stage.endswith(": sequences")}

    @property
    def labelled(self) -> set[str]:
        return {stage.split(":")[0] for stage in self.stages if stage.endswith(": labels") and ":" in stage}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("folds")


@pytest.fixture(scope="module")
def finished(folder: Path) -> Evaluation:
    """A cross-validation that was killed in its second fold, and then went on."""
    (folder / "tiny.toml").write_text(DATASET)
    first = Done()

    def killed(stage: str, done: int, total: int) -> None:
        first(stage, done, total)
        if len(first.trained) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crossvalidate(folder / "tiny.toml", folder / "out", progress=killed, cache=folder / "cache")
    assert not (folder / "out" / "report").exists()
    before = {path: path.read_bytes() for path in sorted((folder / "out").rglob("*")) if path.is_file()}
    again = Done()
    evaluation = crossvalidate(folder / "tiny.toml", folder / "out", progress=again, cache=folder / "cache")
    assert len(first.labelled) == 1 and again.trained == {"box-3", "box-4", "box-5"} - first.labelled
    assert again.labelled == again.trained
    assert all(path.read_bytes() == content for path, content in before.items())
    return evaluation


def test_every_recording_is_labelled_by_a_bundle_that_has_not_seen_it(finished: Evaluation, folder: Path) -> None:
    assert {path.name for path in (folder / "out" / "folds").iterdir()} == {"box-3", "box-4", "box-5"}
    for group in ("box-3", "box-4", "box-5"):
        fold = folder / "out" / "folds" / group
        record = FoldRecord.model_validate_json((fold / "fold.json").read_text())
        assert record.test == (group,) and len(record.validation) == 1
        assert {*record.train, *record.validation, *record.test} == {"box-3", "box-4", "box-5"}
        bundle = load_bundle(fold / "bundle")
        assert bundle.manifest.training.recordings == tuple(
            f"{name} ({'validation' if name in record.validation else 'train'})"
            for name in ("box-3", "box-4", "box-5")
            if name != group
        )
        run = read_run(folder / "out" / "labels" / f"{group}.run.json")
        assert (run.bundle_sha256, run.window_px) == (bundle.sha256, 160)
        assert len(list(read_labels(folder / "out" / "labels" / f"{group}.labels.csv"))) == 36
    model = finished.models[0]
    assert [each.recording for each in model.recordings] == ["box-3", "box-4", "box-5"]
    assert (model.pooled.recordings, finished.split) == (3, "left out")
    assert "share an animal" in finished.caveats[0]
    written = json.loads((folder / "out" / "report" / "metrics.json").read_text())
    assert Evaluation.model_validate(written) == finished
    assert (folder / "out" / "report" / "report.html").is_file()


def test_what_is_done_is_not_done_again_until_something_changes(
    finished: Evaluation, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = Done()
    assert crossvalidate(folder / "tiny.toml", folder / "out", progress=again, cache=folder / "cache") == finished
    assert again.trained == again.labelled == set()
    (folder / "out" / "labels" / "box-4.run.json").unlink()
    crossvalidate(folder / "tiny.toml", folder / "out", progress=again, cache=folder / "cache")
    assert (again.trained, again.labelled) == (set(), {"box-4"})

    def asked(dataset: Dataset, *_: object, **__: object) -> None:
        raise MbrError(f"train {dataset.name}")

    monkeypatch.setattr(crossvalidation, "train_on", asked)
    (folder / "other.toml").write_text(DATASET + "seed = 2\n")
    with pytest.raises(MbrError, match="train tiny"):
        crossvalidate(folder / "other.toml", folder / "out", progress=Done(), cache=folder / "cache")


def test_the_program_prints_scores_and_caveats(
    finished: Evaluation, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(crossvalidation, "crossvalidate", lambda *_, **__: finished)
    crossvalidation.crossvalidate_program(folder / "tiny.toml", folder / "out")
    shown = capsys.readouterr().out
    assert "PR-AUC" in shown and "box-4" in shown and "note: Groups share an animal" in shown


@pytest.mark.parametrize(("count", "said"), [(None, "found 2 folds, expected at least 3"), (3, "3 folds of 2 groups")])
def test_too_few_groups_are_refused_before_anything_is_trained(
    folder: Path, finished: Evaluation, count: int | None, said: str
) -> None:
    text = "\n".join(line for line in DATASET.splitlines() if "seed = 4" not in line)
    (folder / "two.toml").write_text(text)
    with pytest.raises(MbrError, match=said):
        crossvalidate(folder / "two.toml", folder / "two", count, progress=Done(), cache=folder / "cache")
    assert not (folder / "two").exists()


def test_two_folds_are_enough_where_there_is_nothing_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []
    monkeypatch.setattr(crossvalidation, "crossvalidate_program", lambda _, __, count, ___: asked.append(count))
    done = CliRunner().invoke(app, ["crossvalidate", "tiny.toml", "--out", "folds", "--folds", "2"])
    assert done.exit_code == 0 and asked == [2], done.output


# Parts.


def spec(name: str, group: str) -> RecordingSpec:
    clip = read_dataset_of_one().all_recordings()[0]
    return RecordingSpec(name, name, group, "camera", "all", None, clip.source)


def read_dataset_of_one() -> Dataset:
    return read_dataset(Path(__file__).parents[1] / "engines" / "demo.toml")


def test_a_fold_gives_the_splits_and_what_it_does_not_name_is_trained_on() -> None:
    dataset = read_dataset_of_one()
    names = [each.name for each in dataset.all_recordings()]
    folded = dataset.with_fold(Fold((), (names[0],), (names[1],)))
    found = {each.name: each.split for each in folded.all_recordings()}
    assert found == dict.fromkeys(names, "train") | {names[0]: "validation", names[1]: "test"}
    assert dataset.all_recordings() != folded.all_recordings()


@pytest.mark.parametrize(
    ("groups", "folders"),
    [
        (["m 1", "m_2", "m/3"], ["m_1", "m_2", "m_3"]),
        (["m 1", "m_1", "m/1"], ["fold-1", "fold-2", "fold-3"]),
        (["m1", "m1", "m2", "m3"], ["m1", "m2", "m3"]),
    ],
)
def test_every_fold_has_a_folder_of_its_own(groups: Sequence[str], folders: Sequence[str]) -> None:
    specs = [spec(str(number), group) for number, group in enumerate(groups)]
    nothing = Annotations((), np.zeros((0, 0), np.int8))
    scored = {each.name: Truth(each.name, each.name, each.group, "all", "", False, nothing, ()) for each in specs}
    plans = crossvalidation._plans(folds(specs), scored, "source")
    assert sorted(plan.name for plan in plans) == folders
    assert {truth.group for plan in plans for truth in plan.tested} == set(groups)


@pytest.mark.parametrize("rare", [["a", "c", "e"], ["a", "b", "c", "d", "e", "f"], []])
def test_thresholds_are_chosen_where_every_behaviour_is_shown(rare: Sequence[str]) -> None:
    specs = [spec(name, name) for name in "abcdef"]
    shown = {each.name: ["rearing", *(["grooming"] if each.name in rare else [])] for each in specs}
    for fold in folds(specs, shown=shown):
        assert set(fold.train) | set(fold.validation) | set(fold.test) == set("abcdef")
        assert len(fold.train) + len(fold.validation) + len(fold.test) == 6
        left = set(rare) - set(fold.test)
        assert not rare or (left & set(fold.validation) and left & set(fold.train))
        assert len(fold.validation) <= 2


def test_folds_without_anything_to_validate_train_on_all_others() -> None:
    specs = [spec(name, name) for name in "abcd"]
    for fold in folds(specs, validate=False):
        assert not fold.validation and len(fold.test) == 1
        assert set(fold.train) == set("abcd") - set(fold.test)


@pytest.mark.parametrize(
    ("training", "fitted"),
    [
        ("threshold = 0.5", False),
        ("threshold = 'fit'", True),
        ("threshold = 0.5\nearly_stopping = { patience_checks = 2 }", True),
        ("threshold = 0.5\nfine_tuning = { steps = 10 }", True),
    ],
)
def test_who_gives_all_thresholds_leaves_nothing_to_validate(tmp_path: Path, training: str, fitted: bool) -> None:
    demo = (Path(__file__).parents[1] / "engines" / "demo.toml").read_text(encoding="utf-8")
    assert "[training]\n" in demo and "threshold" not in demo
    (tmp_path / "demo.toml").write_text(demo.replace("[training]\n", f"[training]\n{training}\n"), encoding="utf-8")
    dataset = read_dataset(tmp_path / "demo.toml")
    assert dataset.is_fitted == fitted
    longer = dataset.behaviours[0].model_copy(update={"bridge_s": "fit"})
    assert dataset.model_copy(update={"behaviours": (longer,)}).is_fitted
