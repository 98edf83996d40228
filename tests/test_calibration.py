"""A camera is calibrated and checked as its users do it, from the command line."""

from __future__ import annotations

import json
import math
import shutil
import socket
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from live import mbr_live, system_config, wait_for
from test_cameras import free_port, goes_on

from mbr_live.cameras.arena import check_in_picture, find_arena, parse_arena
from mbr_live.cameras.calibration import Circle, Polygon, load_calibration, load_reference, windows_px
from mbr_live.cameras.log import read_events
from mbr_live.config import DEMO_BUNDLE, Camera, VideoSource, load_config
from mbr_live.live.checks import LEAST_FREE_MB, free_space, start_checks
from mbr_live.live.run import System
from mbr_live.sinks.label_log import read_labels
from mbr_live.sinks.run_manifest import read_run
from mbr_live.types import Image, MbrError
from mbr_live.video.sources import VideoFile, sampled


def system_file(folder: Path, source: str, head: str = "") -> Path:
    path = folder / "system.toml"
    ports = f'[wire]\nframes = "tcp://127.0.0.1:{free_port()}"\nstatus = "tcp://127.0.0.1:{free_port()}"\n'
    path.write_text(f'out = "live"\n{head}\n{ports}[[camera]]\nname = "cage"\nsource = {source}\n')
    return path


def played(video: Path, speed: float = 5) -> str:
    return f'{{ kind = "file", path = "{video}", speed = {speed} }}'


def test_a_camera_is_calibrated(box_video: Path, tmp_path: Path) -> None:
    config = system_file(tmp_path, played(box_video))
    done = mbr_live("calibrate", "camera", "cage", "--config", config, "--arena-cm", "60", "--seconds", "11")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "calibration"
    assert sorted(path.name for path in folder.iterdir()) == ["cage.overlay.png", "cage.png", "cage.toml"]
    calibration = load_calibration(folder, "cage")
    assert calibration is not None
    assert isinstance(calibration.arena, Polygon)
    assert calibration.px_per_cm == pytest.approx(calibration.arena.length_px / 60, abs=0.01)
    reference = load_reference(folder, "cage")
    assert reference is not None
    assert calibration.comparable == (reference.structure is not None)
    overlay, picture = (cv2.imread(str(folder / name)) for name in ("cage.overlay.png", "cage.png"))
    assert overlay.shape == picture.shape == (calibration.height_px, calibration.width_px, 3)
    green = np.all(overlay == (115, 158, 0), axis=2)
    assert green.sum() > 500  # the arena is drawn
    assert windows_px(load_config(config)) == {"cage": calibration.window_px}
    # The live system takes the window from it.
    loaded = load_config(config)
    with System(loaded) as system:
        goes_on(system, "cage", 5)
    assert read_run(loaded.out / "cage.run.json").window_px == calibration.window_px


def test_arena_and_scale_are_taken_from_the_user(box_video: Path, tmp_path: Path) -> None:
    config = system_file(tmp_path, played(box_video))
    done = mbr_live(
        "calibrate", "camera", "cage", "--config", config, "--arena", "320,240,200.5", "--px-per-cm", "8",
        "--seconds", "6",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    calibration = load_calibration(tmp_path / "calibration", "cage")
    assert calibration is not None
    assert calibration.arena == Circle(x_px=320, y_px=240, radius_px=200.5)
    assert calibration.px_per_cm == 8


def test_the_round_arena_of_a_real_recording(realdata: Path) -> None:
    frames = sampled(VideoFile(realdata / "topview_arena" / "mouse_video.mp4"), "c")
    arena = find_arena(median([frame.pixels for frame in islice(frames, 0, 300, 30)]))
    assert isinstance(arena, Circle)
    assert math.dist((arena.x_px, arena.y_px), (310, 234)) < 6  # measured by hand in the picture
    assert arena.radius_px == pytest.approx(209, abs=5)


def test_a_room_is_no_arena(realdata: Path) -> None:
    frames = sampled(VideoFile(next((realdata / "cylinder").rglob("*.mp4"))), "c")
    arena = find_arena(next(frames).pixels)
    assert arena is None or arena.length_px < 1000  # not the whole picture


def median(pictures: list[Image]) -> Image:
    return np.median(np.stack(pictures), axis=0).astype(np.uint8)


@pytest.mark.parametrize("text", ["", "1,2", "1,2,3,4,5", "a,b,c", "1,2,-3"])
def test_an_arena_that_is_none(text: str) -> None:
    with pytest.raises(MbrError, match="radius"):
        parse_arena(text)


@pytest.mark.parametrize("text", ["900,900,50", "640,0,100", "-300,10,-200,90"])
def test_an_arena_beside_the_picture(text: str) -> None:
    with pytest.raises(MbrError, match="within the picture of 640 x 480"):
        check_in_picture(parse_arena(text), np.zeros((480, 640, 3), np.uint8))


def test_arenas_in_words() -> None:
    assert parse_arena("1,2,3") == Circle(x_px=1, y_px=2, radius_px=3)
    assert parse_arena("0,0,4,3") == Polygon(corners_px=((0, 0), (4, 0), (4, 3), (0, 3)))
    assert parse_arena("0,0,4,0,0,3").length_px == 5


def test_an_alarm_reaches_log_status_and_labels(box_video: Path, tmp_path: Path) -> None:
    """A lens that is covered, and uncovered again."""
    film = tmp_path / "film.mkv"
    shown = [frame.pixels for frame in islice(sampled(VideoFile(box_video), "c"), 20)]
    write_video(film, [*shown, *[np.zeros_like(shown[0])] * 120, *shown * 6])
    config = system_config(tmp_path / "live", Camera(name="cage", source=VideoSource(kind="file", path=film)))
    log = config.out / "cage.camera.csv"

    def events() -> list[tuple[str, str]]:
        return [(event.event, event.cause) for event in read_events(log)] if log.exists() else []

    with System(config) as system:
        wait_for(lambda: ("alarm", "blind") in events(), "the alarm", system)
        status = mbr_live("status", config.out / "system.json")
        wait_for(lambda: ("cleared", "blind") in events(), "the end of it", system)
    assert "blind: the picture is black" in status.stdout
    assert events() == [("began", ""), ("alarm", "blind"), ("cleared", "blind")]
    assert sum(row.status == "blind" for row in read_labels(config.out / "cage.labels.csv")) == 120


def write_video(path: Path, pictures: list[Image]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], "yuv420p"
        stream.options = {"preset": "ultrafast"}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def test_calibration_of_a_black_picture(tmp_path: Path) -> None:
    black = tmp_path / "black.mkv"
    write_video(black, [np.zeros((240, 320, 3), np.uint8)] * 50)
    done = mbr_live("calibrate", "camera", "cage", "--config", system_file(tmp_path, played(black)), "--seconds", "4")
    assert done.returncode == 2
    assert "the picture is dark" in done.stderr
    assert not (tmp_path / "calibration").exists()


def test_doctor_and_run_agree(box_video: Path, tmp_path: Path) -> None:
    """Every error that doctor shows is one that run refuses with, in the same words, before anything is written."""
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration" / "cage.toml").write_text("format = 2\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = taken.getsockname()[1]
        config = tmp_path / "system.toml"
        config.write_text(
            f'out = "live"\nbundle = "nowhere"\n[wire]\nframes = "tcp://127.0.0.1:{busy}"\n'
            f'status = "tcp://127.0.0.1:{free_port()}"\n'
            f'[[camera]]\nname = "cage"\nsource = {{ kind = "rtsp", url = "rtsp://127.0.0.1:{free_port()}/x" }}\n'
            f'[[camera]]\nname = "film"\nsource = {{ kind = "file", path = "{box_video}" }}\n'
        )
        doctor, run = mbr_live("doctor", config), mbr_live("run", config, "--plain")
    assert (doctor.returncode, run.returncode) == (1, 2)
    for words in ("nowhere", str(busy), "cage.toml", "Connection refused"):
        assert words in doctor.stdout
        assert words in run.stderr
    assert "camera film: 640 x 480 px" in doctor.stdout
    assert "errors: 4" in doctor.stdout
    assert not (tmp_path / "live").exists()


def test_an_engine_that_cannot_be_had_is_said_before_anything_is_written(tmp_path: Path) -> None:
    """By doctor and by run, in the same words, once; and nothing is left behind."""
    config = tmp_path / "system.toml"
    shutil.copytree(DEMO_BUNDLE, tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    del manifest["int8"], manifest["files"]["features.int8.onnx"]
    (tmp_path / "bundle" / "features.int8.onnx").unlink()
    (tmp_path / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    config.write_text(
        'out = "live"\nbundle = "bundle"\nengine = "openvino-int8"\n'
        '[[camera]]\nname = "cage"\nsource = { kind = "simulated" }\n'
    )
    doctor, run = mbr_live("doctor", config), mbr_live("run", config, "--plain")
    assert (doctor.returncode, run.returncode) == (1, 2)
    for said in (doctor.stdout, run.stderr):
        assert "has no int8 features" in said
    assert run.stderr.count("mbr-live:") == 1
    assert not (tmp_path / "live").exists()


def test_a_healthy_system_has_no_errors(tmp_path: Path) -> None:
    config = system_file(tmp_path, '{ kind = "simulated" }')
    doctor = mbr_live("doctor", config)
    assert doctor.returncode == 0, doctor.stdout
    assert "errors: 0" in doctor.stdout
    assert "frames a second" in doctor.stdout
    assert "ms a frame" in doctor.stdout


def test_a_camera_that_is_away_keeps_no_session_from_going_on(tmp_path: Path) -> None:
    """After a power cut the computer may be there before the camera."""
    url = f"rtsp://127.0.0.1:{free_port()}/x"
    config = load_config(system_file(tmp_path, f'{{ kind = "rtsp", url = "{url}" }}'))
    assert [finding.level for finding in start_checks(config) if finding.subject == "camera cage"] == ["error"]
    config.out.mkdir()
    (config.out / "cage.frames.csv").write_text("frame,source_frame,time_ns\n0,0,1000\n")
    assert [finding.level for finding in start_checks(config) if finding.subject == "camera cage"] == ["warning"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = system_file(tmp_path, '{ kind = "simulated" }')
    config.write_text(config.read_text().replace('out = "live"', 'out = "file/live"'))
    done = mbr_live("run", config, "--plain")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_room_on_the_disk() -> None:
    levels = [free_space(Path("out"), mb).level for mb in (LEAST_FREE_MB - 1, LEAST_FREE_MB, 4999, 5000)]
    assert levels == ["error", "warning", "warning", "ok"]


def test_a_password_that_others_can_read_is_a_warning(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("x")
    password.chmod(0o644)
    source = f'{{ kind = "mjpeg", url = "http://127.0.0.1:{free_port()}/v", user = "lab", password_file = "password" }}'
    doctor = mbr_live("doctor", system_file(tmp_path, source))
    assert "chmod 600" in doctor.stdout
    password.chmod(0o600)
    assert "chmod 600" not in mbr_live("doctor", system_file(tmp_path, source)).stdout
