"""Labels that have been decided, until they are in the log. Nobody is told of a label before it is."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mbr_live.appending import MOST_WAITING, RETRY_S, Unwritable
from mbr_live.types import Decision
from mbr_live.wire.messages import FrameHeader

_log = logging.getLogger(__name__)


class Labelled(NamedTuple):
    """A decision, and the frame that it is about; without its pixels."""

    decision: Decision
    header: FrameHeader | None  # None for a gap
    received_ns: int = 0


class Backlog:
    """Labels of one camera on their way into its log: at once, or in order when the disk has room again."""

    def __init__(
        self, camera: str, write: Callable[[Decision], None], *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._camera, self._write, self._clock_s = camera, write, clock_s
        self._waiting: deque[Labelled] = deque()
        self._retry_at_s = 0.0

    def __len__(self) -> int:
        """Labels that wait; as many as that are lost if the process is killed now."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether no more frames should be labelled. What is on its way here may still come."""
        return len(self._waiting) >= MOST_WAITING

    def add(self, labelled: Labelled) -> None:
        """Take a label; `written` has it when it is in the log."""
        self._waiting.append(labelled)

    def written(self, *, now: bool = False) -> Iterator[Labelled]:
        """Write what waits, if it is time to try or `now`; each label once it is in the log."""
        failed_before = self._retry_at_s > 0
        if not self._waiting or (failed_before and not now and self._clock_s() < self._retry_at_s):
            return
        while self._waiting:
            try:
                self._write(self._waiting[0].decision)
            except Unwritable as error:
                if not failed_before:
                    _log.error("%s Labels of %s wait in memory; no trigger acts meanwhile.", error, self._camera)
                self._retry_at_s = self._clock_s() + RETRY_S
                return
            yield self._waiting.popleft()
        if failed_before:
            _log.warning("%s: labels are written again, and none is missing", self._camera)
        self._retry_at_s = 0.0
