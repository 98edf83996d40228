"""What the tests share: where real video lies, a short simulated recording, the shipped bundle, a small disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from mbr_live.bundle import Bundle, load_bundle
from mbr_live.config import DEMO_BUNDLE
from mbr_live.engines.openvino_engine import OpenVinoEngine
from mbr_live.simulation.camera import record

ROOT = Path(__file__).resolve().parent.parent

# How long an example takes says more of how busy the machine is than of the product.
# Based on hypothesis's own profile, which on CI takes the same examples in every run, and elsewhere others each time.
settings.register_profile("any machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Folder of the real recordings; without it the test is skipped and says so."""
    folder = Path(os.environ.get("MBR_REALDATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real recordings at {folder} (set MBR_REALDATA)")
    return folder


@pytest.fixture(scope="session")
def demo_bundle() -> Bundle:
    return load_bundle(DEMO_BUNDLE)


@pytest.fixture(scope="session")
def engine(demo_bundle: Bundle) -> OpenVinoEngine:
    return OpenVinoEngine(demo_bundle)


@pytest.fixture(scope="session")
def int8_bundle(demo_bundle: Bundle, box_video: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo bundle with int8 features, calibrated on twelve seconds; its list is beside it, frames.json."""
    pytest.importorskip("onnxruntime", reason="training is not installed: pip install 'mbr-live[train]'")
    from mbr_live.quantisation.calibrate import Given, calibrate

    folder = tmp_path_factory.mktemp("int8")
    return calibrate(demo_bundle, [Given("box.mp4", (box_video,))], folder / "bundle", folder / "frames.json")


@pytest.fixture(scope="session")
def box_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve simulated seconds at 10 fps."""
    return _recorded(tmp_path_factory, "box", 11, 12)


@pytest.fixture(scope="session")
def clutter_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve simulated seconds at 29.97 fps."""
    return _recorded(tmp_path_factory, "clutter", 12, 12)


@pytest.fixture(scope="session")
def dark_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve simulated seconds in poor light."""
    return _recorded(tmp_path_factory, "dark", 13, 12)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here: that takes root")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def _recorded(factory: pytest.TempPathFactory, condition: str, seed: int, seconds: float) -> Path:
    folder = factory.mktemp("simulated")
    video = folder / f"{condition}.mp4"
    record(condition, seed, seconds, video, folder / f"{condition}.truth.csv")
    return video
