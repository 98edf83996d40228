"""A whole live system from one configuration: inference, a capture process per camera, and a supervisor over them.

Inference starts first and captures only when it is ready, so that nothing is lost at the start; they stop the other
way round, so that nothing is lost at the end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from mbr_live.bundle import check_live, load_bundle
from mbr_live.config import Camera, Config, Loss, VideoSource, Wire
from mbr_live.keys import load_keys
from mbr_live.live.checks import refuse_errors, start_checks
from mbr_live.names import camera_name
from mbr_live.processes import RESTARTS_PER_MINUTE, Child, Stop, stop_all, stop_signal
from mbr_live.sinks.label_log import LABELS_SUFFIX
from mbr_live.status import OUTPUT_STATUS_FILE, read_output_status
from mbr_live.triggers.rules import trigger_rules
from mbr_live.types import MbrError
from mbr_live.video.sources import VideoFile
from mbr_live.wire.sockets import free_endpoints
from mbr_live.wire.status import StatusSubscriber

SYSTEM_FILE = "system.json"  # the configuration as the processes read it
READY_WITHIN_S = 60.0
STOP_WITHIN_S = 15.0
_LOOK_EVERY_S = 0.1

_log = logging.getLogger(__name__)


class System:
    """The processes of one live system. `with System(...) as system` has them running, and stopped at the end."""

    def __init__(self, config: Config, *, restarts_per_minute: int = RESTARTS_PER_MINUTE) -> None:
        """Write the configuration that the processes will read into the output folder.

        Raises MbrError, and writes nothing, where the bundle is not one that live can use.
        """
        bundle = load_bundle(config.bundle)
        check_live(bundle)
        trigger_rules(config, bundle.manifest.behaviour_names)
        self._keys = load_keys(config.wire.keys)
        if config.engine == "auto":
            # Measured before inference starts, which is waited for only so long. The supervisor needs no engine else.
            from mbr_live.engines.choice import choose

            choose(bundle)
        self.config = config
        self._given_up: list[Child] = []
        config.out.mkdir(parents=True, exist_ok=True)
        self.config_path = config.out / SYSTEM_FILE
        self.config_path.write_text(config.model_dump_json(indent=2) + "\n")
        logs = config.out / "logs"
        self.inference = Child(
            "inference", ("infer", str(self.config_path)), logs / "inference.log", restarts_per_minute
        )
        self.captures = [
            Child(
                camera.name,
                ("capture", str(self.config_path), camera.name),
                logs / f"capture-{camera.name}.log",
                restarts_per_minute,
                endless=False,
            )
            for camera in config.camera
        ]
        self.aside = [
            Child(name, (name, str(self.config_path)), logs / f"{name}.log", restarts_per_minute)
            for name in config.aside
        ]
        # Its own process: what triggers do must not hold up labels.
        output = Child("output", ("output", str(self.config_path)), logs / "output.log", restarts_per_minute)
        self.outputs = [output] if config.trigger else []

    def __enter__(self) -> System:
        self.inference.start()
        try:
            self._wait_until_ready()
            for child in self.outputs:
                self._start_output(child)
        except BaseException:
            self._stop_services()
            raise
        for child in (*self.captures, *self.aside):
            child.start()
        return self

    def __exit__(self, *_: object) -> None:
        stop_all(self.captures, STOP_WITHIN_S)
        self._stop_services()
        stop_all(self.aside, STOP_WITHIN_S)  # last: the store takes the end of the session too

    def _stop_services(self) -> None:
        stop_all([self.inference], STOP_WITHIN_S)
        stop_all(self.outputs, STOP_WITHIN_S)

    def _start_output(self, child: Child) -> None:
        (self.config.out / OUTPUT_STATUS_FILE).unlink(
            missing_ok=True
        )  # an output that cannot be reached is an error now
        child.start()
        deadline_s = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline_s:
            if child.exit_code is not None:
                raise MbrError(child.last_words() or "the output process ended at once without a word.")
            status = read_output_status(self.config.out)
            if status is not None and status.pid == child.pid:
                return
            time.sleep(_LOOK_EVERY_S)
        raise MbrError(f"the output process was not ready within {READY_WITHIN_S:.0f} s. See {child.log}.")

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + READY_WITHIN_S
        with closing(StatusSubscriber(self.config.wire.status, self._keys)) as subscriber:
            while time.monotonic() < deadline_s:
                # Its own words before the socket's: another process may be publishing on that address.
                if self.inference.exit_code is not None:
                    raise MbrError(self.inference.last_words() or "inference ended at once without a word.")
                if next(subscriber.messages(0.1), None) is not None and self.inference.exit_code is None:
                    return
        raise MbrError(f"inference was not ready within {READY_WITHIN_S:.0f} s. See {self.inference.log}.")

    def look_after(self) -> None:
        """Restart what died; call it often."""
        for child in (self.inference, *self.captures, *self.outputs, *self.aside):
            if child.revive(time.monotonic()):
                _log.warning("%s had died and was restarted (%d times so far)", child.name, child.restarts)
            elif child.failed and child not in self._given_up:
                self._given_up.append(child)
                _log.error("%s is given up: %s", child.name, child.last_words())

    @property
    def ended(self) -> bool:
        """Whether every camera came to its end or was given up, or inference was."""
        return self.inference.failed or all(child.ended_well or child.failed for child in self.captures)

    def failures(self) -> list[str]:
        """What the processes that were given up said last."""
        return [child.last_words() for child in self._given_up]


def run(
    config: Config,
    *,
    seconds: float | None = None,
    show: Callable[[Callable[[], bool]], None] | None = None,
) -> None:
    """Run until every camera has ended, `seconds` have passed or somebody stops it; MbrError if a process failed.

    `show` is called in between with a function that tells whether it is over; it may draw until then.
    """
    refuse_errors(start_checks(config))
    with stop_signal() as stop, System(config) as system:
        over = _over(system, stop, seconds)
        if show is not None:
            show(over)
        while not over():
            time.sleep(_LOOK_EVERY_S)
    if failures := system.failures():
        raise MbrError("\n".join(failures))


def _over(system: System, stop: Stop, seconds: float | None) -> Callable[[], bool]:
    deadline_s = None if seconds is None else time.monotonic() + seconds

    def over() -> bool:
        system.look_after()
        return stop.requested or system.ended or (deadline_s is not None and time.monotonic() >= deadline_s)

    return over


def free_wire() -> Wire:
    """Addresses on this machine that are free at the moment."""
    frames, status = free_endpoints(2)
    return Wire(frames=frames, status=status)


def replay_config(
    videos: Sequence[Path],
    out: Path,
    bundle: Path,
    *,
    speed: float = 1.0,
    loss: Loss | None = None,
    window_px: int | None = None,
) -> Config:
    """The configuration that plays video files as live cameras, one camera per file, named like it."""
    by_name: dict[str, Path] = {}
    for video in videos:
        VideoFile(video)  # what is not a video is an error before anything starts
        _check_camera_name(video)
        if video.stem in by_name:
            raise MbrError(f"{video}: its camera would have the name of {by_name[video.stem]}. Replay the two apart.")
        by_name[video.stem] = video
        if (out / f"{video.stem}{LABELS_SUFFIX}").exists():
            raise MbrError(f"{out}: holds labels of {video.stem} already. Give an empty folder with --out.")
    cameras = tuple(
        Camera(
            name=video.stem,
            source=VideoSource(kind="file", path=video.resolve(), speed=speed),
            loss=loss.model_copy(update={"seed": loss.seed + number}) if loss else None,
            window_px=window_px,
        )
        for number, video in enumerate(videos)
    )
    wire = free_wire()
    return Config(
        out=out.resolve(), bundle=bundle.resolve(), calibration=out.resolve() / "calibration", wire=wire, camera=cameras
    )


def _check_camera_name(video: Path) -> None:
    try:
        camera_name(video.stem)
    except ValueError as error:
        raise MbrError(
            f"{video}: a replay has a camera of the name of the file, but {error}. Give a link to it of such a name."
        ) from error
