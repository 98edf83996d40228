"""Recordings laid out for training, and passages drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mbr_live.annotations import Marks
from mbr_live.preparation import Recording, stretches
from mbr_live.types import UNKNOWN


@dataclass(frozen=True, slots=True)
class Lesson:
    """A recording laid out for training: P positions, which are the ticks of its stretches one after the other."""

    recording: Recording
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
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.known for part in parts]),
        np.repeat(stops - lengths, lengths),
        np.repeat(stops, lengths),
    )


def draw(
    lessons: Sequence[Lesson],
    count: int,
    frames: int,
    rng: np.random.Generator,
    chances: NDArray[np.float64] | None = None,
) -> list[Passage]:
    """Passages at random; every other one holds a frame of a behaviour, since most frames are of none.

    For these, `chances` [lessons, K] are those of a lesson to be drawn, by behaviour; without, all are alike.
    """
    drawn = []
    behaviours = lessons[0].recording.truth.shape[1]
    for number in range(count):
        wanted = int(rng.integers(behaviours)) if chances is not None and number % 2 else None
        if chances is None or wanted is None:
            lesson = lessons[int(rng.integers(len(lessons)))]
        else:
            lesson = lessons[int(rng.choice(len(lessons), p=chances[:, wanted]))]
        candidates = np.flatnonzero(np.any(lesson.truth != UNKNOWN, axis=1))
        if number % 2:
            wanted = int(rng.integers(behaviours)) if wanted is None else wanted
            shown = np.flatnonzero(lesson.truth[:, wanted] == 1)
            candidates = shown if len(shown) else candidates
        position = int(rng.choice(candidates))
        start = max(position - int(rng.integers(frames)), int(lesson.starts[position]))
        stop = min(start + frames, int(lesson.stops[position]))
        lack = frames - (stop - start)
        rows = np.pad(lesson.rows[start:stop], (0, lack), mode="edge")
        drawn.append(Passage(lesson, rows, np.pad(lesson.known[start:stop], (0, lack))))
    return drawn


def chances_by_count(lessons: Sequence[Lesson]) -> NDArray[np.float64]:
    """Chances [lessons, K] to be drawn for a behaviour, by the root of its frames."""
    roots = np.sqrt([np.count_nonzero(lesson.truth == 1, axis=0) for lesson in lessons])
    roots[:, roots.sum(axis=0) == 0] = 1.0
    chances: NDArray[np.float64] = roots / roots.sum(axis=0)
    return chances
