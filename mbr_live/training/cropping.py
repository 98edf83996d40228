"""What is kept of one recording to train on: the stages of offline processing, up to the features, into the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from mbr_live.ahead import Ahead
from mbr_live.bundle import Bundle
from mbr_live.datasets.dataset import video_files
from mbr_live.datasets.recordings import Clip, RecordingSpec
from mbr_live.datasets.variation import Draw, varied
from mbr_live.engines.choice import cores
from mbr_live.engines.openvino_engine import OpenVinoEngine
from mbr_live.engines.protocol import Engine
from mbr_live.jobs import Far
from mbr_live.manifest import CropKind
from mbr_live.stages import locate
from mbr_live.stages.blindness import BlindState, is_blind
from mbr_live.stages.kinematics import CHANNELS, Channels, KinematicState, kinematics
from mbr_live.stages.silhouette import Silhouette, as_crop, silhouette
from mbr_live.training.cache_files import Rows, alone, continued, save_array
from mbr_live.types import CROP_PX, Frame, Image, MbrError, Sighting
from mbr_live.video import sources

# The modules that crops and channels depend on; a change of one of them makes these anew.
CROPPED_BY = (
    *(f"stages/{name}.py" for name in ("background", "blindness", "locate", "sampler")),
    *(f"video/{name}.py" for name in ("decoding", "sources")),
)
CUT_BY = (*CROPPED_BY, "stages/silhouette.py")
MEASURED_BY = (*CUT_BY, "stages/walls.py", "stages/kinematics.py")
VARIED_BY = (*MEASURED_BY, "datasets/variation.py")

_DECODED_AHEAD_FRAMES = 8  # as in `batch`
_SEEN_AHEAD_FRAMES = 32  # and at most computed in one call


@dataclass(frozen=True, slots=True)
class CachedFiles:
    """What is cached of a recording; crops, channels and features where they are needed."""

    rows: Path  # ticks and source frames, int64 [N, 2]
    crop: CropKind
    crops_name: str
    crops: Path | None  # uint8 [N, CROP_PX, CROP_PX, 3]
    channels: Path | None  # float32 [N, len(CHANNELS)]
    varied: Path | None  # float32 [V, N, len(CHANNELS)]
    features: Path | None  # float32 [N, D]

    def missing(self) -> frozenset[Path]:
        """Those that the video has to be decoded for; where there are crops, features are made of them."""
        features = self.features if self.crops is None or not self.crops.is_file() else None
        wanted = (self.rows, self.crops, self.channels, self.varied, features)
        return frozenset(path for path in wanted if path and not path.is_file())


@dataclass(frozen=True, slots=True)
class Cropping:
    """One recording to crop, to measure and to compute features of."""

    spec: RecordingSpec
    window_px: int | None
    max_gap_frames: int
    draws: tuple[Draw, ...]  # the changed copies
    files: CachedFiles
    cache: Path


def opened(network: Bundle | None, processes: int) -> Callable[[Cropping, Far], int]:
    """What makes the missing files of recordings, in one of so many processes; features by the network of a bundle."""
    cv2.setNumThreads(1)  # the stages of one recording are threads already
    engine = OpenVinoEngine(network, threads=max(1, cores() // processes)) if network else None
    return partial(_make, engine, network.manifest.feature_dim if network else 0)


def _make(engine: Engine | None, feature_dim: int, job: Cropping, far: Far) -> int:
    """Make what is missing of a recording; how many frames it has. `far` is told source frames."""
    with alone(job.files.rows.with_suffix(".lock")):
        if not (missing := job.files.missing()):
            return len(np.load(job.files.rows, allow_pickle=False))
        spec = job.spec
        source = sources.JoinedFiles(spec.name, [sources.VideoFile(video) for video in video_files(spec, job.cache)])
        total = source.estimated_frames
        far(0, total)
        frames = sources.sampled(source, spec.name)
        rows = _write(frames, job, missing, engine, feature_dim, lambda done: far(done, total))
        if not len(rows) and not isinstance(spec.source, Clip):
            raise MbrError(
                f"{spec.name}: the animal was not found for long enough to crop it. Give a longer recording, or "
                "window_px = the side of the crop window."
            )
        save_array(job.files.rows, rows)
    return len(rows)


@dataclass(frozen=True, slots=True)
class _Shown:
    """What is kept of a frame that shows the animal in a window."""

    index: int
    source_frame: int
    crop: Image | None
    channels: tuple[Channels, ...]  # as it is, then of the copies; empty where they are not missing


def _write(
    frames: Iterable[Frame],
    job: Cropping,
    missing: frozenset[Path],
    engine: Engine | None,
    feature_dim: int,
    far: Callable[[int], None],
) -> NDArray[np.int64]:
    """Write the missing files of all frames with an animal; their rows, int64 [N, 2].

    Decoding, seeing and the network each have a thread, as in `batch`.
    """
    files = job.files
    rows: list[tuple[int, int]] = []
    channels: list[tuple[Channels, ...]] = []
    with ExitStack() as stack:
        keep, computed = None, None
        if files.crops and files.crops in missing:
            keep = stack.enter_context(_crop_file(files.crops))
        if engine and files.features and files.features in missing:
            computed = stack.enter_context(continued(files.features, feature_dim))
        decoded = stack.enter_context(closing(Ahead(frames, _DECODED_AHEAD_FRAMES)))
        seen = stack.enter_context(closing(Ahead(_shown(decoded, job, missing, keep), _SEEN_AHEAD_FRAMES)))
        for group in seen.groups(_SEEN_AHEAD_FRAMES):
            if computed and engine:
                _compute([shown.crop for shown in group if shown.crop is not None], len(rows), engine, computed)
            rows += [(shown.index, shown.source_frame) for shown in group]
            channels += [shown.channels for shown in group]
            far(group[-1].source_frame)
    measured = np.array(channels, np.float32).reshape(len(rows), -1, len(CHANNELS))
    if files.channels and files.channels in missing:
        save_array(files.channels, measured[:, 0])
    if files.varied and files.varied in missing:
        save_array(files.varied, np.ascontiguousarray(measured[:, 1:].swapaxes(0, 1)))
    return np.array(rows, np.int64).reshape(-1, 2)


def _compute(crops: Sequence[Image], first: int, engine: Engine, computed: Rows) -> None:
    """Add the features of crops, of which the first is row `first`, but for those that are there already."""
    new = crops[max(0, computed.done - first) :]
    if new:
        computed.add(engine.features(np.stack(new)))


def _shown(
    frames: Iterable[Frame], job: Cropping, missing: frozenset[Path], keep: Callable[[Image], None] | None
) -> Iterator[_Shown]:
    """Look at frames one after the other, and keep their crops where they are missing."""
    files = job.files
    measures = bool({files.channels, files.varied} & missing)
    crops = bool({files.crops, files.features} & missing)
    cuts = measures or (crops and files.crop == "silhouette")
    draws = job.draws if files.varied in missing else ()
    state, blind_state, last = locate.initial_state(), BlindState(), None
    measured = _Measured(draws)
    for frame in frames:
        blind, blind_state = is_blind(frame.pixels, blind_state)
        if blind:
            continue
        sighting, state = locate.locate(frame.pixels, state)
        side = job.window_px or locate.window_px(state)
        if not sighting.found or side is None:
            continue
        cut = silhouette(frame.pixels, sighting, state, side) if cuts else None
        if last is not None and frame.index - last - 1 > job.max_gap_frames:
            measured.reset()
        crop = _crop(frame.pixels, sighting, side, cut if files.crop == "silhouette" else None) if crops else None
        if keep and crop is not None:
            keep(crop)
        yield _Shown(frame.index, frame.source_frame, crop, measured.add(cut) if cut and measures else ())
        last = frame.index


def _crop(pixels: Image, sighting: Sighting, window_px: int, cut: Silhouette | None) -> Image:
    return as_crop(cut) if cut else locate.crop(pixels, sighting.x_px, sighting.y_px, window_px)


class _Measured:
    """Kinematic channels of a recording as it is, and of its changed copies, frame by frame."""

    def __init__(self, draws: Sequence[Draw]) -> None:
        self._draws = draws
        self._states = [KinematicState()] * (1 + len(draws))

    def reset(self) -> None:
        """As the pipeline resets a lane."""
        self._states = [state.after_reset() for state in self._states]

    def add(self, seen: Silhouette) -> tuple[Channels, ...]:
        """Channels of the next frame: as it is, then of the copies."""
        values = []
        for lane, shown in enumerate((seen, *(varied(seen, each) for each in self._draws))):
            channels, self._states[lane] = kinematics(shown, self._states[lane])
            values.append(channels)
        return tuple(values)


@contextmanager
def _crop_file(path: Path) -> Iterator[Callable[[Image], None]]:
    """Write crops one by one to a .npy file of uint8 [N, 160, 160, 3] that is there only when all went well."""
    unfinished = path.with_suffix(".part")
    count = 0

    def write_header(file: BinaryIO) -> None:
        # numpy leaves room for the length to grow, so that the header can be written again over itself.
        shape = (count, CROP_PX, CROP_PX, 3)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})

    def write(crop: Image) -> None:
        nonlocal count
        file.write(crop.tobytes())
        count += 1

    try:
        with unfinished.open("wb") as file:
            write_header(file)
            yield write
            file.seek(0)
            write_header(file)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
