"""The Arduino sketch itself, compiled for this machine, at the other end of a pseudo-terminal."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT
from live import PATIENCE_S, wait_for

from mbr_live.triggers.outputs import serial_ttl
from mbr_live.triggers.outputs.serial_ttl import SerialBox
from mbr_live.triggers.outputs.simulated_box import LINES

FIRST_PIN = 2


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread is the cable, and may have to wait for the machine."""
    monkeypatch.setattr(serial_ttl, "CONFIRM_WITHIN_S", PATIENCE_S)
    monkeypatch.setattr(serial_ttl, "HELLO_WITHIN_S", PATIENCE_S)


@pytest.fixture(scope="module")
def sketch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed (Debian: apt-get install g++): the sketch is not tried")
    program = tmp_path_factory.mktemp("sketch") / "box"
    shim, source = ROOT / "tests" / "arduino_shim.h", ROOT / "docs" / "mbr_ttl" / "mbr_ttl.ino"
    subprocess.run([compiler, "-Wall", "-Werror", "-include", shim, "-x", "c++", source, "-o", program], check=True)
    return program


@contextmanager
def board(program: Path) -> Iterator[tuple[SerialBox, list[tuple[int, int, int]]]]:
    """The sketch running, the box that speaks to it, and the changes of its pins: pin, value, ns."""
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    far, near = os.openpty()
    tty.setraw(near)
    process = subprocess.Popen([program, os.ttyname(theirs)], stdout=subprocess.PIPE, text=True)
    # A pseudo-terminal has one near end for the port and one for the board: two of them, and a thread as the cable.
    over = threading.Event()

    def carry(source: int, target: int) -> None:
        while not over.is_set():
            try:
                os.write(target, os.read(source, 1024))
            except OSError:
                return

    for ends in ((far, ours), (ours, far)):
        threading.Thread(target=carry, args=ends, daemon=True).start()
    changes: list[tuple[int, int, int]] = []

    def listen() -> None:
        for text in process.stdout or ():
            pin, value, at_ns = map(int, text.split())
            changes.append((pin, value, at_ns))

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    box = SerialBox(os.ttyname(near), 115200)
    try:
        box.open("board", 0)
        yield box, changes
    finally:
        box.close(0)
        over.set()
        process.kill()
        listener.join()  # what it reads from must not be closed under it
        process.communicate()
        for descriptor in (ours, theirs, far, near):
            os.close(descriptor)


def test_the_sketch_speaks_the_protocol_and_ends_every_hold(sketch: Path) -> None:
    with board(sketch) as (box, changes):
        assert box.lines == LINES
        assert box.hold(3, 0.5, confirm=True)
        wait_for(lambda: len(changes) == 2, "the line to fall by itself")
        (pin, up, since_ns), (_, down, until_ns) = changes
        assert (pin, up, down) == (FIRST_PIN + 3, 1, 0)
        assert 0.498e9 <= until_ns - since_ns <= 1.5e9  # the board itself has to wait for the machine
        for _ in range(5):
            box.hold(0, 30.0, confirm=False)
            time.sleep(0.02)
        assert box.hold(0, 0.0, confirm=True)
        wait_for(lambda: len(changes) == 4, "a hold that was renewed and ended")
        assert changes[2][2] + 80e6 <= changes[3][2]


def test_the_sketch_refuses_what_it_does_not_understand(sketch: Path) -> None:
    with board(sketch) as (box, changes):
        for nonsense in (b"H 1 10 50", b"H 1 2", b"H 1 2 50 x", b"", b"A" * 100, b"H -1", b"\xff\xfe"):
            box._write(nonsense + b"\n")
            assert box._line(time.monotonic() + PATIENCE_S) == "E"
        assert changes == []
        assert box.hold(9, 0.02, confirm=True)
