"""Frames of a camera are counted, also those that no other came after."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
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
from mbr_live.cameras.reader import QUEUE_FRAMES, Chosen, Passed, Reader
from mbr_live.types import TICK_NS, Image, SourceFrame

FRAMES = 2 * QUEUE_FRAMES + 10


class Breaking:
    """Frames faster than anybody takes them, two to a tick, and then the cable is out."""

    clock: Clock = "host"

    def __init__(self) -> None:
        self.over = threading.Event()

    def __iter__(self) -> Iterator[SourceFrame]:
        for number in range(2 * FRAMES):
            yield SourceFrame(number, number * TICK_NS // 2, picture)
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
        assert live.passed() == Passed()
    served = len(chosen) + sum(one.unqueued for one in chosen) + passed.unqueued
    assert passed.unqueued > 0 and served == FRAMES
    assert passed.state is not None and passed.state.last_index == FRAMES - 1
    assert sum(one.source_frames for one in chosen) + passed.source_frames == 2 * FRAMES


class Busy:
    """As many ticks as are asked for; `at_picture` is called while the last one's picture is fetched."""

    clock: Clock = "host"

    def __init__(self, ticks: int, at_picture: Callable[[], None]) -> None:
        self._ticks, self._at_picture = ticks, at_picture

    def __iter__(self) -> Iterator[SourceFrame]:
        for number in range(self._ticks):
            yield SourceFrame(number, number * TICK_NS, self._picture if number == self._ticks - 1 else picture)

    def _picture(self) -> Image:
        self._at_picture()
        return picture()


def picture() -> Image:
    return np.zeros((16, 16, 3), np.uint8)


def test_a_frame_that_comes_while_its_reader_is_abandoned_is_none_of_the_session() -> None:
    opened = threading.Event()
    readers: list[Reader] = []

    def abandon() -> None:
        assert opened.wait(30)
        readers[0].abandon()

    readers.append(Reader("cage", lambda: Busy(3, abandon), None))
    opened.set()
    readers[0].wait(30)
    taken = [readers[0].next(0), readers[0].next(0), readers[0].next(0)]
    assert [one.index if one else None for one in taken] == [0, 1, None]
    assert readers[0].passed == Passed()


def test_frames_that_wait_when_the_end_comes_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    all_queued = threading.Event()
    monkeypatch.setattr(live_camera, "open_camera", lambda *_, **__: Busy(5, all_queued.set))
    with (
        closing(CameraLog(tmp_path / "cage.camera.csv")) as log,
        closing(LiveCamera(simulated("cage"), log, None)) as live,
    ):
        first = live.poll(30)
        assert first is not None and all_queued.wait(30)
        rest = [chosen.index for chosen in live.end()]
    assert rest[:3] == [1, 2, 3]  # the last may have come behind the end
    assert live.lost is None
