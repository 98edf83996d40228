"""An evaluation as one HTML page that needs nothing else: no network, no files beside it."""

from __future__ import annotations

import base64
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from mbr_live.annotation.marks import Marks, runs
from mbr_live.evaluation.comparison import Compared, Truth
from mbr_live.evaluation.metrics import Evaluation, Moment
from mbr_live.stages import locate
from mbr_live.types import RATE_FPS, UNKNOWN, Image, MbrError
from mbr_live.video import sources

STATISTICS = (
    ("total_s", "Total duration", "s"),
    ("count", "Number of bouts", ""),
    ("latency_s", "Latency to the first bout", "s"),
    ("mean_s", "Mean length of a bout", "s"),
)
_STRIP_FRAMES = 8
_STRIP_MARGIN_FRAMES = RATE_FPS // 2
_JPEG_QUALITY = 82
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


def render(evaluation: Evaluation, compared: Sequence[Sequence[Compared]]) -> str:
    """The page. `compared` is [models][recordings], as `evaluate` returns it."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _figure
    environment.filters["signed"] = _signed
    environment.filters["share"] = lambda value: "–" if value is None else f"{100 * value:.1f} %"
    strips, unseen = _strips(evaluation, compared)
    return environment.get_template("report.html.j2").render(
        evaluation=evaluation,
        hours=sum(len(each.ticks) for each in compared[0]) / RATE_FPS / 3600,
        grouped=any(each.truth.group != each.truth.recording for each in compared[0]),
        plots=[_agreement_plots(evaluation, name) for name in evaluation.behaviours],
        ethograms=list(_ethograms(evaluation, compared)),
        strips=strips,
        unseen=unseen,
        rate_fps=RATE_FPS,
    )


def _figure(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _signed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale with ticks at round numbers."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def around(cls, values: Sequence[float]) -> Axis:
        low, high = min(values), max(values)
        spread = high - low or abs(high) or 1.0
        low, high = low - 0.08 * spread, high + 0.08 * spread
        magnitude = 10 ** math.floor(math.log10((high - low) / 4))
        step = next(magnitude * step for step in _STEPS if (high - low) / (magnitude * step) <= 5)
        first = math.ceil(low / step)
        return cls(low, high, tuple(step * n for n in range(first, math.floor(high / step) + 1)))

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        return (value - self.low) / (self.high - self.low)

    def shown(self, tick: float) -> str:
        return f"{tick:.6g}".replace("-", "−")


@dataclass(frozen=True, slots=True)
class AgreementPlot:
    """Difference over mean of truth and labels (Bland & Altman 1986), of all models on the same axes."""

    statistic: str
    title: str
    unit: str
    mean: Axis
    difference: Axis


def _agreement_plots(evaluation: Evaluation, behaviour: str) -> list[AgreementPlot]:
    plots = []
    for statistic, title, unit in STATISTICS:
        agreements = [model.pooled.behaviours[behaviour].agreement.get(statistic) for model in evaluation.models]
        points = [point for agreement in agreements if agreement for point in agreement.points]
        limits = [agreement.limits for agreement in agreements if agreement and agreement.limits]
        edges = [edge for each in limits for edge in (each.bias, each.lower, each.upper) if edge is not None]
        if points:
            differences = [labels - truth for truth, labels in points]
            mean = Axis.around([(truth + labels) / 2 for truth, labels in points])
            plots.append(AgreementPlot(statistic, title, unit, mean, Axis.around([0.0, *differences, *edges])))
    return plots


@dataclass(frozen=True, slots=True)
class EthogramRow:
    """One row of an ethogram: SVG paths by what they mean, one unit a tick wide and 10 high."""

    behaviour: str
    source: str  # "truth" or the model
    paths: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ethogram:
    """Truth over labels of one recording."""

    recording: str
    ticks: int
    lowest_f1: float | None  # of any behaviour and model
    rows: tuple[EthogramRow, ...]


def _ethograms(evaluation: Evaluation, compared: Sequence[Sequence[Compared]]) -> Iterator[Ethogram]:
    for of_recording in zip(*compared, strict=True):
        truth = of_recording[0].truth
        if truth.clip:
            continue
        rows = []
        for k, behaviour in enumerate(evaluation.behaviours):
            rows.append(EthogramRow(behaviour, "truth", _truth_paths(of_recording[0].marks[:, k])))
            for model, each in zip(evaluation.models, of_recording, strict=True):
                rows.append(EthogramRow(behaviour, model.name, _label_paths(each.labels[:, k], each.marks[:, k])))
        yield Ethogram(truth.recording, len(of_recording[0].ticks), _lowest_f1(evaluation, truth), tuple(rows))


def _lowest_f1(evaluation: Evaluation, truth: Truth) -> float | None:
    found = [
        scores.frames.f1
        for model in evaluation.models
        for recording in model.recordings
        if recording.recording == truth.recording
        for scores in recording.behaviours.values()
    ]
    return min((value for value in found if value is not None), default=None)


def _truth_paths(marks: Marks) -> dict[str, str]:
    return {"shown": _path(marks == 1), "unknown": _path(marks == UNKNOWN)}


def _label_paths(labels: Marks, marks: Marks) -> dict[str, str]:
    return {
        "agreed": _path((labels == 1) & (marks == 1)),
        "false": _path((labels == 1) & (marks == 0)),
        "unscored": _path((labels == 1) & (marks == UNKNOWN)),
        "missed": _path((labels == 0) & (marks == 1), top=7),
        "unknown": _path(labels == UNKNOWN),
    }


def _path(mask: NDArray[np.bool_], top: int = 0) -> str:
    return "".join(
        f"M{start} {top}h{stop - start}V10h{start - stop}z" for start, stop in runs(mask.view(np.int8)).tolist()
    )


@dataclass(frozen=True, slots=True)
class StripFrame:
    """One crop of a strip."""

    time_s: float
    picture: str  # JPEG as a data URI
    truth: int
    label: int


@dataclass(frozen=True, slots=True)
class Strip:
    """A moment of wrong labels, as the model saw it."""

    model: str
    moment: Moment
    frames: tuple[StripFrame, ...]


def _strips(evaluation: Evaluation, compared: Sequence[Sequence[Compared]]) -> tuple[list[Strip], list[str]]:
    """The worst moments of every model, and what could not be shown."""
    wanted: dict[str, dict[int, int]] = defaultdict(dict)
    planned: list[tuple[str, Moment, Compared, list[int]]] = []
    for model, of_model in zip(evaluation.models, compared, strict=True):
        by_name = {each.truth.recording: each for each in of_model}
        for moment in model.worst:
            each = by_name[moment.recording]
            rows = _rows_of(moment, each)
            planned.append((model.name, moment, each, rows))
            wanted[moment.recording].update(
                zip(each.source_frames[rows].tolist(), each.times_ns[rows].tolist(), strict=True)
            )
    truths = {each.truth.recording: each.truth for each in compared[0]}
    pictures: dict[str, dict[int, Image]] = {}
    unseen = []
    for recording, frames in wanted.items():
        try:
            pictures[recording] = _pictures(truths[recording], frames)
        except MbrError as error:
            unseen.append(f"{recording}: {error}")
    strips = [
        Strip(name, moment, tuple(_strip_frames(moment, each, rows, evaluation, pictures[moment.recording])))
        for name, moment, each, rows in planned
        if moment.recording in pictures
    ]
    return strips, unseen


def _rows_of(moment: Moment, compared: Compared) -> list[int]:
    """Rows of the log that a strip shows: evenly spread over the moment and half a second on both sides."""
    first = max(moment.start - _STRIP_MARGIN_FRAMES - int(compared.ticks[0]), 0)
    last = min(moment.stop + _STRIP_MARGIN_FRAMES - int(compared.ticks[0]), len(compared.ticks)) - 1
    rows = np.unique(np.linspace(first, last, _STRIP_FRAMES).round().astype(np.int64))
    return [int(row) for row in rows if compared.source_frames[row] != UNKNOWN]


def _pictures(truth: Truth, times_ns: Mapping[int, int]) -> dict[int, Image]:
    """The source frames of a recording that are the keys of `times_ns`, by number."""
    if not truth.videos:
        raise MbrError("the dataset names no video of it, so its moments are not shown.")
    files = [sources.VideoFile(path) for path in truth.videos]
    if len(files) == 1:
        at = sources.pictures_at(files[0].path, set(times_ns.values()))
        if len(at) == len(set(times_ns.values())):
            return {number: at[time_ns] for number, time_ns in times_ns.items()}
    # Several files, or a live log with the camera's times: count the frames.
    found: dict[int, Image] = {}
    for frame in sources.JoinedFiles(truth.recording, files):
        if frame.number in times_ns:
            found[frame.number] = frame.picture()
        if len(found) == len(times_ns):
            return found
    raise MbrError(f"the video has no frame {max(times_ns)}. Is it the one that was labelled?")


def _strip_frames(
    moment: Moment, compared: Compared, rows: Sequence[int], evaluation: Evaluation, pictures: Mapping[int, Image]
) -> Iterator[StripFrame]:
    k = evaluation.behaviours.index(moment.behaviour)
    for row in rows:
        yield StripFrame(
            time_s=int(compared.ticks[row]) / RATE_FPS,
            picture=_jpeg(_seen(pictures[int(compared.source_frames[row])], compared, row)),
            truth=int(compared.marks[row, k]),
            label=int(compared.labels[row, k]),
        )


def _seen(picture: Image, compared: Compared, row: int) -> Image:
    """The crop around the animal; where it was not found, around the middle of the frame."""
    x, y = compared.positions[row]
    if math.isnan(x):
        height, width = picture.shape[:2]
        return locate.crop(picture, width / 2, height / 2, max(height, width))
    return locate.crop(picture, x, y, compared.window_px)


def _jpeg(crop: Image) -> str:
    done, data = cv2.imencode(".jpg", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise MbrError("a picture of the report could not be compressed; this OpenCV has no JPEG. Install it anew.")
    return "data:image/jpeg;base64," + base64.b64encode(np.asarray(data, np.uint8).tobytes()).decode()
