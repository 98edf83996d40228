"""Rows that the disk does not take wait in order, up to a limit, and are written when there is room."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest

from mbr_live import appending
from mbr_live.appending import Unwritable, WaitingRows, once_there_is_room
from mbr_live.bundle import Bundle
from mbr_live.cameras.errors import CameraLost
from mbr_live.engines.openvino_engine import OpenVinoEngine
from mbr_live.live.arrivals import Eye, RefusedFrame, SeenFrame
from mbr_live.live.backlog import Backlog, Labelled
from mbr_live.pipeline import Pipeline
from mbr_live.sinks.label_log import label_rows, read_labels
from mbr_live.sinks.session_log import SessionLog
from mbr_live.types import UNKNOWN, Decision, MbrError, Status
from mbr_live.wire.messages import FrameHeader


@contextmanager
def no_room() -> Iterator[None]:
    """No file of this process may grow beyond 100 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def tick() -> Iterator[Callable[[], float]]:
    """A clock that goes on by more than a retry at every look."""
    numbers = iter(range(10**9))
    yield lambda: next(numbers) * 2 * appending.RETRY_S


def test_rows_wait_in_order_and_whole(tmp_path: Path, tick: Callable[[], float]) -> None:
    path = tmp_path / "rows.csv"
    with closing(WaitingRows(path, "header\n", clock_s=tick)) as rows:
        rows.append("0" * 60 + "\n")
        with no_room():
            for number in range(1, 5):
                rows.append(f"{number}" * 60 + "\n")
            assert len(rows) == 4
            assert path.read_text().endswith("0\n")  # nothing of a row that was not taken whole
            with pytest.raises(Unwritable, match="Make room on the disk"):
                rows.write("now\n")
        rows.write("now\n")
    assert path.read_text() == "header\n" + "".join(f"{n}" * 60 + "\n" for n in range(5)) + "now\n"


def test_no_more_rows_wait_than_agreed(
    tmp_path: Path, tick: Callable[[], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appending, "MOST_WAITING", 3)
    rows = WaitingRows(tmp_path / "rows.csv", clock_s=tick)
    with no_room():
        for _ in range(3):
            rows.append("x" * 200 + "\n")
        with pytest.raises(Unwritable, match="3 rows wait for room already"):
            rows.append("y\n")
    rows.close()
    assert (tmp_path / "rows.csv").read_text() == ("x" * 200 + "\n") * 3


def test_a_gap_is_in_the_log_as_a_whole_or_not_at_all(
    tmp_path: Path, demo_bundle: Bundle, tick: Callable[[], float]
) -> None:
    """Of more rows than one write has; the label behind it waits too, and each is told when it is in the file."""
    log = SessionLog.create(tmp_path / "a.labels.csv", tmp_path / "a.bouts.csv", demo_bundle.manifest)
    nan, unknown = float("nan"), (UNKNOWN,) * len(demo_bundle.manifest.behaviour_names)
    gap = Decision("a", 0, UNKNOWN, 0, Status.GAP, nan, nan, (), unknown, ticks=5000)
    lost = Decision("a", 5000, 5000, 5000, Status.LOST, nan, nan, (), unknown)
    backlog = Backlog("a", log.write, clock_s=tick)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    enough = len("".join(label_rows(gap))) - 100  # for the first write of it, and not for the second
    resource.setrlimit(resource.RLIMIT_FSIZE, (enough, limit[1]))
    try:
        for decision in (gap, lost):
            backlog.add(Labelled(decision, None))
            assert list(backlog.written()) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(read_labels(tmp_path / "a.labels.csv")) == []
    assert [told.decision for told in backlog.written()] == [gap, lost]
    log.close()
    assert [row.index for row in read_labels(tmp_path / "a.labels.csv")] == list(range(5001))


def test_what_cannot_be_written_is_not_looked_at(demo_bundle: Bundle, engine: OpenVinoEngine) -> None:
    """The lane must be as if those frames had never come: only then can a replay repeat its labels."""
    eye = Eye(Pipeline(demo_bundle.manifest, engine), -1)
    pixels = memoryview(np.full((48, 64, 3), 90, np.uint8).tobytes())

    def look(index: int) -> SeenFrame | RefusedFrame:
        header = FrameHeader(
            camera="a", session="a session", seq=index, index=index, source_frame=index, time_ns=index, origin_ns=0,
            captured_ns=0, clock="here", height=48, width=64,
        )  # fmt: skip
        return eye.look(header, pixels)

    assert isinstance(look(0), SeenFrame)
    eye.closed = True
    refused = look(1)
    assert isinstance(refused, RefusedFrame)
    assert refused.why == "disk_full"
    eye.closed = False
    assert isinstance(look(1), SeenFrame)  # its tick is still free


def test_a_beginning_waits_for_room_and_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appending, "RETRY_S", 0.0)
    attempts = iter([OSError(28, "No space left on device"), Unwritable("x", "full", 28), None, OSError(13, "denied")])

    def work() -> str:
        error = next(attempts)
        if error is not None:
            raise error
        return "done"

    assert once_there_is_room(work, lambda: False) == "done"
    with pytest.raises(OSError, match="denied"):
        once_there_is_room(work, lambda: False)
    assert once_there_is_room(work, lambda: True) is None


def test_a_file_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    rows = WaitingRows(tmp_path / "nowhere" / "rows.csv")
    with pytest.raises(Unwritable, match=r"nowhere/rows\.csv: cannot be written \(No such file or directory\)"):
        rows.open()


@pytest.mark.parametrize("error", [MbrError("no"), Unwritable("rows.csv", "full", 28), CameraLost("hung", "no frame")])
def test_an_error_of_one_process_is_the_same_in_another(error: MbrError) -> None:
    here, there = Pipe()
    with here, there:
        there.send(error)
        again = here.recv()
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
