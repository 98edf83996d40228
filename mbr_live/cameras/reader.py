"""One connection to a camera, drained in a thread of its own, so that a call that never returns hangs nobody else.

The thread takes every frame at the camera's own rate, samples, and hands on the frames that serve a tick. It shares
nothing with the rest of the process but a queue, and the number of frames that went by: it can be abandoned at any
moment, and whatever it does afterwards changes nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import NamedTuple, cast

from mbr_live.cameras.clocks import Clock
from mbr_live.cameras.opening import LiveSource
from mbr_live.stages.sampler import SamplerState, sample
from mbr_live.types import Image, SourceFrame

QUEUE_FRAMES = 20  # as on the wire: rides out a hiccup of the disk
_LOOK_EVERY_S = 0.5  # whether it was abandoned, while it waits for room


@dataclass(frozen=True, slots=True)
class Chosen:
    """A frame that serves a tick, and how the source was doing when it came."""

    index: int  # tick
    number: int  # of the source's frames
    time_ns: int
    pixels: Image
    captured_ns: int  # CLOCK_MONOTONIC when the picture was in memory
    state: SamplerState  # after it
    clock: Clock
    source_frames: int  # frames of the source since the `Chosen` before
    unqueued: int  # of these, how many had served a tick, but found the queue full


class Passed(NamedTuple):
    """Frames that went by."""

    source_frames: int = 0
    unqueued: int = 0  # of these, how many served a tick, but found the queue full
    state: SamplerState | None = None  # of the sampler, after the last of the unqueued


def both(first: Passed, second: Passed) -> Passed:
    """All frames of two stretches."""
    return Passed(
        first.source_frames + second.source_frames, first.unqueued + second.unqueued, second.state or first.state
    )


class SourceEnded(Exception):
    """The source came to its end, as only a file does."""


class Reader:
    """One connection. `open_source` is called in the thread, since opening is what hangs most often."""

    def __init__(
        self,
        name: str,
        open_source: Callable[[], LiveSource],
        state: SamplerState | None,
        *,
        first_number: int = 0,
        patient: bool = False,
    ) -> None:
        """`state` is the sampler's, where sampling goes on; frames are numbered from `first_number`.

        `patient`: wait for room in the queue, as only a file may.
        """
        self._open_source, self._state = open_source, state
        self._first_number, self._patient = first_number, patient
        self.passed = Passed()  # since the last `Chosen`, so that none is forgotten when no other follows
        self._queue: Queue[Chosen | Exception] = Queue(QUEUE_FRAMES)
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"camera {name}", daemon=True)
        self._thread.start()

    def next(self, timeout_s: float) -> Chosen | None:
        """The next frame that serves a tick, or None after `timeout_s`.

        Raises what the source raised, MbrError for instance, and SourceEnded after its last frame.
        """
        with suppress(Empty):
            item = self._queue.get(timeout=max(0.0, timeout_s)) if timeout_s > 0 else self._queue.get_nowait()
            if isinstance(item, Exception):
                raise item
            return item
        return None

    def abandon(self) -> None:
        """Want nothing more of it. The thread ends when the call that it is in returns."""
        self._abandoned.set()

    def wait(self, timeout_s: float) -> None:
        """Give the thread of an abandoned reader so long to end."""
        self._thread.join(timeout_s)

    @property
    def hangs(self) -> bool:
        """Whether the thread is still there."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            # Every source iterates as a generator, whose closing closes the camera.
            frames = cast(Generator[SourceFrame, None, None], iter(source := self._open_source()))
            with closing(frames):
                self._drain(source, frames)
        except Exception as error:  # noqa: BLE001  whatever it is, it is raised again by `next`
            self._hand_on(error, wait=True)
        else:
            self._hand_on(SourceEnded(), wait=True)

    def _drain(self, source: LiveSource, frames: Generator[SourceFrame, None, None]) -> None:
        for frame in frames:
            if self._abandoned.is_set():
                return
            passed = self.passed._replace(source_frames=self.passed.source_frames + 1)
            index, self._state = sample(frame.time_ns, self._state)
            if index is None:
                self.passed = passed
                continue
            pixels = frame.picture()
            chosen = Chosen(
                index, self._first_number + frame.number, frame.time_ns, pixels, time.monotonic_ns(), self._state,
                source.clock, passed.source_frames, passed.unqueued,
            )  # fmt: skip
            if self._hand_on(chosen, wait=self._patient):
                self.passed = Passed()
            elif self._abandoned.is_set():
                return  # nothing is counted: the frames of this reader had come to their end before this one
            else:
                self.passed = Passed(passed.source_frames, passed.unqueued + 1, self._state)

    def _hand_on(self, item: Chosen | Exception, *, wait: bool) -> bool:
        while not self._abandoned.is_set():
            with suppress(Full):
                self._queue.put(item, timeout=_LOOK_EVERY_S) if wait else self._queue.put_nowait(item)
                return True
            if not wait:
                return False
        return False
