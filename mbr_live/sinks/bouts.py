"""The bout log: a pure function of the label log."""

from __future__ import annotations

import math

from mbr_live.manifest import Manifest
from mbr_live.stages.decide import Bout, BoutState, end_bout, follow_bout
from mbr_live.types import RATE_FPS

BOUTS_SUFFIX = ".bouts.csv"
BOUTS_HEADER = "behaviour,start_frame,stop_frame,start_s,stop_s,duration_s,mean_p,complete"


def bout_row(bout: Bout) -> str:
    """One row of the bout log. Times are of the 10 fps grid; a bout lasts to the end of its last frame."""
    start_s, stop_s = bout.start_frame / RATE_FPS, (bout.stop_frame + 1) / RATE_FPS
    return (
        f"{bout.behaviour},{bout.start_frame},{bout.stop_frame},{start_s:.1f},{stop_s:.1f},"
        f"{stop_s - start_s:.1f},{bout.mean_p:.4f},{int(bout.complete)}\n"
    )


class BoutFollower:
    """Finds the bouts of all behaviours while the rows of a label log pass by."""

    def __init__(self, manifest: Manifest, states: tuple[BoutState, ...] = ()) -> None:
        """`states`, one per behaviour, are what the rows so far have led to."""
        self._names = manifest.behaviour_names
        self._max_gap_frames = manifest.max_gap_frames
        self.states = list(states) or [BoutState()] * len(self._names)

    def follow(self, index: int, labels: tuple[int, ...], probabilities: tuple[float, ...]) -> list[Bout]:
        """Take the row of tick `index`; the bouts that it ends."""
        ended: list[Bout] = []
        for k, name in enumerate(self._names):
            p = probabilities[k] if probabilities else math.nan
            bout, self.states[k] = follow_bout(name, index, labels[k], p, self._max_gap_frames, self.states[k])
            ended += [bout] if bout else []
        return ended

    def follow_gap(self, index: int, labels: tuple[int, ...], ticks: int) -> list[Bout]:
        """Take a gap of `ticks` rows. What lies beyond the longest bridge changes nothing any more."""
        ticks = min(ticks, self._max_gap_frames + 1)
        return [bout for tick in range(ticks) for bout in self.follow(index + tick, labels, ())]

    def end(self) -> list[Bout]:
        """End the open bouts where they were last confirmed."""
        ended = [end_bout(name, state) for name, state in zip(self._names, self.states, strict=True)]
        self.states = [BoutState()] * len(self._names)
        return [bout for bout in ended if bout]
