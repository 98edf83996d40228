"""GigE Vision, with the camera that Aravis itself simulates: real packets over the loopback."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from live import PATIENCE_S, mbr_live, system_config, wait_for

from mbr_live.cameras.errors import CameraLost
from mbr_live.cameras.gige import GigE, as_rgb
from mbr_live.cameras.log import read_events, read_outages
from mbr_live.config import Camera, GigECamera
from mbr_live.processes import Child
from mbr_live.video.journal import read_journal
from mbr_live.video.recording import Recording

FAKE = shutil.which("arv-fake-gv-camera-0.8")
ADDRESS = "127.0.0.1"
SOURCE = GigECamera(kind="gige", address=ADDRESS, fps=25)


def library_is_there() -> bool:
    try:
        ctypes.CDLL("libaravis-0.8.so.0")
    except OSError:
        return False
    return True


needs_aravis = pytest.mark.skipif(
    FAKE is None or not library_is_there(), reason="no simulated GigE camera (apt install aravis-tools)"
)


@contextmanager
def fake_camera() -> Iterator[None]:
    camera = subprocess.Popen([str(FAKE), "-i", ADDRESS, "-s", "GV77"])
    try:
        while "0100007F:0F74" not in Path("/proc/net/udp").read_text():  # port 3956 of 127.0.0.1
            assert camera.poll() is None
            time.sleep(0.02)
        yield
    finally:
        camera.kill()
        camera.wait()


@needs_aravis
def test_a_gige_camera_that_comes_back(tmp_path: Path) -> None:
    config = system_config(tmp_path / "live", Camera(name="cage", source=SOURCE, record="lossless"))
    config.out.mkdir()
    path = config.out / "system.json"
    path.write_text(config.model_dump_json())
    journal = config.out / "cage.frames.csv"

    def rows() -> int:
        return journal.read_text().count("\n") if journal.exists() else 0

    child = Child("cage", ("capture", str(path), "cage"), tmp_path / "log")
    try:
        with fake_camera():
            child.start()
            wait_for(lambda: rows() > 20, "frames")
        wait_for(lambda: "stalled" in (config.out / "cage.camera.csv").read_text(), "the loss to be seen")
        seen = rows()
        with fake_camera():
            wait_for(lambda: rows() > seen + 20, "frames of the camera that is back")
            child.ask_to_stop()
            assert child.wait(PATIENCE_S)
    finally:
        child.ask_to_stop()
        child.wait(20)
    assert child.ended_well, child.last_words()
    kept = list(read_journal(journal))
    assert all(after > before for (before, *_), (after, *_) in pairwise(kept))
    assert 1.0 < kept[19][1] / kept[19][0] < 3.0  # of its 25 frames a second more are drained than are chosen
    assert next(iter(Recording(journal).frames("cage"))).pixels.shape == (512, 512, 3)
    assert next(read_events(config.out / "cage.camera.csv")).detail == "camera clock"
    assert [outage.cause for outage in read_outages(config.out / "cage.camera.csv")] == ["stalled"]


@needs_aravis
def test_without_an_address_the_only_camera_is_taken() -> None:
    with fake_camera():
        frames = iter(GigE("cage", GigECamera(kind="gige"), stall_s=5.0))
        assert next(frames).picture().shape == (512, 512, 3)
        frames.close()  # type: ignore[attr-defined]


@needs_aravis
def test_no_camera_at_the_address(tmp_path: Path) -> None:
    with pytest.raises(CameraLost, match="does not answer"):
        next(iter(GigE("cage", GigECamera(kind="gige", address="127.0.0.9"), stall_s=1.0)))
    config = tmp_path / "system.toml"
    config.write_text('out = "live"\n[[camera]]\nname = "cage"\nsource = { kind = "gige", address = "127.0.0.9" }\n')
    done = mbr_live("capture", config, "cage")
    assert done.returncode == 2
    assert "127.0.0.9 does not answer" in done.stderr
    assert not list((tmp_path / "live").glob("*"))


@pytest.mark.parametrize(
    ("pixel_format", "tile"),
    [(0x01080008, "GRBG"), (0x01080009, "RGGB"), (0x0108000A, "GBRG"), (0x0108000B, "BGGR")],
)
def test_bayer_patterns(pixel_format: int, tile: str) -> None:
    colour = dict(zip("RGB", (200, 90, 30), strict=True))
    raw = np.tile(np.array([colour[letter] for letter in tile], np.uint8).reshape(2, 2), (8, 8))
    picture = as_rgb(raw.tobytes(), 16, 16, pixel_format)
    assert (picture == (200, 90, 30)).all()


def test_pictures_in_colour_and_grey() -> None:
    rgb = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert (as_rgb(rgb.tobytes(), 3, 2, 0x02180014) == rgb).all()
    assert (as_rgb(rgb[..., ::-1].tobytes(), 3, 2, 0x02180015) == rgb).all()
    grey = rgb[..., 0]
    assert (as_rgb(grey.tobytes(), 3, 2, 0x01080001) == grey[..., None]).all()


def test_pictures_that_cannot_be_read() -> None:
    with pytest.raises(ValueError, match="0x01100003, expected Mono8"):
        as_rgb(bytes(12), 3, 2, 0x01100003)  # Mono10
    with pytest.raises(ValueError, match="5 bytes for 3x2 px, expected 6"):
        as_rgb(bytes(5), 3, 2, 0x01080001)
