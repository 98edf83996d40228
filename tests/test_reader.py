"""Frames of a camera are counted, also those that no other came after."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from live import simulated

from mbr_live.cameras import live_camera
from mbr_live.cameras.clocks import Clock
from mbr_live.cameras.errors import CameraLost
from mbr_live.cameras.live_camera import LiveCamera
from mbr_live.cameras.log import CameraLog
from mbr_live.cameras.reader import QUEUE_FRAMES, Chosen
from mbr_live.types import TICK_NS, SourceFrame

FRAMES = 2 * QUEUE_FRAMES + 10


class Breaking:
    """Frames faster than anybody takes them, two to a tick, and then the cable is out."""

    clock: Clock = "host"

    def __init__(self) -> None:
        self.over = threading.Event()

    def __iter__(self) -> Iterator[SourceFrame]:
        for number in range(2 * FRAMES):
            yield SourceFrame(number, number * TICK_NS // 2, lambda: np.zeros((16, 16, 3), np.uint8))
        self.over.set()
        raise CameraLost("ended", "cable out")


def test_frames_that_found_the_queue_full_before_a_connection_ended_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Breaking()
    monkeypatch.setattr(live_camera, "open_camera", lambda *_, **__: source)
    chosen: list[Chosen] = []
    with (
        closing(CameraLog(tmp_path / "cage.camera.csv")) as log,
        closing(LiveCamera(simulated("cage"), log, None)) as live,
    ):
        until_s = time.monotonic() + 30
        while live.lost is None and time.monotonic() < until_s:
            one = live.poll(0.1)
            assert source.over.wait(30)  # as if the disk had held up whoever takes the frames
            if one is not None:
                chosen.append(one)
        assert live.lost is not None and live.lost.text == "cable out"
        passed = live.passed()
        assert live.passed() == (0, 0)
    served = len(chosen) + sum(one.unqueued for one in chosen) + passed.unqueued
    assert passed.unqueued > 0 and served == FRAMES
    assert sum(one.source_frames for one in chosen) + passed.source_frames == 2 * FRAMES
