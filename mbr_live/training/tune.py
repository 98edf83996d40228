"""`mbr-live tune`: which settings give the best model, and what does a faster one cost?

Candidates are trained one after the other and scored on the validation recordings; test recordings are never read. A
study is an SQLite file that is written after every candidate, so that a search that was killed goes on where it was,
also within the candidate that it was killed in.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from mbr_live.bundle import Bundle
from mbr_live.datasets.dataset import Dataset, Progress, read_dataset
from mbr_live.datasets.recordings import files_of
from mbr_live.datasets.search_space import Range, TuneSettings
from mbr_live.datasets.settings import Unfit
from mbr_live.engines.openvino_engine import OpenVinoEngine
from mbr_live.manifest import FEATURES, TEMPORAL
from mbr_live.progress import bars
from mbr_live.training.candidates import candidate, check_space, write_candidate
from mbr_live.training.extractors import file_hash
from mbr_live.training.train import train_on
from mbr_live.types import MbrError

log = logging.getLogger(__name__)

STUDY, BEST, PLOT = "study.sqlite", "best.toml", "pareto.png"
FRONT = "front"  # folder of the dataset files of the candidates on the Pareto front
_CANDIDATES = "candidates"
_BEFORE, _AFTER = ("labels", "recordings"), "reference"  # stages that are no part of the training time
_TIMED_FRAMES, _WARM_FRAMES, _SEQUENCE_FRAMES = 200, 20, 1024
_STARTUP_CANDIDATES = 5  # with which the next ones are compared before any is given up
_FINISHED = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.FAIL)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One set of values, and what came of it."""

    number: int
    state: str  # "complete", "pruned", "fail"
    values: Mapping[str, Any]
    pr_auc: float | None  # mean over the behaviours, on all validation recordings together; None unless complete
    ms_per_frame: float | None  # of the exported networks, one frame, one thread, on this machine; median
    training_s: float | None  # None also where it was interrupted


def tune_program(dataset_file: Path, out: Path) -> None:
    """Search with progress bars; print the Pareto front."""
    with bars(Console(stderr=True), over=_CANDIDATES) as show:
        found = tune(dataset_file, out, progress=show)
    console = Console(soft_wrap=True, highlight=False)
    console.print(_table(found))
    console.print(f"{out / BEST}: mbr-live train gives the best of them. {out / PLOT}, {out / FRONT}", markup=False)


def tune(dataset_file: Path, out: Path, *, progress: Progress, cache: Path | None = None) -> list[Candidate]:
    """Search as the `[tune]` section says; all candidates, in order.

    Writes STUDY, BEST, PLOT and FRONT into `out`. MbrError for a search that cannot be, or where `out` has a study of
    another dataset.
    """
    plan = read_dataset(dataset_file)
    settings = plan.tune
    if settings is None:
        raise MbrError(f"Dataset {dataset_file} has no [tune] section. Say there what is to be searched.")
    check_space(plan, settings, dataset_file)
    if out.exists() and not out.is_dir():
        raise MbrError(f"{out} is a file, expected a folder for the study. Give another --out.")
    out.mkdir(parents=True, exist_ok=True)
    study = _study(plan, settings, out)
    if settings.sampler == "grid":
        for values in settings.grid():
            study.enqueue_trial(_encoded(settings, values), skip_if_exists=True)
    search = _Search(plan, settings, out, cache, progress)
    try:
        while (done := len(study.get_trials(deepcopy=False, states=_FINISHED))) < settings.count:
            progress(_CANDIDATES, done, settings.count)
            search.try_one(study)
        progress(_CANDIDATES, settings.count, settings.count)
    finally:
        found = candidates_of(study, settings)
        _write_results(found, plan, dataset_file, out)
    if not any(each.state == "complete" for each in found):
        why = [trial.user_attrs["why"] for trial in study.get_trials(deepcopy=False) if "why" in trial.user_attrs]
        raise MbrError(
            f"{out}: none of the {len(found)} candidates could be trained to its end. Widen the search. "
            + " ".join(why[-1:])
        )
    return found


def _study(plan: Dataset, settings: TuneSettings, out: Path) -> optuna.Study:
    """The study in `out`, begun if it is not there."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    maximize, minimize = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
    directions = [maximize if objective == "pr_auc" else minimize for objective in settings.objectives]
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{(out / STUDY).resolve()}")
        study = optuna.create_study(storage=storage, study_name="tune", directions=directions, load_if_exists=True)
    except (SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        raise MbrError(
            f"{out / STUDY} is no study that can be gone on with ({str(error).splitlines()[0]}). "
            "Give another --out, or delete that file."
        ) from error
    made_for = _made_for(plan, settings)
    if study.user_attrs.setdefault("made_for", made_for) != made_for:
        raise MbrError(
            f"{out / STUDY} is a study of another dataset, search or labels: its candidates cannot be compared with "
            "those to come. Give another --out, or delete that folder."
        )
    study.set_user_attr("made_for", made_for)
    tried = len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=settings.seed + tried)
    study.pruner = (
        optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_CANDIDATES)
        if settings.pruning
        else optuna.pruners.NopPruner()
    )
    return study


def _made_for(plan: Dataset, settings: TuneSettings) -> str:
    """Hash of all that a candidate's score depends on but the program, and not of how many candidates there are."""
    digest = hashlib.sha256(plan.model_dump_json(exclude={"tune", "root"}).encode())
    digest.update(settings.model_dump_json(include={"search", "objectives"}).encode())
    for spec in plan.all_recordings():
        videos, labels = files_of(spec)
        digest.update(f"{spec.name} {spec.group} {spec.split}".encode())
        for video in filter(Path.is_file, videos):  # what is missing is an error of training, which says more
            digest.update(f"{video.name} {video.stat().st_size}".encode())
        for label in filter(Path.is_file, labels):
            digest.update(label.read_bytes())
    for weights in filter(Path.is_file, _weights_of(plan, settings)):
        digest.update(file_hash(weights).encode())
    return digest.hexdigest()


def _weights_of(plan: Dataset, settings: TuneSettings) -> Iterator[Path]:
    """The files of weights that a candidate may start from."""
    tried = settings.listed("model.weights") if "model.weights" in settings.search else ()
    for model in (plan.model, *(plan.model.model_copy(update={"weights": each}) for each in tried)):
        if file := plan.model_copy(update={"model": model}).weights_file:
            yield file


class _Search:
    """Trains and measures one candidate after the other."""

    def __init__(
        self, plan: Dataset, settings: TuneSettings, out: Path, cache: Path | None, progress: Progress
    ) -> None:
        self._plan, self._settings, self._out, self._cache = plan, settings, out, cache
        self._progress = progress

    def try_one(self, study: optuna.Study) -> None:
        """The next candidate; first the one that was under way when an earlier search was killed."""
        killed = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        trial = optuna.Trial(study, killed[0]._trial_id) if killed else study.ask()
        try:
            values = self._try(trial, killed[0].intermediate_values if killed else None)
        except optuna.TrialPruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        except Unfit as error:
            log.warning("candidate %d: %s", trial.number, error)
            trial.set_user_attr("why", str(error))
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, values[: len(self._settings.objectives)])
        shutil.rmtree(self._under_way, ignore_errors=True)  # of no use any more

    def _try(self, trial: optuna.Trial, before: Mapping[int, float] | None) -> tuple[float, float]:
        """PR-AUC and milliseconds of a candidate; `before` is what it had reported when it was killed."""
        values = {key: _suggested(trial, key, space) for key, space in self._settings.search.items()}
        chosen = candidate(self._plan, values)
        began_s = ended_s = time.monotonic()

        def show(stage: str, done: int, total: int) -> None:
            nonlocal began_s, ended_s
            if stage in _BEFORE:
                began_s = time.monotonic()
            if stage != _AFTER:
                ended_s = time.monotonic()
            self._progress(f"candidate {trial.number}: {stage}", done, total)

        bundle = train_on(
            chosen,
            self._under_way / "bundle",
            progress=show,
            cache=self._cache,
            told=self._judge(trial, before or {}) if self._settings.pruning else None,
            checkpoints_in=self._under_way,
        )
        if before is None:
            trial.set_user_attr("training_s", round(ended_s - began_s, 2))
        cost_ms = ms_per_frame(bundle)
        files = bundle.manifest.files
        networks = {name: files[name].sha256 for name in (FEATURES, TEMPORAL) if name in files}
        trial.set_user_attr("ms_per_frame", round(cost_ms, 4))
        trial.set_user_attr("networks", networks)
        score = _score([fit.pr_auc for fit in bundle.manifest.training.fits])
        trial.set_user_attr("pr_auc", score)
        return score, cost_ms

    @property
    def _under_way(self) -> Path:
        """All files of the candidate that is being tried."""
        return self._out / "under-way"

    def _judge(
        self, trial: optuna.Trial, before: Mapping[int, float]
    ) -> Callable[[int, Mapping[str, float | None]], None]:
        """Gives a candidate up that is behind the others at the same step."""

        def told(step: int, pr_auc: Mapping[str, float | None]) -> None:
            if step not in before:
                trial.report(_score(list(pr_auc.values())), step)
            if trial.should_prune():
                raise optuna.TrialPruned

        return told


def _suggested(trial: optuna.Trial, key: str, space: Range | tuple[Any, ...]) -> Any:
    if not isinstance(space, Range):
        # Optuna's choices are plain numbers and strings; ours may be whole tables.
        return space[trial.suggest_categorical(key, list(range(len(space))))]
    if space.whole:
        step = int(space.step or 1)
        return trial.suggest_int(key, int(space.low), int(space.high), step=step, log=space.log)
    return trial.suggest_float(key, space.low, space.high, step=space.step, log=space.log)


def _encoded(settings: TuneSettings, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as Optuna has them: a choice by its place."""
    return {
        key: value if isinstance(space, Range) else space.index(value)
        for (key, space), value in zip(settings.search.items(), values.values(), strict=True)
    }


def _decoded(settings: TuneSettings, parameters: Mapping[str, Any]) -> dict[str, Any]:
    spaces = settings.search
    return {key: each if isinstance(space := spaces[key], Range) else space[each] for key, each in parameters.items()}


def _score(pr_auc: Sequence[float | None]) -> float:
    """Mean over the behaviours that the validation recordings show."""
    shown = [value for value in pr_auc if value is not None]
    if not shown:
        raise MbrError("The validation recordings show none of the behaviours: nothing can be compared. Add some.")
    return round(float(np.mean(shown)), 6)


def ms_per_frame(bundle: Bundle) -> float:
    """Time of the networks of a bundle for one frame, as live runs them: one thread, one frame after the other; median.

    Of a bundle that looks ahead, the share of a frame in a sequence of 1024.
    """
    engine, manifest = OpenVinoEngine(bundle), bundle.manifest
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (1, manifest.crop_px, manifest.crop_px, 3), np.uint8)
    channels = np.zeros((1, len(manifest.kinematics)), np.float32)
    state = np.zeros((1, manifest.state_size), np.float32)
    whole = np.zeros((_SEQUENCE_FRAMES, manifest.input_dim), np.float32)

    def frame() -> None:
        nonlocal state
        features = [engine.features(crops)] if manifest.feature_dim else []
        if manifest.causal:
            _, state = engine.step(np.concatenate([*features, channels], axis=1), state)

    each = [_timed_ms(frame) for _ in range(_WARM_FRAMES + _TIMED_FRAMES)][_WARM_FRAMES:]
    if manifest.causal:
        return float(np.median(each))
    ahead = [_timed_ms(lambda: engine.sequence(whole)) for _ in range(5)]
    return float(np.median(each) + np.median(ahead) / _SEQUENCE_FRAMES)


def _timed_ms(work: Callable[[], object]) -> float:
    began_ns = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - began_ns) / 1e6


def candidates_of(study: optuna.Study, settings: TuneSettings) -> list[Candidate]:
    """All candidates that came to an end, in order."""
    return [
        Candidate(
            number=trial.number,
            state=trial.state.name.lower(),
            values=_decoded(settings, trial.params),
            pr_auc=trial.user_attrs.get("pr_auc") if trial.state.name == "COMPLETE" else None,
            ms_per_frame=trial.user_attrs.get("ms_per_frame"),
            training_s=trial.user_attrs.get("training_s"),
        )
        for trial in study.get_trials(deepcopy=False, states=_FINISHED)
    ]


def pareto_front(found: Sequence[Candidate]) -> list[Candidate]:
    """The candidates of which none other is both as good and as fast, and better in one; the fastest first."""
    best: list[Candidate] = []
    measured = [each for each in found if each.pr_auc is not None and each.ms_per_frame is not None]
    for each in sorted(measured, key=lambda one: (one.ms_per_frame, -(one.pr_auc or 0.0), one.number)):
        if not best or (each.pr_auc or 0.0) > (best[-1].pr_auc or 0.0):
            best.append(each)
    return best


def _write_results(found: Sequence[Candidate], plan: Dataset, dataset_file: Path, out: Path) -> None:
    """The dataset files of the front and of the best, and the picture."""
    front = pareto_front(found)
    if not front:
        return
    shutil.rmtree(out / FRONT, ignore_errors=True)
    for each in front:
        write_candidate(out / FRONT / f"{each.number}.toml", plan, dataset_file, each.values)
    write_candidate(out / BEST, plan, dataset_file, front[-1].values)
    _plot(found, front, out / PLOT)


def _plot(found: Sequence[Candidate], front: Sequence[Candidate], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.add_subplot()
    of_front = {each.number for each in front}
    axes.scatter(*_places([each for each in found if each.number not in of_front]), color="#8a939b", label="candidates")
    axes.plot(*_places(front), "o-", color="#0072b2", drawstyle="steps-post", label="Pareto front")
    for each, x, y in zip(front, *_places(front), strict=True):
        axes.annotate(str(each.number), (x, y), (5, 5), textcoords="offset points")
    axes.set_xlabel("ms per frame of the networks, one thread of this machine")
    axes.set_ylabel("PR-AUC on the validation recordings, mean of the behaviours")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(file, dpi=130)


def _places(of: Sequence[Candidate]) -> tuple[list[float], list[float]]:
    """Milliseconds and PR-AUC of those that have both."""
    both = [(x, y) for each in of if (x := each.ms_per_frame) is not None and (y := each.pr_auc) is not None]
    return [x for x, _ in both], [y for _, y in both]


def _table(found: Sequence[Candidate]) -> Table:
    """All candidates, the best first; those on the front are marked."""
    front = {each.number for each in pareto_front(found)}
    keys = list(dict.fromkeys(key for each in found for key in each.values))
    table = Table("candidate", "front", "PR-AUC", "ms/frame", "training s", *keys, title="Validation recordings")
    for each in sorted(found, key=lambda one: -1.0 if one.pr_auc is None else one.pr_auc, reverse=True):
        score = each.state if each.pr_auc is None else f"{each.pr_auc:.3f}"
        cost = "-" if each.ms_per_frame is None else f"{each.ms_per_frame:.3f}"
        training = "-" if each.training_s is None else f"{each.training_s:.1f}"
        values = (_shown(each.values.get(key)) for key in keys)
        table.add_row(str(each.number), "*" if each.number in front else "", score, cost, training, *values)
    return table


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
