"""How well and how fast the locate stage finds the animal in real recordings.

    python tools/bench_locate.py DATA [--only NAME] [--sheets DIR]

DATA holds the recordings described in docs (topview_arena, openfield, cylinder, rat_clips, home_cage_bedded). Each is
sampled at 10 fps as live, and locate sees the frames in order, with a state that is fresh for each file.

References, built with the whole recording in hand, past and future:

- topview_arena: `positions.csv`, the positions of a tracking program.
- openfield, cylinder: the largest region darker than the per-pixel median over all files of the camera. In the
  cylinder only regions whose centre is in the lower 45 % of the picture count: people walk behind it. Frames in
  which that leaves nothing (the animal jumps) are not scored.
- rat_clips: the largest bright region; the walls are black.
- home_cage_bedded has no reference: look at the sheets.

"in crop" is the share of scored frames with nine tenths of the reference region inside the crop window. The window is
the settled one; where recordings are too short to settle it, twice the median length over all of them.
"cylinder_X late" leaves out the first 5 s of each file, "worst" is the file of them with the smallest share within
60 px; "joined" is one state over all files.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mbr_live.stages.locate import LocateState, crop, initial_state, locate, window_px
from mbr_live.types import Image, Sighting
from mbr_live.video.sources import VideoFile, sampled

SMALL_PX = 214  # references and sheets work on pictures of this width
LATE_FRAMES = 50
SHEET_CELLS = 80
SHEET_COLUMNS = 10
Mask = NDArray[np.bool_]


@dataclass
class Run:
    """What locate said about one recording, and what is kept of its pictures."""

    sightings: list[Sighting] = field(default_factory=list)
    pictures: list[Image] = field(default_factory=list)  # small
    crops: list[Image] = field(default_factory=list)
    source_frames: list[int] = field(default_factory=list)
    file_frames: list[int] = field(default_factory=list)  # index since the start of the file
    shape: tuple[int, int] = (0, 0)
    window: int | None = None
    spent_s: float = 0.0

    @property
    def scale(self) -> float:
        """Pixels of the frame per pixel of the small pictures."""
        return float(self.shape[1] / self.pictures[0].shape[1])


def follow(files: Iterable[Path], joined: bool, keep_crops: bool) -> Run:
    """Run locate over the files, with one state for all of them or a fresh one for each."""
    run = Run()
    state: LocateState = initial_state()
    for file in files:
        state = state if joined else initial_state()
        for count, frame in enumerate(sampled(VideoFile(file), "bench")):
            pixels = frame.pixels
            start = time.process_time()
            sighting, state = locate(pixels, state)
            run.spent_s += time.process_time() - start
            run.shape = (pixels.shape[0], pixels.shape[1])
            run.sightings.append(sighting)
            run.pictures.append(smaller(pixels))
            run.source_frames.append(frame.source_frame)
            run.file_frames.append(count)
            if keep_crops:
                run.crops.append(shown_crop(pixels, sighting, window_px(state)))
        run.window = window_px(state) or run.window
    return run


def smaller(pixels: Image) -> Image:
    """The picture at SMALL_PX width."""
    height, width = pixels.shape[:2]
    size = (SMALL_PX, round(height * SMALL_PX / width))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def shown_crop(pixels: Image, sighting: Sighting, window: int | None) -> Image:
    """The crop with its centre marked; black where the animal was not found."""
    if not sighting.found:
        return np.zeros((160, 160, 3), np.uint8)
    picture = crop(pixels, sighting.x_px, sighting.y_px, window or max(48, round(2 * sighting.length_px)))
    cv2.drawMarker(picture, (80, 80), (0, 255, 0), cv2.MARKER_CROSS, 8)
    return picture


def darker_than_median(pictures: list[Image], smallest: int, lowest_share: float) -> Iterator[Mask | None]:
    """The largest region darker than the median of all pictures, its centre below `lowest_share` of the height."""
    greys = np.stack([cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in pictures])
    background = np.median(greys[:: max(1, len(greys) // 600)], axis=0).astype(np.uint8)
    for grey in greys:
        difference = cv2.blur(cv2.subtract(background, grey), (3, 3))
        yield largest_region(difference > 14, smallest, lowest_share)


def bright(pictures: list[Image]) -> Iterator[Mask | None]:
    """The largest region of bright pixels."""
    for picture in pictures:
        grey = cv2.blur(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (5, 5))
        yield largest_region(grey > 60, 9, 0.0)


def largest_region(mask: Mask, smallest: int, lowest_share: float) -> Mask | None:
    """The largest connected region that holds a square of side `smallest`."""
    kernel = np.ones((smallest, smallest), np.uint8)
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel)
    count, labels, stats, centres = cv2.connectedComponentsWithStats(opened)
    allowed = [i for i in range(1, count) if centres[i][1] >= lowest_share * mask.shape[0] and stats[i, 4] >= 40]
    return labels == max(allowed, key=lambda i: stats[i, 4]) if allowed else None


def tracked(run: Run, positions: Path) -> NDArray[np.float64]:
    """Positions of a tracking program, frames counted from 1; NaN where it has none."""
    with positions.open() as file:
        rows = {int(float(r["frame"])) - 1: (float(r["pos_x"]), float(r["pos_y"])) for r in csv.DictReader(file)}
    return np.array([rows.get(frame, (np.nan, np.nan)) for frame in run.source_frames])


def centres(masks: list[Mask | None], scale: float) -> NDArray[np.float64]:
    """Centre of each mask in pixels of the frame; NaN where there is none."""
    points = [(np.nan, np.nan) if m is None else tuple(np.argwhere(m).mean(axis=0)[::-1]) for m in masks]
    return (np.array(points) + 0.5) * scale - 0.5


def covered(mask: Mask, sighting: Sighting, window: float, scale: float) -> float:
    """Share of the mask inside the crop window."""
    y, x = np.nonzero(mask)
    inside = np.abs(x * scale - sighting.x_px) <= window / 2
    return float(np.mean(inside & (np.abs(y * scale - sighting.y_px) <= window / 2)))


def errors_px(run: Run, truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each frame's sighting from the truth, infinite where nothing was found."""
    at = np.array([(s.x_px, s.y_px) for s in run.sightings])
    return np.where([s.found for s in run.sightings], np.hypot(*(at - truth).T), np.inf)


def worst_file(run: Run, truth: NDArray[np.float64], used: Mask) -> Mask:
    """The frames of the file with the smallest share within 60 px."""
    file_of = np.cumsum(np.array(run.file_frames) == 0)
    scored, near = used & ~np.isnan(truth[:, 0]), errors_px(run, truth) <= 60
    shares = {number: near[scored & (file_of == number)].mean() for number in np.unique(file_of[scored])}
    worst: Mask = file_of == min(shares, key=lambda number: shares[number])
    return worst


def row(name: str, run: Run, truth: NDArray[np.float64], masks: list[Mask | None], used: Mask) -> str:
    """One line of the table, over the frames in `used`."""
    found = np.array([s.found for s in run.sightings])
    scored = used & ~np.isnan(truth[:, 0])
    errors = errors_px(run, truth)[scored]
    window = run.window or 2 * float(np.median([s.length_px for s in run.sightings if s.found]))
    parts = [(m, s) for m, s, u in zip(masks, run.sightings, used, strict=True) if m is not None and u]
    in_crop = [s.found and covered(m, s, window, run.scale) >= 0.9 for m, s in parts]
    shares = (np.mean(errors <= 40), np.mean(errors <= 60), np.mean(in_crop) if in_crop else np.nan)
    cells = [f"{100 * v:9.2f}" for v in shares]
    return (
        f"{name:24}{scored.sum():7}{100 * found[used].mean():9.2f}{np.median(errors):9.1f}{''.join(cells)}"
        f"{window:8.0f}{1000 * run.spent_s / len(found):8.2f}"
    )


def write_sheet(run: Run, path: Path) -> None:
    """Two contact sheets of frames spread over the recording: whole pictures and crops, centres marked."""
    chosen = np.linspace(0, len(run.pictures) - 1, min(SHEET_CELLS, len(run.pictures))).astype(int)
    whole = []
    for i in chosen:
        picture, sighting = run.pictures[i].copy(), run.sightings[i]
        if sighting.found:
            side = (run.window or 2 * sighting.length_px) / run.scale / 2
            x, y = sighting.x_px / run.scale, sighting.y_px / run.scale
            cv2.rectangle(picture, (int(x - side), int(y - side)), (int(x + side), int(y + side)), (255, 255, 0))
            cv2.circle(picture, (round(x), round(y)), 2, (0, 255, 0), -1)
        cv2.putText(picture, str(i), (2, 10), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (255, 255, 0))
        whole.append(picture)
    path.parent.mkdir(parents=True, exist_ok=True)
    for cells, suffix in ((whole, "frames"), ([run.crops[i] for i in chosen], "crops")):
        cells += [np.zeros_like(cells[0])] * (-len(cells) % SHEET_COLUMNS)
        rows = [np.hstack(cells[i : i + SHEET_COLUMNS]) for i in range(0, len(cells), SHEET_COLUMNS)]
        cv2.imwrite(str(path.with_name(f"{path.name}_{suffix}.png")), np.vstack(rows)[..., ::-1])


def bench(name: str, data: Path, sheets: Path | None) -> Iterator[str]:
    """The table's lines for one kind of recording."""
    folder, pattern, reference = RECORDINGS[name]
    files = sorted((data / folder).glob(pattern))
    for joined in (False, True) if name.startswith("cylinder") else (False,):
        run = follow(files, joined, sheets is not None)
        masks: list[Mask | None] = list(reference(run.pictures)) if reference else [None] * len(run.pictures)
        positions = data / folder / "positions.csv"
        truth = tracked(run, positions) if positions.exists() else centres(masks, run.scale)
        everything = np.ones(len(masks), np.bool_)
        label = f"{name} joined" if joined else name
        if np.isnan(truth).all():
            found = 100 * np.mean([s.found for s in run.sightings])
            yield f"{label:24}{0:7}{found:9.2f}   no reference: look at the sheets"
        else:
            yield row(label, run, truth, masks, everything)
        if name.startswith("cylinder"):
            late = np.array(run.file_frames) >= LATE_FRAMES
            yield row(f"{label} late", run, truth, masks, late)
            yield row(f"{label} worst", run, truth, masks, late & worst_file(run, truth, late))
        if sheets is not None:
            write_sheet(run, sheets / label.replace(" ", "_"))


Reference = Callable[[list[Image]], Iterator[Mask | None]]
RECORDINGS: dict[str, tuple[str, str, Reference | None]] = {
    "topview_arena": ("topview_arena", "*.mp4", None),
    "openfield": ("openfield", "*.mp4", lambda pictures: darker_than_median(pictures, 9, 0.0)),
    "cylinder_L": ("cylinder/camera_L", "*.mp4", lambda pictures: darker_than_median(pictures, 3, 0.55)),
    "cylinder_E": ("cylinder/camera_E", "*.mp4", lambda pictures: darker_than_median(pictures, 3, 0.55)),
    "rat_clips": ("rat_clips", "*/*.mkv", bright),
    "home_cage_bedded": ("home_cage_bedded", "*.mp4", None),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Benchmark of the locate stage on real recordings.")
    parser.add_argument("data", type=Path, help="folder with the recordings")
    parser.add_argument("--only", choices=sorted(RECORDINGS), help="one kind of recording instead of all")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    print(f"{'recording':24}{'scored':>7}{'found %':>9}{'median':>9}{'<=40 %':>9}{'<=60 %':>9}{'in crop%':>9}", end="")
    print(f"{'window':>8}{'ms':>8}")
    for name in [arguments.only] if arguments.only else list(RECORDINGS):
        if not (arguments.data / RECORDINGS[name][0]).is_dir():
            print(f"{name:24} not there")
            continue
        for line in bench(name, arguments.data, arguments.sheets):
            print(line, flush=True)


if __name__ == "__main__":
    main()
