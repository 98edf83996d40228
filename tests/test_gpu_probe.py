"""Asking for a GPU never harms who asks, whatever the driver does."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mbr_live.engines.gpu_probe import Gpu, Gpus, probe_gpus

STUB = """
#include <string.h>
#include <stdlib.h>
int cuInit(unsigned flags) {
    char *code = getenv("STUB_INIT");
    if (code[0] == 'x') abort();
    return atoi(code);
}
int cuDeviceGetCount(int *count) { *count = atoi(getenv("STUB_GPUS")); return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, device ? "Second" : "First", length);
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)(8 + device) << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 9; return 0; }
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a library that answers as the driver of two GPUs."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here (Debian: apt-get install gcc)")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "stub.c").write_text(STUB)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libcuda.so.1", folder / "stub.c"], check=True)
    return folder


def asked(driver: Path, monkeypatch: pytest.MonkeyPatch, *, gpus: str = "2", init: str = "0") -> Gpus:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver))
    monkeypatch.setenv("STUB_GPUS", gpus)
    monkeypatch.setenv("STUB_INIT", init)
    return probe_gpus()


def test_two_gpus(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(driver, monkeypatch) == Gpus((Gpu("First", 8192, "8.9"), Gpu("Second", 9216, "8.9")))


def test_a_driver_without_a_gpu(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(driver, monkeypatch, gpus="0") == Gpus((), "the driver knows no GPU")


def test_a_driver_that_refuses(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(driver, monkeypatch, init="100") == Gpus(
        (), "the NVIDIA driver is there, but cuInit failed with code 100"
    )


def test_a_driver_that_crashes(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(driver, monkeypatch, init="x") == Gpus((), "the probe ended with code -6")


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ((sys.executable, "-c", "print('[{')"), "the probe's answer cannot be read"),
        ((sys.executable, "-c", "print('[{\"strange\": 1}]')"), "the probe's answer cannot be read"),
        (("/nonexistent/python",), "the probe did not answer"),
    ],
)
def test_answers_that_are_none(command: tuple[str, ...], why: str) -> None:
    found = probe_gpus(command)
    assert not found.gpus
    assert found.why_none is not None and found.why_none.startswith(why)
