"""A label log in hours or days is the same log: to readers, to the bouts, after a crash, and as Parquet."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Thread

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live import mbr_live, simulated, system_config, wait_for
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from mbr_live.bundle import Bundle
from mbr_live.cameras.session_clock import CLOCK_SUFFIX, _Kept
from mbr_live.config import Labels
from mbr_live.files import cut_torn_row
from mbr_live.live.run import System
from mbr_live.sinks.label_log import label_rows, last_frame, logged_behaviours, read_labels
from mbr_live.sinks.label_segments import PERIOD_NS, closed_segments, first_frame_of, in_periods
from mbr_live.sinks.session_log import SessionLog
from mbr_live.store import parquet
from mbr_live.store.loading import store_folder
from mbr_live.store.parquet import convert_folder, table_of, text_of
from mbr_live.store.tables import TotalRow, open_store
from mbr_live.types import RATE_FPS, TICK_NS, UNKNOWN, Decision, MbrError, Status

HOUR_NS = PERIOD_NS["hour"]


def decision(index: int, origin_ns: int, *, on: int = 0, ticks: int = 1) -> Decision:
    known = ticks == 1
    return Decision(
        "cage", index, index if known else UNKNOWN, origin_ns + index * TICK_NS, Status.OK if known else Status.GAP,
        10.0 + index if known else math.nan, 20.5 if known else math.nan, (0.123456, 0.75) if known else (),
        (on, 0) if known else (UNKNOWN, UNKNOWN), ticks,
    )  # fmt: skip


@given(st.integers(0, 3 * HOUR_NS), st.integers(1, 120_000), st.sampled_from(["hour", "day"]))
def test_a_gap_is_cut_at_the_borders_and_nowhere_else(time_ns: int, ticks: int, rotation: str) -> None:
    whole = decision(7, time_ns - 7 * TICK_NS, ticks=max(2, ticks))
    period_ns = PERIOD_NS[rotation]  # type: ignore[index]
    pieces = list(in_periods(whole, period_ns))
    assert "".join(row for piece in pieces for row in label_rows(piece)) == "".join(label_rows(whole))
    for piece in pieces:
        last_ns = piece.time_ns + (piece.ticks - 1) * TICK_NS
        assert piece.time_ns // period_ns == last_ns // period_ns
    for before, after in pairwise(pieces):
        assert before.time_ns // period_ns != after.time_ns // period_ns
    assert list(in_periods(whole, 0)) == [whole]


SCRIPT = st.lists(
    st.one_of(
        st.tuples(st.just("frames"), st.integers(1, 30)),
        st.tuples(st.just("gap"), st.integers(2, 80_000)),
        st.tuples(st.just("killed"), st.just(0)),
    ),
    min_size=1,
    max_size=8,
)


@given(script=SCRIPT, origin_ns=st.integers(0, HOUR_NS))
@settings(max_examples=25)
def test_segments_are_the_log(
    script: list[tuple[str, int]], origin_ns: int, tmp_path_factory: pytest.TempPathFactory, demo_bundle: Bundle
) -> None:
    folder = tmp_path_factory.mktemp("segments")
    manifest = demo_bundle.manifest
    paths = {kind: (folder / f"{kind}.labels.csv", folder / f"{kind}.bouts.csv") for kind in ("off", "hour")}
    logs = {kind: SessionLog.resume(*paths[kind], manifest, kind) for kind in paths}  # type: ignore[arg-type]
    for what, count in script:
        for kind, log in logs.items():
            if what == "killed":
                for file in (log._labels, log._bouts, log._kept.gaps):  # type: ignore[union-attr]
                    file.close()
                logs[kind] = SessionLog.resume(*paths[kind], manifest, kind)  # type: ignore[arg-type]
                assert logs[kind].last_index == log.last_index
            elif what == "gap":
                log.write(decision(log.last_index + 1, origin_ns, ticks=count))
            else:
                for index in range(log.last_index + 1, log.last_index + 1 + count):
                    log.write(decision(index, origin_ns, on=int(index % 40 < 20)))
    for log in logs.values():
        log.close()
    (labels, bouts), (one, bouts_of_one) = paths["hour"], paths["off"]
    header, *rows = one.read_text().splitlines(keepends=True)
    found = []
    for path in (*closed_segments(labels), labels):
        first, *rest = path.read_text().splitlines(keepends=True)
        assert first == header
        found += rest
    assert found == rows
    assert bouts.read_bytes() == bouts_of_one.read_bytes()
    hours = [[row.time_ns // HOUR_NS for row in read_labels(path)] for path in closed_segments(labels)]
    assert all(len(set(of_one)) == 1 for of_one in hours)
    assert len({of_one[0] for of_one in hours}) == len(hours)
    assert [str(row) for row in read_labels(labels)] == [str(row) for row in read_labels(one)]
    middle = logs["off"].last_index // 2
    assert [row.index for row in read_labels(labels, from_frame=middle)] == [
        row.index for row in read_labels(one, from_frame=middle)
    ]
    assert last_frame(labels) == last_frame(one) == logs["off"].last_index


def test_who_reads_while_a_segment_closes_misses_nothing_and_reads_nothing_twice(
    tmp_path: Path, demo_bundle: Bundle
) -> None:
    labels, border = tmp_path / "cage.labels.csv", 50
    log = SessionLog.resume(labels, tmp_path / "cage.bouts.csv", demo_bundle.manifest, "hour")
    origin_ns = HOUR_NS - border * TICK_NS
    for index in range(border):
        log.write(decision(index, origin_ns))
    rows = read_labels(labels, growing=True)
    seen = [next(rows).index for _ in range(3)]  # the file is open
    for index in range(border, border + 20):
        log.write(decision(index, origin_ns))
    assert [first_frame_of(path) for path in closed_segments(labels)] == [0]
    seen += [row.index for row in rows]
    assert seen == list(range(border))  # as of when it was opened
    assert [row.index for row in read_labels(labels, from_frame=border)] == list(range(border, border + 20))
    log.close()


@pytest.mark.parametrize("kept", [0, 30, 1500, 2210, None])
def test_what_a_power_cut_takes_of_a_closed_segment_is_a_gap(
    kept: int | None, tmp_path: Path, demo_bundle: Bundle
) -> None:
    """Cut in the header, in a row, between two, or not at all: every tick has its row, and the session goes on."""
    paths, border = (tmp_path / "cage.labels.csv", tmp_path / "cage.bouts.csv"), 50
    log = SessionLog.resume(*paths, demo_bundle.manifest, "hour")
    for index in range(border + 10):
        log.write(decision(index, HOUR_NS - border * TICK_NS))
    log.close()
    (segment,) = closed_segments(paths[0])
    if kept is not None:
        lines = segment.read_text().splitlines(keepends=True)
        cut = kept if kept != 2210 else len("".join(lines[:30]))
        segment.write_bytes(segment.read_bytes()[:cut])
    log = SessionLog.resume(*paths, demo_bundle.manifest, "hour")
    log.write(decision(log.last_index + 1, HOUR_NS - border * TICK_NS))
    log.close()
    rows = list(read_labels(paths[0]))
    assert [row.index for row in rows] == list(range(border + 11))
    assert all(after.time_ns - before.time_ns == TICK_NS for before, after in pairwise(rows))
    lost = [row.index for row in rows if row.status == Status.GAP]
    assert lost == list(range(border - len(lost), border)) and bool(lost) == (kept is not None)


@pytest.mark.parametrize("growing", ["there", "torn", "missing"])
def test_the_log_of_another_bundle_is_refused_before_anything_changes(
    growing: str, tmp_path: Path, demo_bundle: Bundle
) -> None:
    """Also at the moment between two segments, when the newest closed one alone can say whose log it is."""
    manifest, border = demo_bundle.manifest, 50
    other = manifest.model_copy(update={"behaviours": manifest.behaviours[:-1]})
    paths = tmp_path / "cage.labels.csv", tmp_path / "cage.bouts.csv"
    log = SessionLog.resume(*paths, manifest, "hour")
    for index in range(border + 10):
        log.write(decision(index, HOUR_NS - border * TICK_NS))
    log.close()
    if growing == "torn":
        paths[0].write_bytes(paths[0].read_bytes()[:20])
    elif growing == "missing":
        paths[0].unlink()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.csv")}
    with pytest.raises(MbrError, match="Use the bundle that the session began with"):
        SessionLog.resume(*paths, other, "hour")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.csv")} == before
    log = SessionLog.resume(*paths, manifest, "hour")
    log.close()
    assert log.last_index == (border + 9 if growing == "there" else border - 1)
    assert log.rows == {"ok": log.last_index + 1}


@pytest.mark.parametrize("left", [b"", b"frame,sour", bytes(64), bytes(10_000)], ids=["", "half", "zeros", "pages"])
@pytest.mark.parametrize("rotated", [False, True])
def test_a_file_whose_header_a_power_cut_tore_is_begun_anew(
    left: bytes, rotated: bool, tmp_path: Path, demo_bundle: Bundle
) -> None:
    paths = tmp_path / "cage.labels.csv", tmp_path / "cage.bouts.csv"
    log = SessionLog.resume(*paths, demo_bundle.manifest, "hour")
    if rotated:
        for index in range(11):
            log.write(decision(index, HOUR_NS - 10 * TICK_NS))
    log.close()
    assert len(closed_segments(paths[0])) == rotated
    paths[0].write_bytes(left)
    log = SessionLog.resume(*paths, demo_bundle.manifest, "hour")
    log.write(decision(log.last_index + 1, HOUR_NS - 10 * TICK_NS))
    log.close()
    assert [row.index for row in read_labels(paths[0], demo_bundle.manifest)] == list(range(11 if rotated else 1))


@pytest.mark.parametrize("torn", [b"", b"5,5", bytes(4096), b"5,5" + bytes(20_000)], ids=["", "row", "page", "pages"])
def test_what_a_power_cut_left_behind_the_last_row_goes(torn: bytes, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    for whole in (b"", b"header\n", b"header\n" + b"1" * 9000 + b"\n"):
        path.write_bytes(whole + torn)
        cut_torn_row(path)
        assert path.read_bytes() == whole


def test_batch_does_not_mix_with_a_live_session(box_video: Path, tmp_path: Path, demo_bundle: Bundle) -> None:
    log = SessionLog.resume(tmp_path / "box.labels.csv", tmp_path / "box.bouts.csv", demo_bundle.manifest, "hour")
    for index in range(20):
        log.write(decision(index, HOUR_NS - 10 * TICK_NS))
    log.close()
    before = (tmp_path / "box.labels.csv").read_bytes()
    done = mbr_live("batch", box_video, "--out", tmp_path)
    assert done.returncode == 1 and "of a live session of this name" in done.stderr
    assert (tmp_path / "box.labels.csv").read_bytes() == before


LINES = st.lists(
    st.builds(
        lambda status, x, p: (status, x, p),
        st.sampled_from(["ok", "gap", "lost", "warmup"]),
        st.integers(0, 40_000),
        st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
    ),
    max_size=30,
)


@given(LINES)
def test_parquet_says_what_the_text_says(lines: list[tuple[str, int, tuple[int, int]]]) -> None:
    text = "frame,source_frame,time_ns,status,x_px,y_px,p_grooming,p_rearing,grooming,rearing\n"
    for n, (status, x, (p, q)) in enumerate(lines):
        known = f"{x / 10:.1f},{x / 20:.1f},{p / 1e6:.6f},{q / 1e6:.6f},1,0" if status == "ok" else ",,,,-1,-1"
        text += f"{n},{3 * n},{1_700_000_000_000_000_000 + n * TICK_NS},{status},{known}\n"
    assert text_of(table_of(text)) == text


@pytest.mark.parametrize("rows", [0, 1, 6, 7, 8, 20])
def test_parquet_is_made_some_rows_at_a_time(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROWS_AT_ONCE", 7)
    segment = tmp_path / "cage.labels" / "0000000000.csv"
    segment.parent.mkdir()
    text = "frame,source_frame,time_ns,status,x_px,y_px,p_grooming,grooming\n"
    known, unknown = "ok,1.0,2.0,0.500000,1", "lost,,,,-1"
    text += "".join(f"{n},{3 * n},{n * TICK_NS},{known if n % 3 else unknown}\n" for n in range(rows))
    segment.write_text(text)
    (made,) = convert_folder(tmp_path)
    assert text_of(pq.read_table(made)) == text
    with pq.ParquetFile(made) as file:
        assert rows == 0 or file.num_row_groups == -(-rows // 7)
    segment.write_text(text + "9,9,9,ok,1,2,0.5,1\n")  # not as the program writes them
    made.unlink()
    with pytest.raises(MbrError, match="would not say the same"):
        list(convert_folder(tmp_path))
    assert [path.name for path in segment.parent.iterdir()] == [segment.name]


@pytest.mark.parametrize(
    "row", ["x,1,1,ok,1.0,2.0,0.500000,1\n", "1,1,1,ok\n", "\0\0\0\n", "1,1,1,ok,1.0,2.0,0.5,\xff\n"]
)
def test_a_damaged_segment_keeps_no_other_from_its_parquet(row: str, tmp_path: Path) -> None:
    text = "frame,source_frame,time_ns,status,x_px,y_px,p_grooming,grooming\n0,0,0,ok,1.0,2.0,0.500000,1\n"
    for name in "abc":
        segment = tmp_path / f"{name}.labels" / "0000000000.csv"
        segment.parent.mkdir()
        segment.write_text(text + (row if name == "b" else ""), encoding="latin-1")
    made = []
    with pytest.raises(MbrError, match=r"b\.labels/0000000000\.csv"):
        for path in convert_folder(tmp_path):
            made.append(path.parent.name)
    assert made == ["a.labels", "c.labels"] and not list(tmp_path.glob("b.labels/*.part*"))


def test_what_people_put_beside_closed_segments_is_none(tmp_path: Path, demo_bundle: Bundle) -> None:
    labels, bouts = tmp_path / "cage.labels.csv", tmp_path / "cage.bouts.csv"
    hour = HOUR_NS // TICK_NS
    for first in (0, hour):
        log = SessionLog.resume(labels, bouts, demo_bundle.manifest, "hour")
        for index in (first, first + 1):
            log.write(decision(index, 0))
        log.write(decision(first + 2, 0, ticks=hour - 2))
        log.close()
        segments = closed_segments(labels)
        (tmp_path / "cage.labels").mkdir(exist_ok=True)
        for name in ("0000000000 (copy).csv", "notes.csv", "first.txt"):
            (tmp_path / "cage.labels" / name).write_text("what I saw that day\n")
        assert closed_segments(labels) == segments
    assert len(segments) == 1 and len(list(convert_folder(tmp_path))) == 1
    assert [row.index for row in read_labels(labels)] == list(range(2 * hour))


def test_a_live_session_crosses_the_hour(tmp_path: Path) -> None:
    """It goes on shortly before the hour by its own clock; what is closed then agrees with the store, to the frame."""
    plain = system_config(tmp_path / "live", simulated("cage"))
    config = plain.model_copy(update={"labels": Labels(rotate="hour", parquet=True)})
    labels, clock = config.out / "cage.labels.csv", config.out / f"cage{CLOCK_SUFFIX}"
    with System(config) as system:
        wait_for(lambda: last_frame(labels) > 20, "labels", system)
    kept = _Kept.model_validate_json(clock.read_text())
    now_ns = time.monotonic_ns() + kept.offset_ns
    ahead_ns = HOUR_NS - now_ns % HOUR_NS - int(5e9)
    if ahead_ns < 0:
        pytest.skip("the hour is about to end by itself")
    clock.write_text(kept.model_copy(update={"offset_ns": kept.offset_ns + ahead_ns}).model_dump_json())
    with System(config) as system:
        wait_for(lambda: closed_segments(labels), "the hour", system)
        (segment,) = closed_segments(labels)
        wait_for(lambda: last_frame(labels) > last_frame(segment) + 20, "labels of the next one", system)
    rows = list(read_labels(labels))
    assert [row.index for row in rows] == list(range(len(rows)))
    assert {row.time_ns // HOUR_NS for row in read_labels(segment)} == {rows[0].time_ns // HOUR_NS}
    assert len(rows) > ahead_ns / 1e9 * RATE_FPS
    list(convert_folder(config.out))
    assert segment.with_suffix(".parquet").exists()
    database = open_store(f"sqlite:///{tmp_path / 'mbr.sqlite'}")
    for _ in range(2):
        store_folder(config.out, database)
    with Session(database) as session:
        for k, name in enumerate(("grooming", "rearing")):
            total = session.scalars(select(TotalRow).where(TotalRow.behaviour == name)).one()
            counted = [sum(row.labels[k] == label for row in rows) for label in (1, 0, UNKNOWN)]
            assert [total.on_frames, total.off_frames, total.unknown_frames] == counted
    database.dispose()


def test_what_parquet_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="none is closed"):
        Labels(parquet=True)
    done = mbr_live("parquet", tmp_path)
    assert done.returncode == 2 and "no closed label files" in done.stderr


def test_who_asks_how_far_a_log_is_while_segments_close_hears_no_less_than_before(
    tmp_path: Path, demo_bundle: Bundle
) -> None:
    labels = tmp_path / "cage.labels.csv"
    log = SessionLog.resume(labels, tmp_path / "cage.bouts.csv", demo_bundle.manifest, "hour")
    per_hour = HOUR_NS // TICK_NS
    log.write(decision(0, 0))

    def write() -> None:
        for hour in range(1, 300):
            log.write(replace(decision(hour, 0), time_ns=hour * per_hour * TICK_NS))

    heard = [0]
    writing = Thread(target=write)
    writing.start()
    while writing.is_alive():
        heard.append(last_frame(labels))
        assert logged_behaviours(labels) == demo_bundle.manifest.behaviour_names
    writing.join()
    log.close()
    assert heard == sorted(heard) and last_frame(labels) == 299
