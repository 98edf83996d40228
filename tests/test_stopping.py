"""Inference ends when it is told to, whatever captures of other folders and machines go on sending."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from live import PATIENCE_S, simulated, system_config

from mbr_live.config import Config
from mbr_live.live import infer as inference
from mbr_live.sinks.run_manifest import read_run
from mbr_live.status import SystemStatus, parse_status
from mbr_live.types import TICK_NS, Frame
from mbr_live.wire.frames import FrameSender
from mbr_live.wire.messages import CameraReport, CaptureCounts
from mbr_live.wire.status import StatusSubscriber

MOST_S = PATIENCE_S  # until a capture gives up that no inference could outlive


class Capture(threading.Thread):
    """Lives on, with frames or without, and has this process told to stop once inference labels."""

    def __init__(self, config: Config, *, frames: bool) -> None:
        super().__init__()
        self._config, self._frames = config, frames
        self.told, self.over = False, threading.Event()

    def run(self) -> None:
        wire = self._config.wire
        with (
            closing(StatusSubscriber(wire.status)) as status,
            closing(FrameSender(wire.frames, "cage", "of-elsewhere")) as sender,
        ):
            until_s = time.monotonic() + MOST_S
            index = 0
            while time.monotonic() < until_s and not self.over.wait(0.05):
                if self._frames:
                    picture = np.full((160, 160, 3), index % 200, np.uint8)
                    frame = Frame("cage", index, index, index * TICK_NS, 0, picture)
                    index += sender.send(frame, time.monotonic_ns())
                else:
                    sender.heartbeat(CaptureCounts(), CameraReport(source_fps=25.0))
                if not self.told and any(map(heard, status.messages(0.01))):
                    os.kill(os.getpid(), signal.SIGTERM)
                    self.told = True


def heard(message: bytes) -> bool:
    """Whether inference says that it has heard of the capture."""
    said = parse_status(message)
    return isinstance(said, SystemStatus) and (said.cameras[0].source_fps > 0 or said.cameras[0].last_index >= 0)


@pytest.mark.parametrize("frames", [False, True])
def test_a_capture_that_lives_on_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, frames: bool
) -> None:
    monkeypatch.setattr(inference, "DRAIN_S", 0.3)
    monkeypatch.setattr(inference, "DRAIN_AT_MOST_S", 1.0 if frames else 2 * MOST_S)
    config = system_config(tmp_path / "live", simulated("cage"))
    capture = Capture(config, frames=frames)
    capture.start()
    inference.infer(config)
    outlived = capture.is_alive()
    capture.over.set()
    capture.join()
    assert capture.told and outlived
    run = read_run(config.out / "cage.run.json")
    assert run.exit_status == "stopped" and bool(run.rows) == frames
