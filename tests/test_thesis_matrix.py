"""The experiment matrix of the theses: its dataset files, its tables, and that what is done is not done again."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

pytest.importorskip("torch", reason="training is not installed: pip install 'mbr-live[train]'")

from mbr_live.datasets.dataset import read_dataset
from mbr_live.stages.kinematics import ALL, ARENA

TOOL = ROOT / "tools" / "thesis_matrix.py"


@pytest.fixture(scope="module")
def matrix() -> ModuleType:
    spec = importlib.util.spec_from_file_location("thesis_matrix", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def options(**changes: object) -> Namespace:
    given = {
        "conditions": ["box", "clutter", "dark"],
        "recordings": [17, 5, 2],
        "minutes": 3.0,
        "test_minutes": 3.0,
        "test_recordings": 2,
        "behaviours": ["grooming", "rearing_mid", "rearing_wall"],
        "set": [],
        "weights": None,
    }
    return Namespace(**given | changes)


def test_every_cell_is_a_dataset_that_can_be_read(matrix: ModuleType, tmp_path: Path) -> None:
    axes = (["slim", "resnet18", "none"], list(matrix.INPUTS), ["none", "all+arena"], ["yes", "no"])
    cells = matrix.cells_of(*axes, list(matrix.TEMPORAL))
    # Two networks see three inputs with and without kinematics and augmentation; kinematics alone are one model.
    assert len(cells) == len({cell.name for cell in cells}) == len(matrix.TEMPORAL) * (2 * 3 * 2 * 2 + 1)
    settings = ["training.frame_steps=7", "max_gap_s=0.3", "training.threshold='shrunk'"]
    for cell in cells:
        file = tmp_path / "dataset.toml"
        file.write_text(matrix.dataset_file(cell, options(set=settings)), encoding="utf-8")
        dataset = read_dataset(file)
        assert dataset.training.frame_steps == 7 and dataset.max_gap_s == 0.3
        assert dataset.training.threshold == "shrunk"
        assert dataset.model.extractor == cell.extractor and dataset.name == cell.name
        assert dataset.model.channels == ((*ALL, *ARENA) if cell.kinematics != "none" else ())
        assert dataset.model.temporal.kind == matrix.TEMPORAL[cell.temporal]["kind"]
        assert (dataset.training.augmentation.brightness > 0) == (cell.augment == "yes")
        assert dataset.training.recording_augmentation.copies == int(
            (cell.extractor, cell.augment) == ("resnet18", "yes")
        )
        assert (dataset.model.crop == "silhouette") == (cell.inputs == "binary")
        assert (dataset.model.features == "maximum") == (cell.inputs == "maximum")
    splits = Counter((spec.condition, spec.split) for spec in dataset.all_recordings())
    assert splits == {
        ("box", "train"): 14, ("box", "validation"): 3, ("box", "test"): 2,
        ("clutter", "train"): 4, ("clutter", "validation"): 1, ("clutter", "test"): 2,
        ("dark", "train"): 1, ("dark", "validation"): 1, ("dark", "test"): 2,
    }  # fmt: skip


def test_tables_are_in_the_form_of_the_theses(matrix: ModuleType) -> None:
    def figures(value: float | None) -> dict[str, float | int | None]:
        return {"frames": 100, "prevalence": 0.1, **dict.fromkeys(matrix.FIGURES, value)}

    of_behaviour = {"box": figures(0.5), "dark": figures(None), "all": figures(0.75)}
    cell = {"extractor": "slim", "inputs": "rgb", "kinematics": "none", "augment": "no", "temporal": "tcn"}
    result = matrix.Result(
        key="k", cell=cell, seconds=1.0, figures={"grooming": of_behaviour, "rearing_mid": of_behaviour}
    )
    lines = matrix.report([result], ["grooming", "rearing_mid"], ["box", "dark"]).splitlines()
    ours = "| tcn, slim, rgb, not augmented |" + " 0.500 / - |" * 5 + " 0.750 |"
    assert lines.count(ours) == 2
    thesis = [line for line in lines if "thesis 2024" in line]
    assert thesis == ["| *thesis 2024, tcn* | 0.941 / 0.962 | 0.832 / 0.671 | 0.937 / 0.582 | 0.910 / 0.683 | - | - |"]


def run(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    tiny = ("--conditions", "box", "--recordings", "2", "--test-recordings", "1", "--behaviours", "rearing")
    tiny += (
        "--minutes",
        "0.3",
        "--test-minutes",
        "0.2",
        "--cache",
        str(folder / "cache"),
        "--out",
        str(folder / "out"),
    )
    tiny += ("--extractors", "none", "--kinematics", "arena", "--set", "training.sequence_steps=2", "training.seed=2")
    command = [sys.executable, str(TOOL), *tiny, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    first = run("--temporal", "tcn", folder=tmp_path)
    assert first.returncode == 0, first.stderr
    model = tmp_path / "out" / "models" / "none-rgb-arena-augment_no-tcn"
    made = (model / "bundle" / "manifest.json").stat().st_mtime_ns
    (result,) = json.loads((tmp_path / "out" / "matrix.json").read_text(encoding="utf-8"))
    truth = json.loads((model / "report" / "metrics.json").read_text(encoding="utf-8"))["models"][0]["pooled"]
    assert result["figures"]["rearing"]["box"]["frames"] == truth["behaviours"]["rearing"]["frames"]["scored"] > 50
    more = run("--temporal", "tcn", "lstm", folder=tmp_path)
    assert more.returncode == 0, more.stderr
    assert (model / "bundle" / "manifest.json").stat().st_mtime_ns == made
    results = json.loads((tmp_path / "out" / "matrix.json").read_text(encoding="utf-8"))
    assert [each["cell"]["temporal"] for each in results] == ["tcn", "lstm"] and results[0] == result
    assert more.stdout.startswith((tmp_path / "out" / "matrix.md").read_text(encoding="utf-8"))


def test_a_condition_needs_one_recording_to_train_on_and_one_to_validate(tmp_path: Path) -> None:
    refused = run("--recordings", "1", folder=tmp_path)
    assert refused.returncode == 2 and "--recordings" in refused.stderr and not (tmp_path / "out").exists()
