"""`mbr-live calibrate camera`: look at a camera for a while, and keep what belongs to it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console

from mbr_live.cameras.arena import check_in_picture, find_arena, parse_arena
from mbr_live.cameras.calibration import (
    Arena,
    Calibration,
    Circle,
    as_toml,
    calibration_path,
    light_of,
    picture_path,
)
from mbr_live.cameras.health import make_reference
from mbr_live.cameras.live_camera import LiveCamera
from mbr_live.cameras.log import CameraLog
from mbr_live.config import Camera, Config
from mbr_live.files import write_atomically
from mbr_live.progress import tracked
from mbr_live.stages import locate
from mbr_live.stages.blindness import BlindState, is_blind
from mbr_live.types import NOT_FOUND, RATE_FPS, Image, MbrError, Sighting

KEPT_PICTURES = 16  # whose median is the reference: an animal that moves is in few of them at any one place
WINDOW_CM = 16.0  # side of the crop window where only the scale is known: twice a mouse


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was seen of a camera."""

    pictures: list[Image]  # KEPT_PICTURES of them, evenly over the time
    sighting: Sighting  # the last one
    shown: Image  # the picture of it, or the last
    window_px: int | None


def calibrate_camera_program(
    config: Config,
    name: str,
    *,
    arena: str | None = None,
    arena_cm: float | None = None,
    px_per_cm: float | None = None,
    seconds: float = 30.0,
) -> None:
    """Look at camera `name` for so long and write its calibration, its reference picture and an overlay picture.

    `arena` is as `parse_arena` takes it, else it is looked for; the scale is given, or follows from `arena_cm`, the
    arena's diameter or longest side. MbrError where the camera does not deliver, or shows nothing.
    """
    camera = config.camera_named(name)
    given = parse_arena(arena) if arena else None
    seen = _look(camera, max(2 * KEPT_PICTURES, round(seconds * RATE_FPS)))
    reference = np.median(np.stack(seen.pictures), axis=0).astype(np.uint8)
    if given is not None:
        check_in_picture(given, reference)
    found = given or find_arena(reference)
    scale = px_per_cm or (found.length_px / arena_cm if found and arena_cm else None)
    judged = make_reference(seen.pictures)
    calibration = Calibration(
        camera=name,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        width_px=reference.shape[1],
        height_px=reference.shape[0],
        px_per_cm=round(scale, 3) if scale else None,
        window_px=seen.window_px or (8 * round(WINDOW_CM * scale / 8) if scale else None),
        sharpness=round(judged.sharpness, 5),
        comparable=judged.structure is not None,
        arena=found,
        light=light_of(reference),
    )
    paths = _write(config.calibration, calibration, reference, _overlay(seen, calibration))
    for line in _report(calibration, paths, arena_cm):
        Console(soft_wrap=True, highlight=False).print(line)


def _look(camera: Camera, frames: int) -> _Seen:
    state, sighting, blind = locate.initial_state(), NOT_FOUND, BlindState()
    pictures: list[Image] = []
    shown: Image = np.zeros((0, 0, 3), np.uint8)
    seen = 0
    for pixels in tracked(_pictures(camera, frames), f"looking at {camera.name}", frames):
        is_dark, blind = is_blind(pixels, blind)
        if is_dark:
            raise MbrError(
                f"camera {camera.name}: the picture is {blind.why}, expected one of the arena as it is when animals "
                "are recorded. Check light, lens and exposure."
            )
        found, state = locate.locate(pixels, state)
        if found.found or not sighting.found:
            sighting, shown = found, pixels
        if seen % max(1, frames // KEPT_PICTURES) == 0 and len(pictures) < KEPT_PICTURES:
            pictures.append(pixels)
        seen += 1
    if len(pictures) < KEPT_PICTURES // 2:
        raise MbrError(
            f"camera {camera.name}: only {seen} pictures came before it ended, {KEPT_PICTURES} are needed. Give a "
            "longer recording."
        )
    return _Seen(pictures, sighting, shown, locate.window_px(state))


def _pictures(camera: Camera, frames: int) -> Iterator[Image]:
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(CameraLog(Path(folder, "camera.csv"))) as log,
        closing(LiveCamera(camera, log, None)) as live,
    ):
        while frames and not live.ended:
            chosen = live.poll(0.2)
            if live.lost is not None:
                raise MbrError(live.lost.text)
            if chosen is not None:
                frames -= 1
                yield chosen.pixels


def _write(folder: Path, calibration: Calibration, reference: Image, overlay: Image) -> tuple[Path, Path]:
    """The pictures first: a calibration without its picture cannot be used. Returns calibration and overlay."""
    name = calibration.camera
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shown = folder / f"{name}.overlay.png"
        for path, picture in ((picture_path(folder, name), reference), (shown, overlay)):
            _, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            path.write_bytes(encoded.tobytes())
        write_atomically(calibration_path(folder, name), as_toml(calibration))
    except OSError as error:
        raise MbrError(
            f"{folder}: cannot be written ({error.strerror}). Check its permissions, or set another `calibration`."
        ) from error
    return calibration_path(folder, name), shown


def _overlay(seen: _Seen, calibration: Calibration) -> Image:
    """The last picture with what was found drawn on it."""
    picture = seen.shown.copy()
    width = max(1, picture.shape[1] // 320)
    if calibration.arena:
        _draw_arena(picture, calibration.arena, width)
    if calibration.window_px and seen.sighting.found:
        half = calibration.window_px / 2
        left_top = (round(seen.sighting.x_px - half), round(seen.sighting.y_px - half))
        right_bottom = (round(seen.sighting.x_px + half), round(seen.sighting.y_px + half))
        cv2.rectangle(picture, left_top, right_bottom, (86, 180, 233), width)
    if calibration.px_per_cm:
        bottom, length = picture.shape[0] - 10 * width, round(10 * calibration.px_per_cm)
        cv2.line(picture, (10 * width, bottom), (10 * width + length, bottom), (213, 94, 0), 2 * width)
        where = (10 * width, bottom - 4 * width)
        cv2.putText(picture, "10 cm", where, cv2.FONT_HERSHEY_SIMPLEX, 0.3 * width, (213, 94, 0), width)
    return picture


def _draw_arena(picture: Image, arena: Arena, width: int) -> None:
    if isinstance(arena, Circle):
        cv2.circle(picture, (round(arena.x_px), round(arena.y_px)), round(arena.radius_px), (0, 158, 115), width)
    else:
        cv2.polylines(picture, [np.rint(arena.corners_px).astype(np.int32)], True, (0, 158, 115), width)


def _report(calibration: Calibration, paths: tuple[Path, Path], arena_cm: float | None) -> Iterator[str]:
    arena, scale = calibration.arena, calibration.px_per_cm
    if arena is None:
        yield "arena: not found; give it with --arena" + (", without it --arena-cm says nothing" if arena_cm else "")
    else:
        yield f"arena: a {arena.kind}, {arena.length_px:.0f} px across or along its longest side"
    yield f"scale: {scale:.2f} px per cm" if scale else "scale: not known; give --arena-cm or --px-per-cm"
    if calibration.window_px:
        yield f"crop window: {calibration.window_px} px"
    else:
        yield "crop window: no animal was seen long enough; it is found live, or set window_px"
    light = calibration.light
    yield f"light: mean {light.mean:.0f}, from {light.darkest:.0f} to {light.lightest:.0f} of 255"
    if not calibration.comparable:
        yield "reference: too little in the picture stays the same to tell later whether the camera was moved"
    yield f"written: {paths[0]}; look at {paths[1]}"
