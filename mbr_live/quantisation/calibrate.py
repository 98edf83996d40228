"""An int8 feature network for a bundle, made from recordings and kept only where it labels as the float32 one does.

The bundle's own float32 labels say which frames to calibrate on: of every set of behaviours that is shown at once, in
dark, middling and bright crops, as many. The list of them is kept, so that the graph can be made again, to the byte.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mbr_live.annotation.marks import Annotations
from mbr_live.bundle import Bundle, write_bundle
from mbr_live.engines.choice import engine_of
from mbr_live.engines.parity import parity
from mbr_live.engines.protocol import Engine
from mbr_live.evaluation.scoring import average_precision
from mbr_live.files import write_atomically
from mbr_live.manifest import CARD, FEATURES, FEATURES_INT8, Int8Card
from mbr_live.pipeline import Hindsight, Pipeline
from mbr_live.quantisation.graph import quantised
from mbr_live.types import UNKNOWN, Decision, Image, MbrError, Status
from mbr_live.video.sources import JoinedFiles, VideoFile, sampled

MAX_PR_AUC_LOSS = 0.005
"""Of any behaviour, over all frames with truth together."""

MAX_LABELS_DIFFER = 0.01
"""Share of the frames of recordings that lack truth of a behaviour, in such behaviours: nothing says which of the two
labels is right."""

CALIBRATION_FRAMES = 256
_LIGHTS = 3  # dark, middling, bright
_INT8_HEADING = "## Features in 8-bit integers"

Progress = Callable[[str, int], None]
"""Called with what is being done and how many frames of it are done."""


@dataclass(frozen=True, slots=True)
class Given:
    """A recording to calibrate on."""

    name: str
    files: tuple[Path, ...]
    window_px: int | None = None
    truth: Annotations | None = None


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ListedRecording(_Record):
    """The calibration frames of one recording."""

    name: str
    sha256: tuple[str, ...]  # of its files, in order
    window_px: int | None
    source_frames: tuple[int, ...]


class CalibrationList(_Record):
    """What an int8 graph was made from."""

    format: Literal[1] = 1
    features_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # of the float32 graph
    recordings: tuple[ListedRecording, ...]

    @property
    def frames(self) -> int:
        """Frames of all recordings together."""
        return sum(len(each.source_frames) for each in self.recordings)


@dataclass(frozen=True, slots=True)
class Labelled:
    """One recording as one engine labels it. Axes: N frames with status ok, K behaviours."""

    source_frames: NDArray[np.int64]  # [N]
    probabilities: NDArray[np.float64]  # [N, K]
    labels: NDArray[np.int8]  # [N, K]
    light: NDArray[np.float64]  # [N] mean of the crop, 0 to 255
    sampled: NDArray[np.int64]  # all source frames that serve a tick, whatever their status


@dataclass(frozen=True, slots=True)
class Cost:
    """What int8 changes, on the frames that both label."""

    frames: int
    labels_differ: float  # share of the frames
    pr_auc: dict[str, tuple[float, float]]  # per behaviour with truth: float32, int8
    untold_frames: int  # of recordings that lack truth of at least one behaviour
    untold_differ: float  # share of these, in behaviours that their recording has no truth of


def calibrate(
    bundle: Bundle,
    given: Sequence[Given],
    out: Path,
    list_file: Path,
    *,
    again: CalibrationList | None = None,
    progress: Progress = lambda what, done: None,
) -> Bundle:
    """Write the bundle with an int8 feature network to folder `out`, and the list of calibration frames.

    `again` takes the frames of such a list instead of choosing. MbrError, and nothing written, where int8 costs more
    than MAX_PR_AUC_LOSS or changes more than MAX_LABELS_DIFFER of the frames where there is no truth.
    """
    if not bundle.manifest.feature_dim:
        raise MbrError(f"Bundle {bundle.path} has no feature network: there is nothing to quantise.")
    exact = engine_of(bundle, "openvino-f32")
    before = [label(each, bundle, exact, progress, "float32 labels") for each in given]
    listed = _checked(again, bundle, given) if again else _list(bundle, given, before)
    crops = list(_crops(listed, bundle, given, exact, progress))
    integers = quantised(bundle.read(FEATURES), crops, lambda done: progress("quantising", done))
    list_text = listed.model_dump_json(indent=1) + "\n"
    with tempfile.TemporaryDirectory() as folder:
        untested = _written(Path(folder, "bundle"), bundle, integers, _card(given, listed, list_text, _UNTESTED, 0.0))
        engine = engine_of(untested, "openvino-int8")
        after = [label(each, bundle, engine, progress, "int8 labels") for each in given]
        error = parity(engine, exact, bundle.manifest).feature_error
    cost = cost_of(bundle.manifest.behaviour_names, given, before, after)
    _check(bundle, cost)
    list_file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(list_file, list_text)
    return _written(out, bundle, integers, _card(given, listed, list_text, cost, error))


def label(given: Given, bundle: Bundle, engine: Engine, progress: Progress, what: str) -> Labelled:
    """Label a recording as `mbr-live batch` does; the frames with status ok."""
    light: dict[int, float] = {}

    def note(source_frame: int, crop: Image) -> None:
        light[source_frame] = float(crop.mean())
        progress(f"{what} of {given.name}", len(light))

    decisions = [each for each in _decisions(given, bundle, engine, note) if each.source_frame != UNKNOWN]
    known = [each for each in decisions if each.status is Status.OK]
    behaviours = len(bundle.manifest.behaviours)
    return Labelled(
        np.array([each.source_frame for each in known], np.int64),
        np.array([each.probabilities for each in known], np.float64).reshape(-1, behaviours),
        np.array([each.labels for each in known], np.int8).reshape(-1, behaviours),
        np.array([light[each.source_frame] for each in known], np.float64),
        np.array([each.source_frame for each in decisions], np.int64),
    )


def choose(labelled: Sequence[Labelled], count: int) -> list[list[int]]:
    """Which source frames of each recording to calibrate on, `count` in all or as many as there are.

    Every set of labels in every third of the light is a stratum; the strata give in turn, each evenly over its length.
    """
    strata: dict[tuple[object, ...], list[tuple[int, int]]] = {}
    for number, each in enumerate(labelled):
        if not len(each.light):
            continue
        thirds = np.searchsorted(np.quantile(each.light, (1 / _LIGHTS, 2 / _LIGHTS)), each.light).tolist()
        for frame, labels, third in zip(each.source_frames.tolist(), each.labels.tolist(), thirds, strict=True):
            strata.setdefault((*labels, third), []).append((number, frame))
    shares = _shares([len(each) for each in strata.values()], count)
    chosen: list[list[int]] = [[] for _ in labelled]
    for frames, share in zip(strata.values(), shares, strict=True):
        for place in np.linspace(0, len(frames) - 1, share).round().astype(int).tolist():
            number, frame = frames[place]
            chosen[number].append(frame)
    return [sorted(each) for each in chosen]


def cost_of(
    behaviours: Sequence[str], given: Sequence[Given], before: Sequence[Labelled], after: Sequence[Labelled]
) -> Cost:
    """Hold the labels of int8 against those of float32 and both against the truth.

    A recording has the same known frames whichever engine labels it: which they are is found before the networks.
    """
    differ = [f32.labels != int8.labels for f32, int8 in zip(before, after, strict=True)]
    truths = [_truth_of(each, behaviours, f32) for each, f32 in zip(given, before, strict=True)]
    pr_auc = {
        name: scores
        for number, name in enumerate(behaviours)
        if (scores := _pr_auc(number, np.concatenate(truths)[:, number], before, after)) is not None
    }
    scored = [name in pr_auc for name in behaviours]
    without = [~(scored & (truth != UNKNOWN).any(axis=0)) for truth in truths]
    untold = [each[:, lacking].any(axis=1) for each, lacking in zip(differ, without, strict=True) if lacking.any()]
    return Cost(
        sum(map(len, differ)),
        _share([each.any(axis=1) for each in differ]),
        pr_auc,
        sum(map(len, untold)),
        _share(untold),
    )


def largest_loss(pr_auc: Mapping[str, tuple[float, float]]) -> float | None:
    """Of any behaviour, from its PR-AUC with float32 and with int8; None where there is no truth."""
    return max((f32 - int8 for f32, int8 in pr_auc.values()), default=None)


def read_list(path: Path) -> CalibrationList:
    """Read a list of calibration frames; MbrError when it is none."""
    try:
        return CalibrationList.model_validate_json(path.read_bytes())
    except OSError as error:
        raise MbrError(f"{path}: cannot be read ({error.strerror}). Expected a list of calibration frames.") from error
    except ValidationError as error:
        raise MbrError(
            f"{path}: this is no list of calibration frames. Give one that `mbr-live calibrate int8` wrote."
        ) from error


_UNTESTED = Cost(1, 0.0, {}, 0, 0.0)


def _decisions(
    given: Given, bundle: Bundle, engine: Engine, on_crop: Callable[[int, Image], None]
) -> Iterator[Decision]:
    """All decisions about a recording; `on_crop` is called with every source frame that has a crop."""
    pipeline = Pipeline(bundle.manifest, engine, {given.name: given.window_px} if given.window_px else None)
    hindsight = Hindsight(pipeline)
    label = pipeline.label if bundle.manifest.causal else hindsight.label
    state = pipeline.start()
    for frame in sampled(JoinedFiles(given.name, [VideoFile(path) for path in given.files]), given.name):
        seen = pipeline.see(frame, state.sight)
        decisions, states = label([seen], pipeline.features([seen]), {given.name: state})
        state = states[given.name]
        if seen.crop is not None:
            on_crop(frame.source_frame, seen.crop)
        yield from decisions
    yield from hindsight.flush()


def _list(bundle: Bundle, given: Sequence[Given], labelled: Sequence[Labelled]) -> CalibrationList:
    if not sum(len(each.source_frames) for each in labelled):
        raise MbrError("calibrate: no frame of the recordings has a label. Give recordings that show the animal.")
    recordings = tuple(
        ListedRecording(name=each.name, sha256=_hashes(each), window_px=each.window_px, source_frames=tuple(frames))
        for each, frames in zip(given, choose(labelled, CALIBRATION_FRAMES), strict=True)
    )
    return CalibrationList(features_sha256=bundle.manifest.files[FEATURES].sha256, recordings=recordings)


def _checked(listed: CalibrationList, bundle: Bundle, given: Sequence[Given]) -> CalibrationList:
    """Raises MbrError where a list is of another model or of other recordings."""
    if listed.features_sha256 != bundle.manifest.files[FEATURES].sha256:
        raise MbrError(f"Bundle {bundle.path}: the list of calibration frames is of another feature network.")
    known = [(each.sha256, each.window_px) for each in listed.recordings]
    if known != [(_hashes(each), each.window_px) for each in given]:
        raise MbrError(
            f"calibrate: the list is of the recordings {', '.join(each.name for each in listed.recordings)}; those "
            f"given ({', '.join(each.name for each in given)}) are others, or in another order or window."
        )
    return listed


def _crops(
    listed: CalibrationList, bundle: Bundle, given: Sequence[Given], engine: Engine, progress: Progress
) -> Iterator[Image]:
    """The crops of the listed frames, in order."""
    for each, recording in zip(given, listed.recordings, strict=True):
        wanted, found = set(recording.source_frames), dict[int, Image]()

        def keep(source_frame: int, crop: Image, wanted: set[int] = wanted, found: dict[int, Image] = found) -> None:
            if source_frame in wanted:
                found[source_frame] = crop.copy()
                progress("calibration frames", len(found))

        for _ in _decisions(each, bundle, engine, keep):
            if len(found) == len(wanted):
                break
        if missing := sorted(wanted - found.keys()):
            raise MbrError(f"{each.name}: source frame {missing[0]} of the list shows no animal. The list is damaged.")
        yield from (found[frame] for frame in recording.source_frames)


def _share(found: Sequence[NDArray[np.bool_]]) -> float:
    """Of all frames together; 0 where there are none."""
    return float(np.concatenate(found).mean()) if sum(map(len, found)) else 0.0


def _shares(sizes: Sequence[int], count: int) -> list[int]:
    """How many of `count` each stratum gives: all the same, but none more than it has."""
    shares = [0] * len(sizes)
    for _ in range(min(count, sum(sizes))):
        open_ = (number for number, size in enumerate(sizes) if shares[number] < size)
        shares[min(open_, key=shares.__getitem__)] += 1
    return shares


def _truth_of(given: Given, behaviours: Sequence[str], said: Labelled) -> NDArray[np.int8]:
    """Marks [N, K] where somebody judged; UNKNOWN elsewhere."""
    truth = np.full((len(said.source_frames), len(behaviours)), UNKNOWN, np.int8)
    if given.truth is not None:
        # A still is shown by one sampled frame, whether that has a label or not: none takes its place.
        shown = said.sampled[given.truth.judged_at(said.sampled)]
        marks, judged = given.truth.at(said.source_frames), np.isin(said.source_frames, shown)
        for number, name in enumerate(behaviours):
            if name in given.truth.behaviours:
                truth[judged, number] = marks[judged, given.truth.behaviours.index(name)]
    return truth


def _pr_auc(
    number: int, truth: NDArray[np.int8], before: Sequence[Labelled], after: Sequence[Labelled]
) -> tuple[float, float] | None:
    """Of behaviour `number`, with float32 and with int8, over all judged frames of all recordings together."""
    known = truth != UNKNOWN
    f32, int8 = (
        average_precision(np.concatenate([each.probabilities[:, number] for each in said])[known], truth[known] == 1)
        for said in (before, after)
    )
    return None if f32 is None or int8 is None else (f32, int8)


def _check(bundle: Bundle, cost: Cost) -> None:
    loss, unchanged = largest_loss(cost.pr_auc), f"Bundle {bundle.path} stays as it is"
    if loss is not None and loss > MAX_PR_AUC_LOSS:
        scores = ", ".join(f"{name} {f32:.4f} -> {int8:.4f}" for name, (f32, int8) in cost.pr_auc.items())
        raise MbrError(
            f"int8 loses {loss:.4f} of PR-AUC ({scores}), at most {MAX_PR_AUC_LOSS} is allowed. {unchanged}: calibrate "
            "on recordings that show more, or keep to float32 or bf16."
        )
    if cost.untold_differ > MAX_LABELS_DIFFER:
        raise MbrError(
            f"int8 labels {cost.untold_differ:.2%} of {cost.untold_frames} frames otherwise than float32, in "
            f"behaviours that their recordings have no truth of; at most {MAX_LABELS_DIFFER:.0%} is allowed where "
            f"nothing says which is right. {unchanged}: give recordings with truth of every behaviour (--dataset), or "
            "more of them, or keep to float32 or bf16."
        )


def _card(given: Sequence[Given], listed: CalibrationList, list_text: str, cost: Cost, error: float) -> Int8Card:
    return Int8Card(
        date=datetime.now(UTC).date().isoformat(),
        versions={name: version(name) for name in ("mbr-live", "onnx", "onnxruntime", "openvino")},
        recordings=tuple(each.name for each in given),
        calibration_frames=listed.frames,
        calibration_sha256=hashlib.sha256(list_text.encode()).hexdigest(),
        compared_frames=cost.frames,
        labels_differ=round(cost.labels_differ, 6),
        pr_auc={name: (round(f32, 6), round(int8, 6)) for name, (f32, int8) in cost.pr_auc.items()},
        feature_error=round(error, 6),
    )


def _written(path: Path, bundle: Bundle, integers: bytes, card: Int8Card) -> Bundle:
    contents: Mapping[str, bytes] = {name: bundle.read(name) for name in bundle.manifest.files if name != FEATURES_INT8}
    manifest = bundle.manifest.model_copy(update={"int8": card})
    text = with_int8(bundle.read(CARD).decode(), card).encode()
    return write_bundle(path, manifest, {**contents, FEATURES_INT8: integers, CARD: text})


def with_int8(text: str, card: Int8Card) -> str:
    """The card of a bundle, in Markdown, with what int8 costs; in place of what it said of that before."""
    scores = ", ".join(f"{name} {f32:.3f} to {int8:.3f}" for name, (f32, int8) in card.pr_auc.items())
    lines = (
        "",
        _INT8_HEADING,
        "",
        "A second feature network computes with integers (`--engine openvino-int8`, `tensorrt-int8`).",
        "",
        f"- Made on {card.date} from {card.calibration_frames} frames of {', '.join(card.recordings)}",
        f"- Labels {card.labels_differ:.2%} of {card.compared_frames} frames otherwise than float32",
        f"- PR-AUC on these frames, float32 to int8: {scores or 'not measured, there was no truth'}",
        "",
    )
    return text.partition(f"\n{_INT8_HEADING}\n")[0].rstrip("\n") + "\n" + "\n".join(lines)


def _hashes(given: Given) -> tuple[str, ...]:
    hashes = []
    for path in given.files:
        with path.open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return tuple(hashes)
