"""The drift reference of a bundle: what the recordings look like that it was trained on, and what it says of others.

Brightness and size are of the first minutes of every recording to train on or to validate with; they are kept in the
cache. Probabilities are of the validation recordings alone: of what it was trained on, a model is too sure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from mbr_live.datasets.dataset import Dataset, Progress, file_name, key_of, video_files
from mbr_live.datasets.recordings import RecordingSpec
from mbr_live.drift import BRIGHTNESS, SIZE, Counts, Histogram, Reference, bins_of, counts_of, distance, sight
from mbr_live.files import write_atomically
from mbr_live.stages import locate
from mbr_live.stages.blindness import BlindState, is_blind
from mbr_live.training.cropping import CROPPED_BY
from mbr_live.training.fitting import Validated
from mbr_live.video import sources

LOOKED_AT_TICKS = 1200  # two minutes of each recording: enough for its light and its animal, and soon looked at


def build_reference(
    plan: Dataset, names: Sequence[str], validated: Sequence[Validated], cache: Path, progress: Progress
) -> Reference:
    """Of the recordings `names` of a dataset, and of what a finished model says of those to validate with."""
    specs = [spec for spec in plan.all_recordings() if spec.name in set(names)]
    seen: dict[str, dict[str, Counts]] = {BRIGHTNESS: {}, SIZE: {}}
    for done, spec in enumerate(specs, 1):
        for measure, counts in _sights(spec, plan.window_px, cache).items():
            of_group = seen[measure].setdefault(spec.group, np.zeros(bins_of(measure)[2]))
            of_group += counts
        progress("reference", done, len(specs))
    said = {
        f"p_{behaviour.name}": _said(f"p_{behaviour.name}", k, validated) for k, behaviour in enumerate(plan.behaviours)
    }
    measures = {name: _histogram(name, parts) for name, parts in {**seen, **said}.items()}
    return Reference(
        recordings=tuple(dict.fromkeys(spec.name for spec in specs)),
        measures={name: histogram for name, histogram in measures.items() if sum(histogram.counts)},
    )


def _said(measure: str, k: int, validated: Sequence[Validated]) -> dict[str, Counts]:
    found: dict[str, Counts] = {}
    for stretch in validated:
        counts = counts_of(measure, stretch.probabilities[:, k])
        found[stretch.recording] = found.get(stretch.recording, np.zeros_like(counts)) + counts
    return found


def _histogram(measure: str, parts: Mapping[str, Counts]) -> Histogram:
    """All parts together; each part that has frames is also held against the others."""
    low, high, bins = bins_of(measure)
    filled = [counts for counts in parts.values() if counts.sum()]
    whole = sum(filled, np.zeros(bins))
    apart = [distance(measure, whole - counts, counts) for counts in filled] if len(filled) > 1 else []
    counts = tuple(int(count) for count in whole)
    return Histogram(low=low, high=high, counts=counts, within=round(max(apart), 4) if apart else None)


def _sights(spec: RecordingSpec, window_px: int | None, cache: Path) -> dict[str, Counts]:
    """Brightness and size in the first minutes of a recording, frames per bin; from the cache where they are there."""
    videos = video_files(spec, cache)
    stats = [video.stat() for video in videos]
    identity = " ".join(
        f"{video.resolve()} {stat.st_size} {stat.st_mtime_ns}" for video, stat in zip(videos, stats, strict=True)
    )
    key = key_of(f"{identity} {window_px} {LOOKED_AT_TICKS}", (*CROPPED_BY, "drift.py"))
    kept = cache / f"{file_name(spec.name)}.{key}.sights.json"
    if not kept.is_file():
        found = _look(spec.name, videos, window_px)
        write_atomically(kept, json.dumps({measure: counts.tolist() for measure, counts in found.items()}))
    return {measure: np.array(counts) for measure, counts in json.loads(kept.read_text()).items()}


def _look(name: str, videos: Sequence[Path], window_px: int | None) -> dict[str, Counts]:
    source = sources.JoinedFiles(name, [sources.VideoFile(video) for video in videos])
    state, seen = locate.initial_state(), BlindState()
    sights: list[tuple[float, float]] = []
    for frame in islice(sources.sampled(source, name), LOOKED_AT_TICKS):
        blind, seen = is_blind(frame.pixels, seen)
        if blind:
            continue
        sighting, state = locate.locate(frame.pixels, state)
        side = window_px or locate.window_px(state)
        if sighting.found and side:
            sights.append(sight(frame.pixels, state, side))
    return {
        measure: counts_of(measure, (each[place] for each in sights))
        for place, measure in enumerate((BRIGHTNESS, SIZE))
    }
