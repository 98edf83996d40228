"""What belongs to one camera: arena, scale, crop window, light, and the reference that tells whether it was moved.

`calibration/<camera>.toml` beside the configuration, with the reference picture `<camera>.png`; made by
`mbr-live calibrate camera`, and meant to be read and mended by people.
"""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mbr_live.cameras.health import Reference, look_at, structure
from mbr_live.config import Config
from mbr_live.types import Image, MbrError

Point = tuple[float, float]
_Positive = Annotated[float, Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Circle(_Part):
    """A round arena, in pixels of the frame."""

    kind: Literal["circle"] = "circle"
    x_px: float
    y_px: float
    radius_px: _Positive

    @property
    def length_px(self) -> float:
        """Its diameter."""
        return 2 * self.radius_px

    @property
    def middle_px(self) -> Point:
        """Its centre."""
        return self.x_px, self.y_px


class Polygon(_Part):
    """An arena with corners, in pixels of the frame."""

    kind: Literal["polygon"] = "polygon"
    corners_px: Annotated[tuple[Point, ...], Field(min_length=3, max_length=32)]

    @property
    def length_px(self) -> float:
        """Its longest side."""
        following = (*self.corners_px[1:], self.corners_px[0])
        return max(math.dist(one, other) for one, other in zip(self.corners_px, following, strict=True))

    @property
    def middle_px(self) -> Point:
        """The mean of its corners."""
        x_px, y_px = zip(*self.corners_px, strict=True)
        return math.fsum(x_px) / len(x_px), math.fsum(y_px) / len(y_px)


Arena = Circle | Polygon


class Light(_Part):
    """Grey levels of the reference, 0..255."""

    mean: float
    darkest: float  # 1st percentile
    lightest: float  # 99th percentile


class Calibration(_Part):
    """`calibration/<camera>.toml`."""

    format: Literal[1] = 1
    camera: str
    made: str  # UTC, ISO 8601
    width_px: Annotated[int, Field(gt=0)]
    height_px: Annotated[int, Field(gt=0)]
    px_per_cm: _Positive | None = None
    window_px: Annotated[int, Field(ge=16, le=4096)] | None = None
    sharpness: _Positive
    comparable: bool  # whether the picture has enough structure to tell whether the camera was moved
    arena: Annotated[Arena, Field(discriminator="kind")] | None = None
    light: Light


def calibration_path(folder: Path, camera: str) -> Path:
    """Where the calibration of a camera is kept."""
    return folder / f"{camera}.toml"


def picture_path(folder: Path, camera: str) -> Path:
    """Where its reference picture is kept."""
    return folder / f"{camera}.png"


def load_calibration(folder: Path, camera: str) -> Calibration | None:
    """The calibration of a camera; None where it has none. MbrError for one that cannot be used."""
    path = calibration_path(folder, camera)
    if not path.exists():
        return None
    try:
        calibration = Calibration.model_validate(tomllib.loads(path.read_text()))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise MbrError(
            f"{path}: this is not the calibration of a camera ({' '.join(str(error).split())[:300]}). Mend it, or run "
            f"mbr-live calibrate camera {camera} again."
        ) from error
    if calibration.camera != camera:
        raise MbrError(f"{path}: it is of camera {calibration.camera}, expected {camera}. Calibrate this camera.")
    return calibration


def load_reference(folder: Path, camera: str) -> Reference | None:
    """The reference of a camera's pictures; None where it was not calibrated."""
    calibration = load_calibration(folder, camera)
    if calibration is None:
        return None
    path = picture_path(folder, camera)
    picture = cv2.imread(str(path))
    if picture is None or picture.shape[:2] != (calibration.height_px, calibration.width_px):
        raise MbrError(
            f"{path}: expected the reference picture of {calibration.width_px} x {calibration.height_px} px. Run "
            f"mbr-live calibrate camera {camera} again."
        )
    grey = look_at(np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), dtype=np.uint8)).grey
    return Reference(structure([grey]) if calibration.comparable else None, calibration.sharpness)


def windows_px(config: Config) -> dict[str, int]:
    """Sides of the crop windows that are given: by the configuration or, where it has none, by calibration."""
    found: dict[str, int] = {}
    for camera in config.camera:
        calibration = load_calibration(config.calibration, camera.name)
        side = camera.window_px or (calibration.window_px if calibration else None)
        if side is not None:
            found[camera.name] = side
    return found


def as_toml(calibration: Calibration) -> str:
    """The file's text."""
    document = calibration.model_dump(exclude_none=True)
    tables = {key: value for key, value in document.items() if isinstance(value, dict)}
    lines = [_line(key, value) for key, value in document.items() if key not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(_line(key, value) for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _line(key: str, value: Any) -> str:
    return f"{key} = {json.dumps(value)}"  # of strings, numbers, booleans and lists, JSON is TOML


def light_of(picture: Image) -> Light:
    """Of a picture, uint8 [H, W, 3] RGB."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    darkest, lightest = np.percentile(grey, (1, 99))
    return Light(mean=round(float(grey.mean()), 1), darkest=float(darkest), lightest=float(lightest))
