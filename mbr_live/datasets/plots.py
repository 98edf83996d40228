"""Pictures of what a dataset holds: the ethogram of a recording's truth, and how long the bouts are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from mbr_live.annotation.marks import Marks, runs
from mbr_live.types import RATE_FPS, UNKNOWN

# Colours that people with colour blindness can tell apart (Okabe and Ito), one per behaviour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_UNLABELLED = "#C9C9C9"
_BASE = "#F3F3F3"
_BINS_PER_DECADE = 8
_SHORTEST_S = 0.09  # just below one frame, so that no edge lies on a length that can occur


def colour(behaviour: int) -> str:
    """The colour of the k-th behaviour of a dataset."""
    return COLOURS[behaviour % len(COLOURS)]


def plot_ethograms(path: Path, behaviours: Sequence[str], recordings: Mapping[str, Marks], title: str) -> None:
    """Write a PNG with the truth of recordings, 10 fps int8 [T, K] each, one below the other on one time axis."""
    longest_s = max(len(marks) for marks in recordings.values()) / RATE_FPS
    unit_s, unit = (60.0, "min") if longest_s > 180 else (1.0, "s")
    lanes = len(behaviours)
    height = 1.1 + len(recordings) * (0.28 + 0.2 * lanes)
    figure = Figure(figsize=(11, height), layout="constrained")
    axes = figure.subplots()
    ticks = []
    for row, (name, marks) in enumerate(recordings.items()):
        for k in range(lanes):
            bottom = -(row * (lanes + 1) + k + 1) + 0.1
            _draw_lane(axes, marks[:, k], bottom, colour(k), 1 / (RATE_FPS * unit_s))
        ticks.append((-(row * (lanes + 1)) - lanes / 2, name))
    axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
    axes.set_ylim(-len(recordings) * (lanes + 1) + 0.8, 0.3)
    axes.set_xlim(0, longest_s / unit_s)
    axes.set_xlabel(f"time ({unit})")
    axes.set_title(title, loc="left", fontsize=11)
    legend = [Patch(color=colour(k), label=name) for k, name in enumerate(behaviours)]
    axes.legend(
        handles=[*legend, Patch(color=_UNLABELLED, label="not labelled")],
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=len(legend) + 1,
        frameon=False,
    )
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    _save(figure, path)


def _draw_lane(axes: Axes, marks: NDArray[np.int8], bottom: float, shown: str, unit: float) -> None:
    axes.broken_barh([(0, len(marks) * unit)], (bottom, 0.8), color=_BASE, linewidth=0)
    for value, tint in ((UNKNOWN, _UNLABELLED), (1, shown)):
        bars = [(start * unit, (stop - start) * unit) for start, stop in runs(marks, value).tolist()]
        axes.broken_barh(bars, (bottom, 0.8), color=tint, linewidth=0)


def plot_bout_lengths(path: Path, lengths_s: Mapping[str, NDArray[np.float64]]) -> None:
    """Write a PNG with a histogram of bout lengths on a logarithmic axis, one panel per behaviour."""
    longest = max((float(lengths.max()) for lengths in lengths_s.values() if len(lengths)), default=1.0)
    bins = int(np.ceil(np.log10(longest / _SHORTEST_S) * _BINS_PER_DECADE)) + 1
    edges = _SHORTEST_S * 10 ** (np.arange(max(bins, _BINS_PER_DECADE) + 1) / _BINS_PER_DECADE)
    figure = Figure(figsize=(3.6 * len(lengths_s) + 0.6, 3.2), layout="constrained")
    panels = figure.subplots(1, len(lengths_s), squeeze=False, sharex=True)[0]
    for k, (panel, (name, lengths)) in enumerate(zip(panels, lengths_s.items(), strict=True)):
        panel.hist(lengths, bins=edges, color=colour(k), edgecolor="white", linewidth=0.6)
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.yaxis.get_major_locator().set_params(integer=True)
        panel.set_xlabel("bout length (s)")
        panel.set_title(f"{name}: {len(lengths)} bouts", loc="left", fontsize=11)
        if len(lengths):
            median = float(np.median(lengths))
            panel.axvline(median, color="black", linewidth=1, linestyle="--")
            panel.annotate(
                f" median {median:.1f} s", (median, 0.97), xycoords=panel.get_xaxis_transform(), va="top", fontsize=9
            )
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    panels[0].set_ylabel("bouts")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
