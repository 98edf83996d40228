"""Cameras that are really there: servers, devices and emulations, read through the real processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from cameras import Cable, MjpegServer, RtspServer, free_port, needs_rtsp, write_pictures
from hypothesis import given
from hypothesis import strategies as st
from live import PATIENCE_S, labelled, mbr_live, simulated, system_config, wait_for

from mbr_live.bundle import Bundle
from mbr_live.cameras import live_camera
from mbr_live.cameras.live_camera import (
    LONGEST_PAUSE_S,
    OPEN_WITHIN_S,
    PATIENT_EVERY,
    CameraHangs,
    LiveCamera,
    SessionEnd,
    open_within_s,
    pause_s,
)
from mbr_live.cameras.log import CAMERA_LOG_HEADER, CameraLog, Outage, read_events, read_outages
from mbr_live.config import BaslerCamera, Camera, Config, MjpegCamera, OpenCvCamera, RtspCamera
from mbr_live.live.run import System
from mbr_live.processes import Child
from mbr_live.sinks.label_log import gap_ranges, read_labels
from mbr_live.sinks.run_manifest import read_run
from mbr_live.stages.sampler import SamplerState
from mbr_live.types import MbrError
from mbr_live.video.journal import read_journal
from mbr_live.video.recording import Recording


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def rtsp_camera(name: str, port: int) -> Camera:
    return Camera(name=name, source=RtspCamera(kind="rtsp", url=f"rtsp://127.0.0.1:{port}/cage"))


def mjpeg_camera(name: str, port: int, **keys: object) -> Camera:
    return Camera(name=name, source=MjpegCamera(kind="mjpeg", url=f"http://127.0.0.1:{port}/video", **keys))


def goes_on(system: System, name: str, frames: int = 10) -> None:
    """Wait for so many more labelled frames of a camera."""
    before = labelled(system.config.out, name)
    wait_for(lambda: labelled(system.config.out, name) >= before + frames, f"labels of {name}", system)


def is_lost(system: System, name: str) -> None:
    path = system.config.out / f"{name}.camera.csv"

    def told() -> bool:
        return path.exists() and [event.event for event in read_events(path)][-1:] == ["lost"]

    wait_for(told, f"the loss of {name}", system)


def causes(out: Path, name: str) -> list[str]:
    return [outage.cause for outage in read_outages(out / f"{name}.camera.csv")]


def every_gap_is_in_the_outage_log(out: Path, name: str) -> None:
    """Every tick is there once; outages are gaps of known length, and no gap of a second is anything else."""
    rows = list(read_labels(out / f"{name}.labels.csv"))
    assert [row.index for row in rows] == list(range(len(rows)))
    outages = read_outages(out / f"{name}.camera.csv")
    missed = {tick for first, last in gap_ranges(rows) for tick in range(first, last + 1)}
    for outage in outages:
        assert outage.last_frame is not None
        assert outage.duration_s == pytest.approx((outage.last_frame - outage.first_frame + 2) / 10, abs=0.12)
        accounted = set(range(outage.first_frame, outage.last_frame + 1))
        assert accounted <= missed
        missed -= accounted
    assert not [tick for tick in missed if missed >= set(range(tick, tick + 10))]
    run = read_run(out / f"{name}.run.json")
    assert sum(run.outages.values()) == len(outages)
    sampled = list(read_journal(out / f"{name}.frames.csv"))
    assert run.capture["sampled"] == len(sampled)
    assert [number for _, number, _ in sampled] == sorted({number for _, number, _ in sampled})


def test_cameras_are_cut_and_come_back(pictures: Path, tmp_path: Path) -> None:
    """Killed, half-open and stalled: no process dies, and every gap has its cause."""
    needs_rtsp()
    with closing(RtspServer(pictures).start()) as server, closing(Cable(server.port)) as cable:
        config = system_config(tmp_path / "live", rtsp_camera("cage", cable.port), rtsp_camera("direct", server.port))
        with System(config) as system:
            goes_on(system, "cage", 25)
            server.close()
            is_lost(system, "cage")
            is_lost(system, "direct")
            server.start()
            goes_on(system, "cage")
            goes_on(system, "direct")
            cable.cut()
            is_lost(system, "cage")
            cable.mend()
            goes_on(system, "cage")
            server.stall()
            is_lost(system, "direct")
            is_lost(system, "cage")
            server.go_on()
            goes_on(system, "direct")
            goes_on(system, "cage")
            assert [child.restarts for child in (system.inference, *system.captures)] == [0, 0, 0]
    assert causes(config.out, "cage") == ["ended", "stalled", "stalled"]
    assert causes(config.out, "direct") == ["ended", "stalled"]
    for name in ("cage", "direct"):
        every_gap_is_in_the_outage_log(config.out, name)
        assert read_run(config.out / f"{name}.run.json").clock == "camera"
    # All frames of 30 fps are drained, and sampled evenly, although the host's times jitter.
    sampled = np.array(list(read_journal(config.out / "direct.frames.csv")))[5:20]
    assert np.median(np.abs(np.diff(sampled[:, 2]) - 100_000_000)) < 2_000_000
    assert np.median(np.diff(sampled[:, 1])) == 3


def test_mjpeg_with_a_login_and_another_size(pictures: Path, tmp_path: Path, demo_bundle: Bundle) -> None:
    secret = "not-to-be-seen"
    password_file = tmp_path / "password"
    password_file.write_text(secret + "\n")
    small = tmp_path / "small"
    small.mkdir()
    for path in sorted(pictures.glob("*.jpg"))[:10]:
        cv2.imwrite(str(small / path.name), cv2.resize(cv2.imread(str(path)), (320, 240)))
    port = free_port()
    camera = mjpeg_camera("cage", port, user="lab", password_file=password_file)
    config = system_config(tmp_path / "live", camera)
    server = MjpegServer(pictures, port, login=f"lab:{secret}").start()
    with System(config) as system:
        goes_on(system, "cage")
        server.close()
        is_lost(system, "cage")
        other = MjpegServer(small, port, login=f"lab:{secret}").start()
        wait_for(lambda: "lost (size)" in system.captures[0].last_words(), "the other size to be seen", system)
        other.close()
        server.start()
        goes_on(system, "cage")
    server.close()
    assert causes(config.out, "cage") == ["ended"]
    every_gap_is_in_the_outage_log(config.out, "cage")
    assert read_run(config.out / "cage.run.json").clock == "host"
    written = [path.read_bytes() for path in config.out.rglob("*") if path.is_file()]
    assert written
    assert not [content for content in written if secret.encode() in content]


def written(config: Config) -> Path:
    """The configuration as a file."""
    path = config.out / "system.json"
    path.write_text(config.model_dump_json())
    return path


@pytest.fixture
def mjpeg_server(pictures: Path) -> Iterator[MjpegServer]:
    with closing(MjpegServer(pictures, login="lab:right").start()) as server:
        yield server


def wrong_camera(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    config = folder / "system.toml"
    config.write_text(f'out = "live"\n[[camera]]\nname = "cage"\nsource = {source}\n')
    done = mbr_live("capture", config, "cage")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not list((folder / "live").glob("*"))
    return done


def test_a_wrong_login(mjpeg_server: MjpegServer, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("wrong")
    keys = 'user = "lab", password_file = "password"'
    done = wrong_camera(tmp_path, f'{{ kind = "mjpeg", url = "{mjpeg_server.url}", {keys} }}')
    assert "Unauthorized" in done.stderr
    assert "password_file" in done.stderr
    assert "wrong" not in done.stderr


def test_nothing_listens(tmp_path: Path) -> None:
    done = wrong_camera(tmp_path, f'{{ kind = "rtsp", url = "rtsp://127.0.0.1:{free_port()}/cage" }}')
    assert "Connection refused" in done.stderr


def test_pictures_that_are_too_large_are_refused_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "film.avi"
    film = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (5472, 3648))
    film.write(np.full((3648, 5472, 3), 90, np.uint8))
    film.release()
    alone = wrong_camera(tmp_path, f'{{ kind = "file", path = "{path}" }}')
    system = mbr_live("run", tmp_path / "system.toml", "--plain")
    assert system.returncode == 2
    for said in (alone.stderr, system.stderr):
        assert "camera cage: pictures of 5472 x 3648 px" in said and "4096 x 3072" in said
    assert not list((tmp_path / "live").glob("*"))


def test_a_password_in_an_address_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "system.toml"
    config.write_text(
        'out = "live"\n[[camera]]\nname = "cage"\nsource = { kind = "rtsp", url = "rtsp://lab:secret@camera/x" }\n'
    )
    done = mbr_live("capture", config, "cage")
    assert done.returncode == 2
    assert "password_file" in done.stderr


def test_an_emulated_basler_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pypylon", reason="no pypylon (pip install 'mbr-live[basler]')")
    monkeypatch.setenv("PYLON_CAMEMU", "2")
    camera = Camera(name="cage", source=BaslerCamera(kind="basler", serial="0815-0001", fps=25), record="lossless")
    config = system_config(tmp_path / "live", camera)
    config.out.mkdir()
    child = Child("cage", ("capture", str(written(config)), "cage"), tmp_path / "log")
    child.start()  # without inference, whose cost of these pictures, a moving pattern, is not what is tested
    journal = config.out / "cage.frames.csv"
    wait_for(lambda: (journal.exists() and journal.read_text().count("\n") > 20) or child.exit_code, "frames")
    child.ask_to_stop()
    assert child.wait(PATIENCE_S)
    assert child.ended_well, child.last_words()
    rows = list(read_journal(journal))
    assert all(after > before for (before, *_), (after, *_) in pairwise(rows))
    assert 1.0 < rows[-1][1] / rows[-1][0] < 3.0  # frames of the camera for each tick: more are drained than are chosen
    assert next(iter(Recording(journal).frames("cage"))).pixels.shape == (1040, 1024, 3)
    (began,) = read_events(config.out / "cage.camera.csv")
    assert began.detail == "host clock"  # an emulated camera has no clock of its own
    (tmp_path / "two").mkdir()
    which = wrong_camera(tmp_path / "two", '{ kind = "basler" }')
    assert "0815-0000, 0815-0001" in which.stderr
    (tmp_path / "none").mkdir()
    missing = wrong_camera(tmp_path / "none", '{ kind = "basler", serial = "123" }')
    assert "123 is not there" in missing.stderr


def test_a_call_that_never_returns_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a pipe that nobody writes to blocks in the operating system, for ever and uninterrupted."""
    monkeypatch.setattr(live_camera, "FIRST_FRAME_WITHIN_S", 0.5)
    monkeypatch.setattr(live_camera, "HANGING_S", 2.0)
    monkeypatch.setattr(live_camera, "CLOSE_WITHIN_S", 0.1)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    camera = Camera(name="cage", source=OpenCvCamera(kind="opencv", device=str(pipe), backend="ffmpeg"))
    end = SessionEnd(SamplerState(0, 7, None), 8, 700_000_000)
    with closing(CameraLog(tmp_path / "cage.camera.csv")) as outages, pytest.raises(CameraHangs):
        live = LiveCamera(camera, outages, end)
        while True:
            live.poll(0.1)
    assert live.lost is not None
    assert live.lost.attempts >= 2
    assert live.hangs
    assert read_outages(tmp_path / "cage.camera.csv") == [Outage("process", 8, None, None)]
    for _ in range(live.lost.attempts + 1):  # let the threads that hang go
        with suppress(OSError):
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        time.sleep(0.05)


def test_a_process_begins_afresh_with_the_same_words(tmp_path: Path) -> None:
    """Its id stays, its threads and open files go."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, threading\n"
        "from mbr_live.processes import begin_afresh\n"
        "print(os.getpid(), threading.active_count(), sorted(os.listdir('/proc/self/fd')), sys.argv[1:], flush=True)\n"
        "if not os.environ.get('AGAIN'):\n"
        "    os.environ['AGAIN'] = '1'\n"
        "    os.set_inheritable(os.open('/dev/null', os.O_RDONLY), True)\n"
        "    threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "    begin_afresh()\n"
    )
    done = subprocess.run([sys.executable, program, "a b"], capture_output=True, text=True, timeout=300, check=True)
    first, second = done.stdout.splitlines()
    assert first == second


@given(st.floats(0, 1e7), st.floats(0, 1e7))
def test_pauses_grow_and_stay_short(one_s: float, other_s: float) -> None:
    shorter, longer = pause_s(min(one_s, other_s)), pause_s(max(one_s, other_s))
    assert 0 < shorter <= longer <= LONGEST_PAUSE_S


@given(st.one_of(st.none(), st.floats(0, 100)), st.integers(0, 1000))
def test_attempts_are_short_where_the_camera_was_quick_and_patient_now_and_then(
    opened_in_s: float | None, first: int
) -> None:
    limits = [open_within_s(opened_in_s, attempt) for attempt in range(first, first + PATIENT_EVERY)]
    assert max(limits) == OPEN_WITHIN_S
    if opened_in_s is not None:
        assert min(limits) >= min(1.9 * opened_in_s, OPEN_WITHIN_S)
        assert opened_in_s > 0.4 or sorted(limits)[:-1] == [min(limits)] * (PATIENT_EVERY - 1)


def test_a_process_that_was_killed_is_an_outage(tmp_path: Path) -> None:
    config = system_config(tmp_path / "live", simulated("cage"))
    with System(config) as system:
        goes_on(system, "cage")
        child = system.captures[0]
        assert child.pid is not None
        os.kill(child.pid, 9)
        wait_for(lambda: causes(config.out, "cage"), "the outage to be over", system)
        goes_on(system, "cage")
    assert causes(config.out, "cage") == ["process"]


def test_a_process_that_was_held_up_does_not_blame_the_camera(tmp_path: Path) -> None:
    """As a machine that is put to sleep, or has far too much to do, holds up all of its threads alike."""
    camera = simulated("cage").model_copy(update={"stall_s": 1.5})
    config = system_config(tmp_path / "live", camera)
    with System(config) as system:
        goes_on(system, "cage")
        for _ in range(3):
            os.kill(system.captures[0].pid or 0, signal.SIGSTOP)
            time.sleep(2.5)
            os.kill(system.captures[0].pid or 0, signal.SIGCONT)
            goes_on(system, "cage")
    assert causes(config.out, "cage") == []


def test_a_session_goes_on_after_the_date_was_set_back(tmp_path: Path) -> None:
    """The journal is an hour ahead of the clock: ticks go on from there, at once."""
    config = system_config(tmp_path / "live", simulated("cage"))
    config.out.mkdir()
    ahead_ns = time.time_ns() + 3600 * 10**9
    (config.out / "cage.frames.csv").write_text(f"frame,source_frame,time_ns\n0,0,{ahead_ns}\n")
    with System(config) as system:
        goes_on(system, "cage", 5)
    times = [time_ns for _, _, time_ns in read_journal(config.out / "cage.frames.csv")]
    assert times == sorted(times)
    assert times[1] - ahead_ns < 60 * 10**9


@pytest.mark.parametrize("left", ["", "event,time", CAMERA_LOG_HEADER])
def test_a_log_whose_first_row_was_never_written_is_gone_on_with(tmp_path: Path, left: str) -> None:
    path = tmp_path / "cage.camera.csv"
    path.write_text(left)
    assert not list(read_events(path))
    with closing(CameraLog(path)) as log:
        assert log.began is None
        log.began_with(1, 0, 640, 480, "host")
    assert path.read_text().splitlines()[0] == CAMERA_LOG_HEADER
    with closing(CameraLog(path)) as log:
        assert log.began is not None and log.began.width_px == 640


def test_what_is_no_camera_log_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "cage.camera.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(MbrError, match="found the header 'a,b'"):
        CameraLog(path)


def test_a_log_on_a_full_disk_does_not_stop_the_next_process(small_disk: Path) -> None:
    path = small_disk / "cage.camera.csv"
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(free))
    with closing(CameraLog(path)) as log:
        log.began_with(1, 0, 640, 480, "host")
    assert path.stat().st_size == 0
    (small_disk / "ballast").unlink()
    with closing(CameraLog(path)) as log:
        log.began_with(2, 1, 640, 480, "host")
    assert [event.frame for event in read_events(path)] == [1]
