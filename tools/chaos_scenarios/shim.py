"""A date and a disk that only the processes of a scenario see: shim.c, compiled and loaded into them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

COMPILER = shutil.which("cc")
WHY_NOT = "no C compiler, which makes the date and the disk that processes see (apt-get install gcc)"


def compiled(folder: Path) -> Path:
    """The shim as a library in `folder`."""
    shim = folder / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-O2", "-Wall", "-o", shim, source, "-ldl"], check=True)
    return shim
