"""Which NVIDIA GPUs are there? Asked of the driver in a process of its own, since a broken one may crash who asks.

python -m mbr_live.engines.gpu_probe        prints a JSON list
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from dataclasses import asdict, dataclass

_TIMEOUT_S = 20.0
_DRIVERS = ("libcuda.so.1", "nvcuda.dll")
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as the driver names it."""

    name: str
    memory_mib: int
    compute_capability: str


@dataclass(frozen=True, slots=True)
class Gpus:
    """What the probe found, and if nothing, why."""

    gpus: tuple[Gpu, ...]
    why_none: str | None = None


def probe_gpus(command: tuple[str, ...] = (sys.executable, "-m", "mbr_live.engines.gpu_probe")) -> Gpus:
    """Ask in a child process; never raises and never crashes, whatever becomes of the child."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Gpus((), f"the probe did not answer ({type(error).__name__})")
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return Gpus((), said[-1] if said and done.returncode > 0 else f"the probe ended with code {done.returncode}")
    try:
        found = tuple(Gpu(**each) for each in json.loads(done.stdout))
    except (ValueError, TypeError) as error:
        return Gpus((), f"the probe's answer cannot be read ({error})")
    return Gpus(found, None if found else "the driver knows no GPU")


def main() -> None:
    driver = _driver()
    _call(driver.cuInit(0), "cuInit")
    count = ctypes.c_int()
    _call(driver.cuDeviceGetCount(ctypes.byref(count)), "cuDeviceGetCount")
    print(json.dumps([asdict(_described(driver, number)) for number in range(count.value)]))


def _driver() -> ctypes.CDLL:
    for name in _DRIVERS:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise SystemExit("no NVIDIA driver")


def _call(status: int, name: str) -> None:
    if status:
        raise SystemExit(f"the NVIDIA driver is there, but {name} failed with code {status}")


def _described(driver: ctypes.CDLL, number: int) -> Gpu:
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    _call(driver.cuDeviceGet(ctypes.byref(device), number), "cuDeviceGet")
    _call(driver.cuDeviceGetName(name, len(name), device), "cuDeviceGetName")
    _call(driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device), "cuDeviceTotalMem")
    capability = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        _call(driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device), "cuDeviceGetAttribute")
        capability.append(str(value.value))
    return Gpu(name.value.decode(errors="replace"), memory.value >> 20, ".".join(capability))


if __name__ == "__main__":
    main()
