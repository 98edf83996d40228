"""The configuration file of a live system: TOML, checked whole before anything starts."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mbr_live.mistakes import mistakes
from mbr_live.names import CameraName
from mbr_live.sinks.label_segments import Rotation
from mbr_live.trigger_config import Output, Trigger, Watchdog, anchored_output, anchored_trigger, check_names
from mbr_live.types import DEFAULT_ENGINE, EngineWish, MbrError

_PACKAGE = Path(__file__).resolve().parent
# A wheel carries the bundle in the package; a checkout has it beside the package.
DEMO_BUNDLE = (_PACKAGE if (_PACKAGE / "engines" / "demo").is_dir() else _PACKAGE.parent) / "engines" / "demo"


def _address(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme == "ipc" and len(endpoint) > len("ipc://"):
        return endpoint
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.hostname == "*":
        raise ValueError("an address to listen to as well, so expected tcp://0.0.0.0:PORT for all networks")
    if parts.scheme != "tcp" or not port or not parts.hostname:
        raise ValueError("expected tcp://127.0.0.1:PORT or ipc://PATH")
    return endpoint


def _is_local(endpoint: str) -> bool:
    return urlsplit(endpoint).scheme == "ipc" or urlsplit(endpoint).hostname in ("127.0.0.1", "localhost")


def _network(*schemes: str) -> Callable[[str], str]:
    """A check of the address of a network camera."""

    def checked(url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in schemes or not parts.hostname:
            raise ValueError(f"expected an address such as {schemes[0]}://camera.lab/stream")
        if parts.username is not None or parts.password is not None:
            raise ValueError("an address is logged, so it must not hold user or password: give user and password_file")
        return url

    return checked


Endpoint = Annotated[str, AfterValidator(_address)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


ConditionName = Literal["box", "clutter", "dark"]


class Simulated(_Section):
    """The simulated camera."""

    kind: Literal["simulated"]
    condition: ConditionName = "box"
    seed: Annotated[int, Field(ge=0)] = 0


class VideoSource(_Section):
    """A video file, played like a live camera."""

    kind: Literal["file"]
    path: Path
    speed: Annotated[float, Field(gt=0, le=1000)] = 1.0


class OpenCvCamera(_Section):
    """A camera that OpenCV opens: a device number, or a path or URL."""

    kind: Literal["opencv"]
    device: int | str
    backend: Literal["v4l2", "ffmpeg", "dshow", "msmf", "avfoundation"]
    width_px: Annotated[int, Field(gt=0)] | None = None
    height_px: Annotated[int, Field(gt=0)] | None = None
    fps: Annotated[float, Field(gt=0)] | None = None


class NetworkCamera(_Section):
    """A camera on the network."""

    url: str
    user: str | None = None
    password_file: Path | None = None  # holds the password alone; it is never shown or logged

    @model_validator(mode="after")
    def _log_in(self) -> Self:
        if (self.user is None) != (self.password_file is None):
            raise ValueError("user and password_file go together. Give both, or neither")
        return self


class RtspCamera(NetworkCamera):
    """A network camera that speaks RTSP."""

    kind: Literal["rtsp"]
    url: Annotated[str, AfterValidator(_network("rtsp", "rtsps"))]
    transport: Literal["tcp", "udp"] = "tcp"


class MjpegCamera(NetworkCamera):
    """A network camera that sends JPEG pictures one after the other over HTTP (multipart/x-mixed-replace)."""

    kind: Literal["mjpeg"]
    url: Annotated[str, AfterValidator(_network("http", "https"))]


class BaslerCamera(_Section):
    """A Basler camera (USB3 Vision or GigE Vision) through pylon; needs the extra `basler`."""

    kind: Literal["basler"]
    serial: str | None = None  # needed where there is more than one
    settings: Path | None = None  # .pfs file of pylon Viewer
    fps: Annotated[float, Field(gt=0)] | None = None


class GigECamera(_Section):
    """A GigE Vision camera of any maker, through Aravis."""

    kind: Literal["gige"]
    address: str | None = None  # IP address, or its name in Aravis; needed where there is more than one
    fps: Annotated[float, Field(gt=0)] | None = None


CameraSource = Simulated | VideoSource | OpenCvCamera | RtspCamera | MjpegCamera | BaslerCamera | GigECamera


class Loss(_Section):
    """Lose random frames on the way to inference, to see what a loss does to the labels."""

    fraction: Annotated[float, Field(ge=0, lt=1)]
    seed: Annotated[int, Field(ge=0)] = 0


class Camera(_Section):
    """One camera: where its frames come from, and what belongs to it."""

    name: CameraName
    source: Annotated[CameraSource, Field(discriminator="kind")]
    stall_s: Annotated[float, Field(ge=0.5, le=60)] = 2.0  # without a frame for so long, it is opened anew
    record: Literal["off", "h264", "lossless"] = "off"  # keep the 10 fps frames
    window_px: Annotated[int, Field(ge=16, le=4096)] | None = None  # side of the crop window; None: found by itself
    loss: Loss | None = None


class Wire(_Section):
    """Addresses of the sockets: on this machine or, with keys, beyond it."""

    frames: Endpoint = "tcp://127.0.0.1:5601"
    status: Endpoint = "tcp://127.0.0.1:5602"
    keys: Path | None = None  # folder that `mbr-live keys` made

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.frames == self.status:
            raise ValueError(f"frames and status have the same address {self.frames}")
        for name, endpoint in (("frames", self.frames), ("status", self.status)):
            if not self.keys and not _is_local(endpoint):
                raise ValueError(
                    f"wire.{name} = {endpoint} is not this machine alone, and a network needs keys. "
                    "Use 127.0.0.1, or make keys (mbr-live keys FOLDER) and set wire.keys"
                )
        return self


class Recording(_Section):
    """How long the frames of cameras with `record` are kept."""

    segment_minutes: Annotated[float, Field(gt=0, le=1440)] = 10.0  # length of a file
    keep_days: Annotated[float, Field(gt=0)] | None = None  # older files go
    keep_gb: Annotated[float, Field(gt=0)] | None = None  # of each camera; the oldest files go
    min_free_gb: Annotated[float, Field(ge=0)] = 1.0  # with less room on the disk recording stops, and labels go on
    clips: tuple[str, ...] = ()  # behaviours of whose bouts clips are cut; these are kept
    pre_s: Annotated[float, Field(ge=0, le=600)] = 3.0  # what a clip shows before the bout,
    post_s: Annotated[float, Field(ge=0, le=600)] = 3.0  # ... and after it


class Labels(_Section):
    """The files of the label logs."""

    rotate: Rotation = "off"  # whether a file is closed when its hour or day (UTC) is over
    parquet: bool = False  # a Parquet file beside every one that is closed

    @model_validator(mode="after")
    def _closes_some(self) -> Self:
        if self.parquet and self.rotate == "off":
            raise ValueError('parquet is made of closed files, and none is closed: set rotate = "hour" or "day"')
        return self


class Monitor(_Section):
    """The monitor process: metrics for Prometheus, and a command that is told of alarms."""

    metrics_port: Annotated[int, Field(ge=1, le=65535)] | None = None  # on this machine alone
    alarm_command: Annotated[tuple[str, ...], Field(min_length=1)] | None = None  # program and arguments, no shell
    alarm_after_s: Annotated[float, Field(ge=1, le=3600)] = 10.0  # how long something must be wrong, or right again

    @model_validator(mode="after")
    def _has_work(self) -> Self:
        if self.metrics_port is None and self.alarm_command is None:
            raise ValueError("gives neither metrics_port nor alarm_command: nothing would be monitored")
        return self


class Store(_Section):
    """A database that is kept up to date with the logs."""

    url: Annotated[str, Field(min_length=1)]  # sqlite:///PATH or postgresql+psycopg://USER@HOST/DATABASE
    every_s: Annotated[float, Field(ge=1, le=86400)] = 30.0


class Config(_Section):
    """A live system."""

    out: Path  # folder of the logs
    bundle: Path = DEMO_BUNDLE
    engine: EngineWish = DEFAULT_ENGINE
    calibration: Path = Path("calibration")  # folder of what `mbr-live calibrate camera` wrote
    wire: Wire = Wire()
    labels: Labels = Labels()
    recording: Recording = Recording()
    monitor: Monitor | None = None
    store: Store | None = None
    camera: Annotated[tuple[Camera, ...], Field(min_length=1, max_length=256)]
    trigger: Annotated[tuple[Trigger, ...], Field(max_length=256)] = ()
    output: Annotated[tuple[Output, ...], Field(max_length=64)] = ()
    watchdog: Watchdog = Watchdog()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [camera.name for camera in self.camera]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"more than one camera is named {', '.join(twice)}")
        timed = {camera.name: not isinstance(camera.source, VideoSource) for camera in self.camera}
        check_names(timed, self.trigger, self.output)
        return self

    @property
    def aside(self) -> tuple[str, ...]:
        """The processes that look on, and that no label waits for; by the names of their commands."""
        wanted = {
            "monitor": self.monitor, "store": self.store, "clips": self.recording.clips, "parquet": self.labels.parquet,
        }  # fmt: skip
        return tuple(name for name, is_wanted in wanted.items() if is_wanted)

    def camera_named(self, name: str) -> Camera:
        """The camera `name`; MbrError when there is none."""
        for camera in self.camera:
            if camera.name == name:
                return camera
        known = ", ".join(camera.name for camera in self.camera)
        raise MbrError(f"camera {name}: the configuration has no such camera, only {known}. Check the name.")


def load_config(path: Path) -> Config:
    """Read and check a configuration (TOML, or JSON as a running system keeps it); MbrError says what is wrong.

    Relative paths in it are relative to its folder; what is returned has absolute ones, since the processes of a system
    read it from another folder.
    """
    kind, loads = ("JSON", json.loads) if path.suffix == ".json" else ("TOML", tomllib.loads)
    try:
        document = loads(path.read_text())
    except OSError as error:
        raise MbrError(f"{path}: the configuration cannot be read ({error.strerror}). Check the name.") from error
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MbrError(f"{path}: the configuration is not {kind} ({error}). Mend it, or give another file.") from error
    try:
        config = Config.model_validate(document)
    except ValidationError as error:
        wrong = "; ".join(mistakes(document, error))
        raise MbrError(f"{path}: {wrong}. Mend the configuration; docs/configuration.md lists every key.") from error
    return _anchored(config, path.absolute().parent)


def _anchored(config: Config, folder: Path) -> Config:
    cameras = tuple(
        camera.model_copy(update={"source": _with_paths_in(camera.source, folder)}) for camera in config.camera
    )
    wire = _with_paths_in(config.wire, folder)
    anchored = {
        "camera": cameras,
        "wire": wire,
        "trigger": tuple(anchored_trigger(trigger, folder) for trigger in config.trigger),
        "output": tuple(anchored_output(output, folder) for output in config.output),
    }
    return _with_paths_in(config, folder).model_copy(update=anchored)


_AnySection = TypeVar("_AnySection", bound=_Section)


def _with_paths_in(section: _AnySection, folder: Path) -> _AnySection:
    paths = {key: folder / value for key, value in section if isinstance(value, Path)}
    return section.model_copy(update=paths)
