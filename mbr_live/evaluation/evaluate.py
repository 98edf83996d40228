"""Label logs held against what people have marked: every figure of an evaluation, as one tree.

What is scored, everywhere the same: a tick counts where the truth is marked and the label is known. How many of the
marked ticks have a label at all is the coverage, which stands beside every figure. A tick that no frame served takes
the mark of the frame before it. Where people judged stills, the ticks that show one are scored; all ticks, each still
held until the next, are scored beside them, and bouts are of these. Axes: N ticks, K behaviours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np

from mbr_live.annotation.marks import runs
from mbr_live.evaluation import bouts, scoring
from mbr_live.evaluation.bouts import Disagreements
from mbr_live.evaluation.classes import confusion_of_frames, exclusive_of, score_clips
from mbr_live.evaluation.comparison import Compared, LabelFolder, Truth, compare, label_logs, notes_on
from mbr_live.evaluation.metrics import (
    Agreement,
    BinaryScores,
    Evaluation,
    ModelScores,
    Moment,
    RecordingBehaviour,
    RecordingScores,
    SetBehaviour,
    SetScores,
    Spread,
)
from mbr_live.evaluation.scoring import Counts
from mbr_live.evaluation.tracks import Ticks, Track, score_bouts, track_of
from mbr_live.evaluation.twins import lookahead_costs

SPREAD_OF = ("precision", "recall", "f1", "pr_auc", "kappa", "coverage")
AGREEMENT_OF = ("total_s", "count", "latency_s", "mean_s")
SETS = ("condition", "group", "camera")
_MOMENTS_OF_A_KIND = 2


def evaluate(
    dataset: str,
    split: str,
    behaviours: Sequence[str],
    truths: Sequence[Truth],
    folders: Sequence[LabelFolder],
    caveats: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Evaluation, list[list[Compared]]]:
    """Score every folder against the truth; also the logs beside the truth, [folders][recordings].

    MbrError when a log is missing, damaged or of other behaviours.
    """
    exclusive = exclusive_of(behaviours, truths)
    compared = []
    models = []
    for each in folders:
        progress(each.name)
        logs = label_logs(each, truths)
        found = [compare(logs[truth.recording], truth) for truth in truths]
        compared.append(found)
        notes = list(notes_on(behaviours, found, logs))
        models.append(_score_model(each.name, behaviours, exclusive, found, notes))
    evaluation = Evaluation(
        dataset=dataset,
        split=split,
        caveats=list(caveats),
        behaviours=list(behaviours),
        exclusive=exclusive,
        models=models,
        lookahead=lookahead_costs(behaviours, models, compared),
    )
    return evaluation, compared


def _score_model(
    name: str, behaviours: Sequence[str], exclusive: list[str], compared: Sequence[Compared], notes: list[str]
) -> ModelScores:
    tracks = [[track_of(each, k) for k in range(len(behaviours))] for each in compared]
    recordings = [
        _score_recording(each, dict(zip(behaviours, of_recording, strict=True)))
        for each, of_recording in zip(compared, tracks, strict=True)
        if not each.truth.clip
    ]

    def score_set(chosen: Sequence[int]) -> SetScores:
        names = {compared[row].truth.recording for row in chosen}
        within = [recording for recording in recordings if recording.recording in names]
        return SetScores(
            recordings=len(chosen),
            ticks=sum(len(compared[row].ticks) for row in chosen),
            stills=_stills([compared[row] for row in chosen]),
            behaviours={
                behaviour: _score_together(behaviour, [tracks[row][k] for row in chosen], within)
                for k, behaviour in enumerate(behaviours)
            },
            multiclass=confusion_of_frames(behaviours, exclusive, [compared[row] for row in chosen]),
        )

    return ModelScores(
        name=name,
        causal=_causal(compared),
        notes=notes,
        pooled=score_set(range(len(compared))),
        sets={
            kind: {value: score_set(rows) for value, rows in members.items()}
            for kind in SETS
            if len(members := _members(kind, compared)) > 1
        },
        recordings=recordings,
        clips=score_clips(behaviours, exclusive, [each for each in compared if each.truth.clip]),
        worst=_worst_moments(behaviours, compared),
    )


def _causal(compared: Sequence[Compared]) -> bool | None:
    """Whether no log looks ahead; None where nobody knows of one."""
    known = {each.causal for each in compared}
    return False if False in known else None if None in known else True


def _members(kind: str, compared: Sequence[Compared]) -> dict[str, list[int]]:
    """Rows of `compared` by condition, group or camera; groups of one recording each tell nothing new."""
    members = defaultdict(list)
    for row, each in enumerate(compared):
        members[getattr(each.truth, kind)].append(row)
    if kind == "group" and all(len(rows) == 1 for rows in members.values()):
        return {}
    return dict(sorted(members.items()))


def _score_recording(compared: Compared, tracks: dict[str, Track]) -> RecordingScores:
    truth = compared.truth
    return RecordingScores(
        recording=truth.recording,
        group=truth.group,
        condition=truth.condition,
        camera=truth.camera,
        ticks=len(compared.ticks),
        stills=_stills([compared]),
        status=dict(compared.status),
        behaviours={
            name: RecordingBehaviour(
                frames=track.judged.scores,
                held=_held([track]),
                bouts=score_bouts([track]),
                disagreements=track.disagreements,
                truth=bouts.statistics(track.true_bouts),
                labels=bouts.statistics(track.found_bouts),
            )
            for name, track in tracks.items()
        },
    )


def _stills(compared: Sequence[Compared]) -> int | None:
    """Ticks that show a judged still; None where no recording has stills."""
    counts = [int(np.count_nonzero(each.judged)) for each in compared if each.of_stills]
    return sum(counts) if counts else None


def _held(tracks: Sequence[Track]) -> BinaryScores | None:
    """Of all ticks; None where these were all judged."""
    if all(track.held is None for track in tracks):
        return None
    return Ticks.together([track.held or track.judged for track in tracks]).scores


def _score_together(name: str, tracks: Sequence[Track], recordings: Sequence[RecordingScores]) -> SetBehaviour:
    judged = Ticks.together([track.judged for track in tracks])
    by_group: dict[str, Counts] = defaultdict(Counts)
    for track in tracks:
        by_group[track.truth.group] += track.judged.counts
    whole = [track for track in tracks if not track.truth.clip]
    calibration = scoring.calibration(judged.probabilities, judged.shown)
    return SetBehaviour(
        frames=judged.scores,
        held=_held(tracks),
        f1_interval=scoring.f1_interval(list(by_group.values())),
        bouts=score_bouts(whole) if whole else None,
        disagreements=sum((track.disagreements for track in whole), Disagreements()) if whole else None,
        spread=dict(_spreads(name, recordings)),
        agreement={figure: _agreement(name, figure, recordings) for figure in AGREEMENT_OF} if whole else {},
        calibration=calibration,
        calibration_error=scoring.calibration_error(calibration),
        pr_curve=scoring.pr_curve(judged.probabilities, judged.shown),
    )


def _spreads(name: str, recordings: Sequence[RecordingScores]) -> Iterable[tuple[str, Spread]]:
    for figure in SPREAD_OF:
        values = {each.recording: getattr(each.behaviours[name].frames, figure) for each in recordings}
        yield from _spread(figure, values)
    yield from _spread("bout_f1", {each.recording: each.behaviours[name].bouts["0.5"].f1 for each in recordings})


def _spread(figure: str, values: dict[str, float | None]) -> Iterable[tuple[str, Spread]]:
    defined = {recording: value for recording, value in values.items() if value is not None}
    if defined:
        q1, median, q3 = (float(q) for q in np.quantile(list(defined.values()), (0.25, 0.5, 0.75)))
        worst = min(defined, key=lambda recording: defined[recording])
        yield (
            figure,
            Spread(recordings=len(defined), median=median, q1=q1, q3=q3, worst=defined[worst], worst_recording=worst),
        )


def _agreement(name: str, figure: str, recordings: Sequence[RecordingScores]) -> Agreement:
    of_both = [
        (getattr(each.behaviours[name].truth, figure), getattr(each.behaviours[name].labels, figure))
        for each in recordings
    ]
    points = [(truth, labels) for truth, labels in of_both if truth is not None and labels is not None]
    return Agreement(
        compared=len(points),
        censored=len(of_both) - len(points),
        limits=scoring.limits_of_agreement([labels - truth for truth, labels in points]),
        points=points,
    )


def _worst_moments(behaviours: Sequence[str], compared: Sequence[Compared]) -> list[Moment]:
    """Of every behaviour and kind the stretches that are most wrong, the worst first."""
    worst: list[Moment] = []
    for k, name in enumerate(behaviours):
        for kind in ("missed", "false"):
            moments = [moment for each in compared for moment in _moments(each, k, name, kind)]
            worst += sorted(moments, key=lambda moment: -moment.weight)[:_MOMENTS_OF_A_KIND]
    return sorted(worst, key=lambda moment: -moment.weight)


def _moments(compared: Compared, k: int, behaviour: str, kind: Literal["missed", "false"]) -> Iterable[Moment]:
    label, mark = (0, 1) if kind == "missed" else (1, 0)
    wrong = (compared.labels[:, k] == label) & (compared.marks[:, k] == mark)
    distance = np.abs(compared.probabilities[:, k] - mark)
    for start, stop in runs(wrong.view(np.int8)).tolist():
        yield Moment(
            recording=compared.truth.recording,
            behaviour=behaviour,
            kind=kind,
            start=int(compared.ticks[start]),
            stop=int(compared.ticks[stop - 1]) + 1,
            weight=round(float(distance[start:stop].sum()), 3),
        )
