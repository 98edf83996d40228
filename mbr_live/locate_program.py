"""`mbr-live locate`: positions of the animal in a recording or in single pictures, without a model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from mbr_live.files import PART_SUFFIX
from mbr_live.locks import held
from mbr_live.progress import tracked
from mbr_live.stages.locate import initial_state, locate
from mbr_live.types import Image, MbrError, Sighting
from mbr_live.video.sources import VideoFile, sampled

HEADER = "frame,source_frame,time_s,x_px,y_px,confidence,found"
STILLS_HEADER = f"{HEADER},file"
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def locate_program(source: Path, out: Path, *, stills: bool) -> None:
    """Write `out`, one row per 10 fps frame or per picture; nothing is left when the source cannot be read."""
    _check_replaceable(out)
    rows = _still_rows(source) if stills else _video_rows(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + PART_SUFFIX)
    refusal = f"{out}: another process is writing these positions. Let it come to its end, or give another --out."
    with held(out.with_name(f".{out.name}.lock"), refusal):
        try:
            with part.open("w") as file:
                file.write((STILLS_HEADER if stills else HEADER) + "\n")
                found = total = 0
                for row, was_found in rows:
                    file.write(row + "\n")
                    total, found = total + 1, found + was_found
            part.replace(out)
        finally:
            part.unlink(missing_ok=True)
    print(f"{source}: animal found in {found} of {total} frames ({found / max(total, 1):.1%}); positions: {out}")


def _check_replaceable(out: Path) -> None:
    """Positions may take the place of positions, and of nothing else: a video that was given twice must not be lost."""
    if out.is_dir():
        raise MbrError(f"{out}: this is a folder. Give a file for the positions: --out {out / 'positions.csv'}.")
    if out.exists():
        with out.open("rb") as file:
            if not file.read(len(HEADER)).startswith(HEADER.encode()):
                raise MbrError(f"{out}: there is a file that holds no positions. Give another --out, or move it away.")


def _video_rows(path: Path) -> Iterator[tuple[str, bool]]:
    if path.is_dir():
        raise MbrError(f"{path}: this is a folder. For a folder of unrelated pictures give --stills.")
    video, state, last_s = VideoFile(path), initial_state(), 0.0
    duration_s = video.declared_s
    for frame in tracked(sampled(video, video.name), path.name, int(duration_s * 10) if duration_s else None):
        sighting, state = locate(frame.pixels, state)
        last_s = frame.time_ns / 1e9
        yield _row(frame.index, frame.source_frame, last_s, sighting), sighting.found


def _still_rows(folder: Path) -> Iterator[tuple[str, bool]]:
    if not folder.is_dir():
        raise MbrError(f"{folder}: expected a folder of pictures with --stills. For a video leave --stills out.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if not files:
        raise MbrError(f"{folder}: found no picture ({', '.join(PICTURES)}). Check the folder.")
    for number, file in enumerate(tracked(files, folder.name, len(files))):
        sighting, _ = locate(_picture(file), initial_state())
        yield f"{_row(number, number, math.nan, sighting)},{file.name}", sighting.found


def _picture(file: Path) -> Image:
    picture = cv2.imread(str(file), cv2.IMREAD_COLOR)
    if picture is None:
        raise MbrError(f"{file}: this is not a picture that can be read. Take it out of the folder or mend it.")
    return np.ascontiguousarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))


def _row(index: int, source_frame: int, time_s: float, sighting: Sighting) -> str:
    time_text = "" if math.isnan(time_s) else f"{time_s:.6f}"
    position = f"{sighting.x_px:.2f},{sighting.y_px:.2f}" if sighting.found else ","
    return f"{index},{source_frame},{time_text},{position},{sighting.confidence:.3f},{int(sighting.found)}"
