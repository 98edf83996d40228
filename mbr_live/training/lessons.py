"""Recordings laid out for training, and passages drawn from them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mbr_live.annotation.marks import Marks
from mbr_live.datasets.augmentation import Change, RecordingAugmentation, drawn_change
from mbr_live.training.preparation import Recording, stretches
from mbr_live.types import UNKNOWN


@dataclass(frozen=True, slots=True)
class Lesson:
    """A recording laid out for training: P positions, which are the ticks of its stretches one after the other."""

    recording: Recording
    name: str  # of the recording, or of a changed copy of it
    change: Change | None  # of its pictures; None: as they are
    rows: NDArray[np.int64]  # [P] row of the recording that serves the position
    known: NDArray[np.bool_]  # [P] False where the row is held over a gap
    starts: NDArray[np.int64]  # [P] first position of its stretch
    stops: NDArray[np.int64]  # [P] position after the last one of its stretch

    @property
    def truth(self) -> Marks:
        return self.recording.truth[self.rows]


@dataclass(frozen=True, slots=True)
class Passage:
    """F positions of a lesson on end; what lies beyond the end of a stretch is not known."""

    lesson: Lesson
    rows: NDArray[np.int64]
    known: NDArray[np.bool_]

    @property
    def truth(self) -> Marks:
        return self.lesson.recording.truth[self.rows]

    def weights(self, held_weight: float) -> NDArray[np.float32]:
        """[F] what the label of each frame weighs: less where it repeats that of a still that somebody judged."""
        return np.where(self.lesson.recording.judged[self.rows], 1.0, held_weight).astype(np.float32)


def lesson_of(recording: Recording, max_gap_frames: int) -> Lesson:
    """Lay out a recording; a gap of more than `max_gap_frames` begins a new stretch."""
    parts = stretches(recording.ticks, max_gap_frames)
    lengths = np.array([len(part.rows) for part in parts])
    stops = np.cumsum(lengths)
    return Lesson(
        recording,
        recording.name,
        None,
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.known for part in parts]),
        np.repeat(stops - lengths, lengths),
        np.repeat(stops, lengths),
    )


def copies_of(lessons: Sequence[Lesson], settings: RecordingAugmentation, seed: int) -> list[Lesson]:
    """Changed copies of lessons, each with one draw that depends on the seed, its name and its number alone."""
    return [
        replace(lesson, name=f"{lesson.name}+{copy}", change=drawn_change(settings, _rng_of(lesson.name, copy, seed)))
        for lesson in lessons
        for copy in range(1, settings.copies + 1)
    ]


def _rng_of(name: str, copy: int, seed: int) -> np.random.Generator:
    of_name = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return np.random.default_rng((seed, 3, copy, of_name))


def draw(
    lessons: Sequence[Lesson],
    count: int,
    frames: int,
    rng: np.random.Generator,
    of: Sequence[int],
    chances: NDArray[np.float64] | None = None,
) -> list[Passage]:
    """Passages at random; every other one holds a frame of a behaviour, since most frames are of none.

    `of` are the behaviours that count, of the K of the lessons; every lesson has labels of one of them. For passages
    that hold a behaviour, `chances` [lessons, K] are those of a lesson to be drawn; without, all are alike.
    """
    drawn = []
    for number in range(count):
        wanted = of[int(rng.integers(len(of)))] if chances is not None and number % 2 else None
        if chances is None or wanted is None:
            lesson = lessons[int(rng.integers(len(lessons)))]
        else:
            lesson = lessons[int(rng.choice(len(lessons), p=chances[:, wanted]))]
        candidates = np.flatnonzero(np.any(lesson.truth[:, of] != UNKNOWN, axis=1))
        if number % 2:
            wanted = of[int(rng.integers(len(of)))] if wanted is None else wanted
            shown = np.flatnonzero(lesson.truth[:, wanted] == 1)
            candidates = shown if len(shown) else candidates
        position = int(rng.choice(candidates))
        start = max(position - int(rng.integers(frames)), int(lesson.starts[position]))
        stop = min(start + frames, int(lesson.stops[position]))
        lack = frames - (stop - start)
        rows = np.pad(lesson.rows[start:stop], (0, lack), mode="edge")
        drawn.append(Passage(lesson, rows, np.pad(lesson.known[start:stop], (0, lack))))
    return drawn


def with_labels(lessons: Sequence[Lesson], of: Sequence[int]) -> list[Lesson]:
    """Those with a label of one of the behaviours `of`."""
    return [lesson for lesson in lessons if np.any(lesson.truth[:, of] != UNKNOWN)]


def class_weights(lessons: Sequence[Lesson]) -> NDArray[np.float32]:
    """[K, 2] what a label 0 and a label 1 of each behaviour weighs: labels / (2 x labels of its class).

    So both classes weigh the same together. A class that does not occur weighs 1.
    """
    truth = np.concatenate([lesson.truth[lesson.known] for lesson in lessons])
    counts = np.stack([(truth == label).sum(axis=0) for label in (0, 1)], axis=1)
    weights = counts.sum(axis=1, keepdims=True) / (2.0 * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 1.0).astype(np.float32)


def chances_by_count(lessons: Sequence[Lesson]) -> NDArray[np.float64]:
    """Chances [lessons, K] to be drawn for a behaviour, by the root of its frames."""
    roots = np.sqrt([np.count_nonzero(lesson.truth == 1, axis=0) for lesson in lessons])
    roots[:, roots.sum(axis=0) == 0] = 1.0
    chances: NDArray[np.float64] = roots / roots.sum(axis=0)
    return chances
