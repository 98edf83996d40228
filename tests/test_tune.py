"""The search for the best settings: what is searched, that it goes on, and that the file it writes gives the model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="training is not installed: pip install 'mbr-live[train]'")
optuna = pytest.importorskip("optuna", reason="tuning needs the extra `train`")

from live import mbr_live  # noqa: E402

from mbr_live.datasets.dataset import read_dataset  # noqa: E402
from mbr_live.datasets.search_space import Range, TuneSettings  # noqa: E402
from mbr_live.manifest import TEMPORAL  # noqa: E402
from mbr_live.training import tune as tuning  # noqa: E402
from mbr_live.training.candidates import candidate, write_candidate  # noqa: E402
from mbr_live.training.train import train  # noqa: E402
from mbr_live.training.tune import Candidate, pareto_front, tune  # noqa: E402
from mbr_live.types import MbrError  # noqa: E402

BASE = """
# kept: a comment of the lab
name = "small"
summary = "Made by a test."
warmup_frames = 10
window_px = 160
simulated = [
    { condition = "box", seed = 3, minutes = 0.25, split = "train" },
    { condition = "box", seed = 5, minutes = 0.25, split = "validation" },
]

[[behaviours]]
name = "grooming"

[[behaviours]]
name = "rearing"

[model]
extractor = "none"
kinematics = "all"

[model.temporal]
kind = "tcn"
channels = 8
blocks = 2

[training]  # as few as there can be
sequence_frames = 40
sequences_per_step = 2
sequence_steps = 20
"""
SEARCH = """
[tune]
trials = 4
pruning = false

[tune.search]
"model.temporal.channels" = [4, 16]
"training.sequence_learning_rate" = { low = 1e-3, high = 1e-1, log = true }
"""


def silent(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


# What is searched


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('"training.sequence_stepps" = [1]', r"training\.sequence_stepps = 1: training\.sequence_stepps: is not a key"),
        ('"model.temporal.width" = [8, 9]', r"model\.temporal\.width = 8: .*is not a key"),
        ('"model.temporal.channels" = [8, "many"]', r"model\.temporal\.channels = 'many'"),
        ('"training.seed.more" = [1]', r"training\.seed\.more = 1: there is no such setting"),
        (
            '"training.sequence_learning_rate" = { low = -1.0, high = 1.0 }',
            r"sequence_learning_rate = -1\.0: .*greater",
        ),
        ('"training.sequence_steps" = { low = 9, high = 3 }', r"low = 9 is not below high = 3"),
        ('"splits.validation" = [0.1, 0.2]', r"'splits\.validation' is no key of \[model\] or \[training\]"),
        ('"training.sequence_steps" = []', r"at least 1 item"),
    ],
)
def test_a_search_that_cannot_be_is_an_error_before_anything_is_trained(tmp_path: Path, lines: str, said: str) -> None:
    file = written(tmp_path / "small.toml", f"{BASE}\n[tune]\n[tune.search]\n{lines}\n")
    with pytest.raises(MbrError, match=rf"Dataset {file}: .*{said}"):
        tune(file, tmp_path / "out", progress=silent)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('sampler = "grid"\n[tune.search]\n"training.label_smoothing" = { low = 0.0, high = 0.2 }', "no end of values"),
        ('objectives = ["pr_auc", "ms_per_frame"]\n[tune.search]\n"training.seed" = [1, 2]', "can not prune"),
        ('sampler = "random"\n[tune.search]\n"training.seed" = [1, 2]', "sampler"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path: Path, lines: str, said: str) -> None:
    with pytest.raises(MbrError, match=said):
        read_dataset(written(tmp_path / "small.toml", f"{BASE}\n[tune]\n{lines}\n"))


def test_a_dataset_without_a_search_says_so(tmp_path: Path) -> None:
    done = mbr_live("tune", str(written(tmp_path / "small.toml", BASE)), "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and "has no [tune] section" in done.stderr


def test_what_is_no_study_is_left_alone_and_said(tmp_path: Path) -> None:
    file = written(tmp_path / "small.toml", BASE + SEARCH)
    study = written(tmp_path / "out" / "study.sqlite", "not a database, and long enough to be looked at\n" * 20)
    with pytest.raises(MbrError, match=r"study\.sqlite is no study that can be gone on with \(.*not a database"):
        tune(file, tmp_path / "out", progress=silent)
    with pytest.raises(MbrError, match="is a file, expected a folder"):
        tune(file, study, progress=silent)
    assert study.read_text().startswith("not a database")


numbers = st.integers(-50, 50)


@given(numbers, numbers, st.integers(1, 20))
def test_the_numbers_of_a_range_begin_at_its_low_end_and_stay_in_it(low: int, high: int, step: int) -> None:
    if low >= high:
        with pytest.raises(ValueError, match="is not below"):
            Range(low=low, high=high, step=step)
        return
    steps = Range(low=low, high=high, step=step).steps()
    assert steps == tuple(range(low, high + 1, step))


def test_a_grid_is_every_combination_and_a_table_is_a_choice() -> None:
    settings = TuneSettings.model_validate(
        {
            "sampler": "grid",
            "search": {
                "model.temporal": [{"kind": "tcn"}, {"kind": "lstm"}],
                "training.sequence_steps": {"low": 10, "high": 30, "step": 10},
            },
        }
    )
    assert settings.count == 6 == len({json.dumps(values) for values in settings.grid()})
    assert settings.model_copy(update={"trials": 4}).count == 4


def test_a_candidate_written_as_a_file_is_read_as_the_same(tmp_path: Path) -> None:
    file = written(tmp_path / "data" / "small.toml", BASE + SEARCH)
    plan = read_dataset(file)
    values = {
        "model.temporal": {"kind": "lstm", "channels": 6, "layers": 2},
        "model.temporal.channels": 12,
        "training.augmentation.brightness": 0.5,
        "training.threshold": "shrunk",
    }
    known = {key: value for key, value in values.items() if key != "training.augmentation.brightness"}
    write_candidate(tmp_path / "study" / "best.toml", plan, file, known)
    again, chosen = read_dataset(tmp_path / "study" / "best.toml"), candidate(plan, known)
    assert (again.model, again.training, again.tune) == (chosen.model, chosen.training, None)
    assert again.model.temporal.model_dump(exclude={"dropout"}) == {
        "kind": "lstm", "channels": 12, "layers": 2, "offline": False,
    }  # fmt: skip
    text = (tmp_path / "study" / "best.toml").read_text()
    assert "# kept: a comment of the lab" in text and "# as few as there can be" in text and "[tune]" not in text
    assert (tmp_path / "study" / again.root).resolve() == (tmp_path / "data").resolve()


def test_paths_of_a_written_candidate_lead_to_the_same_files(tmp_path: Path) -> None:
    text = BASE.replace("simulated = [", 'recordings = [\n{ video = "videos/a.mp4", labels = "a.csv", group = "a", '
                        'split = "test" }]\nsimulated = [')  # fmt: skip
    file = written(tmp_path / "data" / "small.toml", text + SEARCH)
    plan = read_dataset(file)
    write_candidate(tmp_path / "far" / "away" / "best.toml", plan, file, {"training.seed": 5})
    one, other = (
        [spec.source.videos[0].resolve() for spec in each.all_recordings() if spec.split == "test"]
        for each in (plan, read_dataset(tmp_path / "far" / "away" / "best.toml"))
    )
    assert one == other == [(tmp_path / "data" / "videos" / "a.mp4").resolve()]


# The front

candidates = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30).map(
    lambda pairs: [Candidate(n, "complete", {}, a / 6, 1.0 + b, None) for n, (a, b) in enumerate(pairs)]
)


@given(candidates)
def test_the_front_is_what_nothing_beats(found: list[Candidate]) -> None:
    def beats(one: Candidate, other: Candidate) -> bool:
        as_good = one.pr_auc >= other.pr_auc and one.ms_per_frame <= other.ms_per_frame
        return as_good and (one.pr_auc, one.ms_per_frame) != (other.pr_auc, other.ms_per_frame)

    front = pareto_front(found)
    worth = {(each.pr_auc, each.ms_per_frame) for each in front}
    assert worth == {(one.pr_auc, one.ms_per_frame) for one in found if not any(beats(other, one) for other in found)}
    assert front[-1].pr_auc == max(each.pr_auc for each in found)


@pytest.mark.parametrize("named", ["one", "other"])
def test_a_study_is_of_the_weights_that_its_candidates_start_from(tmp_path: Path, named: str) -> None:
    text = BASE.replace('extractor = "none"', 'extractor = "resnet18"\nweights = "one.pth"')
    search = '\n[tune]\n[tune.search]\n"model.weights" = ["one.pth", "other.pth"]\n'
    plan = read_dataset(written(tmp_path / "data.toml", text + search))
    for name in ("one", "other"):
        (tmp_path / f"{name}.pth").write_bytes(b"weights")
    before = tuning._made_for(plan, plan.tune)
    assert tuning._made_for(plan, plan.tune) == before
    (tmp_path / f"{named}.pth").write_bytes(b"others!")
    assert tuning._made_for(plan, plan.tune) != before


# The search itself


def test_a_search_finds_times_writes_and_its_best_file_gives_the_model(cache: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "data" / "small.toml", BASE + SEARCH)
    stages: dict[str, tuple[int, int]] = {}
    out = tmp_path / "study"
    found = tune(file, out, progress=lambda stage, done, total: stages.update({stage: (done, total)}), cache=cache)
    assert stages["candidates"] == (4, 4)
    assert [each.number for each in found] == [0, 1, 2, 3] and all(each.state == "complete" for each in found)
    assert all(each.ms_per_frame > 0 and each.training_s > 0 and 0 <= each.pr_auc <= 1 for each in found)
    assert all(each.values["model.temporal.channels"] in (4, 16) for each in found)
    assert sorted(path.name for path in out.iterdir()) == ["best.toml", "front", "pareto.png", "study.sqlite"]
    best = max(found, key=lambda each: each.pr_auc)
    bundle = train(out / "best.toml", tmp_path / "best", progress=silent, cache=cache)
    study = optuna.load_study(study_name="tune", storage=f"sqlite:///{out / 'study.sqlite'}")
    kept = next(trial for trial in study.trials if trial.number == best.number).user_attrs["networks"]
    assert {TEMPORAL: bundle.manifest.files[TEMPORAL].sha256} == kept
    # Called again, nothing is trained; of another search, it is refused.
    assert tune(file, out, progress=silent, cache=cache) == found
    other = written(tmp_path / "data" / "other.toml", (BASE + SEARCH).replace("[4, 16]", "[4, 32]"))
    with pytest.raises(MbrError, match="is a study of another dataset, search or labels"):
        tune(other, out, progress=silent, cache=cache)
    # More candidates of the same search go on with it.
    more = written(tmp_path / "data" / "small.toml", (BASE + SEARCH).replace("trials = 4", "trials = 5"))
    assert tune(more, out, progress=silent, cache=cache)[:4] == found


def test_a_search_that_was_killed_goes_on_within_its_candidate(cache: Path, tmp_path: Path) -> None:
    """`kill -9` while the second candidate of a grid learns."""
    text = BASE.replace("sequence_steps = 20", "sequence_steps = 60")
    grid = '\n[tune]\nsampler = "grid"\npruning = false\n[tune.search]\n"model.temporal.channels" = [4, 8, 16]\n'
    file, out = written(tmp_path / "small.toml", text + grid), tmp_path / "study"
    program = (
        "import os, signal, sys; from pathlib import Path; from mbr_live.training.tune import tune\n"
        "def show(stage, done, total):\n"
        "    if (stage, done) == ('candidate 1: sequences', 30): os.kill(os.getpid(), signal.SIGKILL)\n"
        "tune(Path(sys.argv[1]), Path(sys.argv[2]), progress=show, cache=Path(sys.argv[3]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(file), str(out), str(cache)], check=False)
    assert done.returncode == -signal.SIGKILL
    steps: list[tuple[str, int]] = []
    found = tune(file, out, progress=lambda stage, done, total: steps.append((stage, done)), cache=cache)
    learnt = [each for each in steps if each[0].endswith("sequences")]
    assert learnt[0][1] > 25, "the candidate that was killed began anew"
    assert sorted(each.values["model.temporal.channels"] for each in found) == [4, 8, 16]
    assert len({stage for stage, _ in learnt}) == 2, "what was done is not done again"
    assert [each.training_s is None for each in sorted(found, key=lambda one: one.number)].count(True) == 1
    assert sorted(path.name for path in out.iterdir()) == ["best.toml", "front", "pareto.png", "study.sqlite"]


def test_a_candidate_that_is_behind_is_given_up(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_STARTUP_CANDIDATES", 1)
    # A learning rate of nearly nothing after one that learns: at every step behind the median.
    lines = '[tune]\nsampler = "grid"\n[tune.search]\n"training.sequence_learning_rate" = [3e-2, 1e-9]\n'
    file = written(tmp_path / "small.toml", f"{BASE}\n{lines}")
    found = tune(file, tmp_path / "out", progress=silent, cache=cache)
    assert [each.state for each in found] == ["complete", "pruned"]
    assert found[1].pr_auc is None and [each.number for each in pareto_front(found)] == [0]


def test_values_that_do_not_go_together_cost_a_candidate_not_the_search(cache: Path, tmp_path: Path) -> None:
    lines = (
        '[tune]\nsampler = "grid"\npruning = false\nobjectives = ["pr_auc", "ms_per_frame"]\n[tune.search]\n'
        '"model.temporal.heads" = [2, 4]\n"model.temporal.channels" = [8, 6]\n'
    )
    transformer = BASE.replace('kind = "tcn"', 'kind = "transformer"\nheads = 2\nwindow_frames = 8')
    file = written(tmp_path / "small.toml", transformer.replace("blocks = 2", "layers = 1") + lines)
    found = tune(file, tmp_path / "out", progress=silent, cache=cache)
    assert [each.state for each in found] == ["complete", "complete", "complete", "fail"]


@pytest.mark.parametrize("choices", ['["gone.pth", "none"]', '["gone.pth"]'])
def test_a_candidate_that_cannot_be_trained_costs_a_candidate_not_the_search(
    cache: Path, tmp_path: Path, choices: str
) -> None:
    """It is found when the training begins: the weights are not there."""
    seen = BASE.replace('extractor = "none"', 'extractor = "resnet18"\nresize_px = 75').replace('"all"', '"none"')
    lines = (
        "frame_steps = 1\nframes_per_step = 2\n"
        f'[tune]\nsampler = "grid"\npruning = false\n[tune.search]\n"model.weights" = {choices}\n'
    )
    file = written(tmp_path / "small.toml", seen + lines)
    if "none" in choices:
        found = tune(file, tmp_path / "out", progress=silent, cache=cache)
        assert [(each.values["model.weights"], each.state) for each in found] == [
            ("gone.pth", "fail"),
            ("none", "complete"),
        ]
        return
    for _ in range(2):
        with pytest.raises(MbrError, match=r"none of the 1 candidates .*gone\.pth can not be read"):
            tune(file, tmp_path / "out", progress=silent, cache=cache)


def test_the_program_prints_the_front(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "small.toml", (BASE + SEARCH).replace("trials = 4", "trials = 2"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(tuning, "tune", lambda *given, **more: tune(*given, **more, cache=cache))
    tuning.tune_program(file, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "ms/frame" in printed and "best.toml: mbr-live train gives the best" in printed
    assert printed.count("*") >= 1
