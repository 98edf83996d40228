"""A session that goes on from a checkpoint has what one has that reads all of its rows again, whatever happened."""

from __future__ import annotations

import math
import shutil
import socket
from collections import Counter
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbr_live.bundle import Bundle
from mbr_live.manifest import Manifest
from mbr_live.sinks import session_log
from mbr_live.sinks.label_log import gap_ranges, read_labels
from mbr_live.sinks.label_segments import PERIOD_NS, closed_segments
from mbr_live.sinks.session_log import SessionLog
from mbr_live.types import TICK_NS, UNKNOWN, Decision, MbrError, Status

EVERY = 7  # rows per checkpoint
LABELS, BOUTS, KEPT = "cage.labels.csv", "cage.bouts.csv", "cage.labels.checkpoint"
ORIGIN_NS = PERIOD_NS["hour"] - 20 * TICK_NS
nan = math.nan


def frame(index: int, labels: tuple[int, int], p: float = 0.5) -> Decision:
    other_p = round(1 - p, 6)  # as the pipeline rounds
    return Decision("cage", index, index, ORIGIN_NS + index * TICK_NS, Status.OK, 10.0, 20.5, (p, other_p), labels)


def unknown(index: int, status: Status, ticks: int = 1) -> Decision:
    source_frame = UNKNOWN if status == Status.GAP else index
    time_ns = ORIGIN_NS + index * TICK_NS
    return Decision("cage", index, source_frame, time_ns, status, nan, nan, (), (UNKNOWN, UNKNOWN), ticks)


def resume(folder: Path, manifest: Manifest, rotation: Literal["off", "hour"] = "off") -> SessionLog:
    return SessionLog.resume(folder / LABELS, folder / BOUTS, manifest, rotation)


def kill(log: SessionLog) -> None:
    """What is left of a process that was killed: its files."""
    log._labels.close()
    log._bouts.close()
    assert log._kept
    log._kept.gaps.close()


def what_follows(log: SessionLog, folder: Path) -> tuple[object, ...]:
    return (folder / BOUTS).read_bytes(), log.last_index, log.rows, log.bout_counts, log.gap_ranges()


KNOWN = st.tuples(st.just("frames"), st.integers(1, 20), st.sampled_from([(0, 0), (1, 0), (1, 1), (0, 1)]))
UNKNOWNS = st.tuples(st.just("unknown"), st.integers(1, 25), st.sampled_from([Status.GAP, Status.LOST, Status.WARMUP]))
LONG = st.tuples(st.just("long gap"), st.integers(2, 40), st.none())
ENDS = st.tuples(
    st.sampled_from(["closed", "killed"]),
    st.sampled_from([0, 0, 1, 40, 200, 1000]),  # bytes that a power cut takes, as long as there are some
    st.sampled_from([LABELS, BOUTS, "segment", f"{KEPT}/gaps.csv", f"{KEPT}/newest.json", f"{KEPT}/previous.json"]),
)
SCRIPT = st.lists(st.one_of(KNOWN, UNKNOWNS, LONG, ENDS), min_size=4, max_size=14)


def cut(folder: Path, taken_bytes: int, name: str) -> None:
    path = folder / name
    if name == "segment":
        path = next(iter(closed_segments(folder / LABELS)[-1:]), path)
    if path.exists() and taken_bytes:
        path.write_bytes(path.read_bytes()[:-taken_bytes])


@given(script=SCRIPT, rotation=st.sampled_from(["off", "hour"]))
@settings(max_examples=50)
def test_going_on_from_a_checkpoint_is_going_on_from_the_rows(
    script: list[tuple[str, int, object]],
    rotation: Literal["off", "hour"],
    tmp_path_factory: pytest.TempPathFactory,
    demo_bundle: Bundle,
) -> None:
    base = tmp_path_factory.mktemp("checkpoints")
    folder, twin, manifest = base / "folder", base / "twin", demo_bundle.manifest
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_log, "ROWS_PER_CHECKPOINT", EVERY)
        patch.setattr(session_log, "_ROWS_PER_WORD", 3 * EVERY)
        log = resume(folder, manifest, rotation)
        for number, (what, count, detail) in enumerate([*script, ("closed", 0, LABELS)]):
            if what == "frames":
                for _ in range(count):
                    p = round((0.5 + number / 100 + log.last_index / 3000) % 1, 6)
                    log.write(frame(log.last_index + 1, detail, p))  # type: ignore[arg-type]
            elif what == "unknown":
                for _ in range(count):
                    log.write(unknown(log.last_index + 1, detail))  # type: ignore[arg-type]
            elif what == "long gap":
                log.write(unknown(log.last_index + 1, Status.GAP, count))
            else:
                log.close() if what == "closed" else kill(log)
                cut(folder, count, str(detail))
                shutil.rmtree(twin, ignore_errors=True)
                shutil.copytree(folder, twin)
                shutil.rmtree(twin / KEPT)
                anew = resume(twin, manifest, rotation)
                log = resume(folder, manifest, rotation)
                assert what_follows(log, folder) == what_follows(anew, twin)
                rows = list(read_labels(folder / LABELS, manifest))
                assert log.gap_ranges() == gap_ranges(rows)
                assert log.rows == Counter(row.status for row in rows)
                kill(anew)
        kill(log)


def begun(folder: Path, manifest: Manifest, rows: int) -> None:
    """A session that was closed."""
    log = resume(folder, manifest)
    for index in range(rows):
        log.write(unknown(index, Status.GAP) if index % 10 == 2 else frame(index, (int(index % 10 < 5), 0)))
    log.close()


def harm(folder: Path, row: int) -> bytes:
    """Make a row unreadable; the row as it was."""
    lines = (folder / LABELS).read_bytes().splitlines(keepends=True)
    was, lines[row + 1] = lines[row + 1], b"x" * (len(lines[row + 1]) - 1) + b"\n"
    (folder / LABELS).write_bytes(b"".join(lines))
    return was


def mend(folder: Path, row: int, was: bytes) -> None:
    lines = (folder / LABELS).read_bytes().splitlines(keepends=True)
    (folder / LABELS).write_bytes(b"".join([*lines[: row + 1], was, *lines[row + 2 :]]))


def test_rows_before_a_checkpoint_are_not_read_at_the_start_nor_at_the_end(tmp_path: Path, demo_bundle: Bundle) -> None:
    begun(tmp_path, demo_bundle.manifest, 1000)
    harm(tmp_path, 3)
    log = resume(tmp_path, demo_bundle.manifest)
    assert (log.last_index, log.rows) == (999, {"ok": 900, "gap": 100})
    log.write(unknown(1000, Status.GAP))
    log.close()
    assert log.gap_ranges() == [*((i, i) for i in range(2, 999, 10)), (1000, 1000)]
    shutil.rmtree(tmp_path / KEPT)
    with pytest.raises(MbrError, match="is damaged"):
        resume(tmp_path, demo_bundle.manifest)


def test_a_start_that_is_broken_off_is_not_for_nothing(
    tmp_path: Path, demo_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a session without a checkpoint: each try comes further, also where somebody kills what takes too long."""
    begun(tmp_path, demo_bundle.manifest, 1000)
    shutil.rmtree(tmp_path / KEPT)
    monkeypatch.setattr(session_log, "_ROWS_PER_WORD", 100)
    was = harm(tmp_path, 850)
    with pytest.raises(MbrError, match="is damaged"):
        resume(tmp_path, demo_bundle.manifest)
    mend(tmp_path, 850, was)
    harm(tmp_path, 3)
    log = resume(tmp_path, demo_bundle.manifest)
    assert (log.last_index, log.rows) == (999, {"ok": 900, "gap": 100})
    log.close()


def test_another_rule_for_gaps_makes_the_bouts_anew(tmp_path: Path, demo_bundle: Bundle) -> None:
    """Bouts are a function of the rows and of the longest gap that is bridged, which belongs to the bundle."""
    begun(tmp_path, demo_bundle.manifest, 100)
    other = demo_bundle.manifest.model_copy(update={"max_gap_s": 0.0})
    twin = tmp_path / "twin"
    twin.mkdir()
    shutil.copy(tmp_path / LABELS, twin)
    with_checkpoint, without = resume(tmp_path, other), resume(twin, other)
    assert what_follows(with_checkpoint, tmp_path) == what_follows(without, twin)
    assert with_checkpoint.bout_counts["grooming"] == 20  # a frame that is missing cuts each of ten in two
    kill(with_checkpoint)
    kill(without)


def test_rows_that_take_the_place_of_lost_ones_do_not_pass_for_them(tmp_path: Path, demo_bundle: Bundle) -> None:
    """A power cut took frames and a gap behind them; the gap that stands there now ends in the very same row."""
    log = resume(tmp_path, demo_bundle.manifest)
    for index in range(90):
        log.write(frame(index, (0, 0)))
    log.write(unknown(90, Status.GAP, 10))
    log.close()
    was = (tmp_path / LABELS).read_bytes()
    (tmp_path / LABELS).write_bytes(was[: was.index(b"\n50,") + 1])
    log = resume(tmp_path, demo_bundle.manifest)
    log.write(unknown(50, Status.GAP, 50))
    assert (tmp_path / LABELS).read_bytes().splitlines()[-1] == was.splitlines()[-1]
    kill(log)
    log = resume(tmp_path, demo_bundle.manifest)
    assert (log.rows, log.gap_ranges()) == ({"ok": 50, "gap": 50}, [(50, 99)])
    kill(log)


def test_the_checkpoint_of_another_log_is_not_used(tmp_path: Path, demo_bundle: Bundle) -> None:
    begun(tmp_path, demo_bundle.manifest, 100)
    twin = tmp_path / "twin"
    twin.mkdir()
    log = resume(twin, demo_bundle.manifest)
    for index in range(150):
        log.write(unknown(index, Status.LOST))
    log.close()
    shutil.copy(twin / LABELS, tmp_path)
    log = resume(tmp_path, demo_bundle.manifest)
    assert log.rows == {"lost": 150}
    kill(log)


def test_systemd_hears_that_a_long_start_goes_on(
    tmp_path: Path, demo_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(tmp_path, demo_bundle.manifest, 1000)
    shutil.rmtree(tmp_path / KEPT)
    monkeypatch.setattr(session_log, "_ROWS_PER_WORD", 400)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        resume(tmp_path, demo_bundle.manifest).close()
        systemd.settimeout(1)
        assert [systemd.recv(100) for _ in range(3)] == [b"EXTEND_TIMEOUT_USEC=30000000"] * 3


def test_labels_do_not_wait_for_a_checkpoint_that_cannot_be_written(
    tmp_path: Path, demo_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_log, "ROWS_PER_CHECKPOINT", EVERY)
    (tmp_path / KEPT / "part").mkdir(parents=True)
    begun(tmp_path, demo_bundle.manifest, 100)
    assert len(caplog.messages) == 1 and "a restart takes longer until it can" in caplog.text
    log = resume(tmp_path, demo_bundle.manifest)
    assert (log.last_index, log.rows) == (99, {"ok": 90, "gap": 10})
    log.close()


def test_what_is_kept_does_not_grow_with_the_session_and_may_vanish_from_under_it(
    tmp_path: Path, demo_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_log, "ROWS_PER_CHECKPOINT", 100)
    log = resume(tmp_path, demo_bundle.manifest)
    sizes = []
    for index in range(3000):
        log.write(unknown(index, Status.GAP) if index % 2 else frame(index, (1, 0)))
        if index in (999, 2999):
            sizes.append((tmp_path / KEPT / "newest.json").stat().st_size)
    assert sizes[1] < sizes[0] + 40
    (tmp_path / KEPT / "gaps.csv").unlink()
    log.close()
    assert log.gap_ranges() == [(index, index) for index in range(1, 3000, 2)]
