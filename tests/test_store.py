"""The store says what the logs say, to the frame, however often and whenever it is brought up to date."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live import labelled, mbr_live, simulated, system_config, wait_for
from sqlalchemy import Engine, delete, func, select, update
from sqlalchemy.orm import Session
from trigger_rig import Labels, listening, outcomes, output_process, receipts, rig_config, trigger

from mbr_live.bundle import Bundle, load_bundle
from mbr_live.cameras.log import CameraLog
from mbr_live.config import DEMO_BUNDLE, Store
from mbr_live.live.run import System
from mbr_live.processes import Child
from mbr_live.sinks.label_log import read_labels
from mbr_live.sinks.run_manifest import RunManifest, write_run
from mbr_live.sinks.session_log import SessionLog
from mbr_live.store.loading import store_folder
from mbr_live.store.tables import (
    AlarmRow,
    BoutRow,
    LatencyRow,
    OutageRow,
    ReceiptRow,
    SessionRow,
    TotalRow,
    UnknownRow,
    open_store,
)
from mbr_live.trigger_config import SerialOutput
from mbr_live.triggers.log import COLUMNS
from mbr_live.triggers.outputs.simulated_box import SimulatedBox
from mbr_live.types import UNKNOWN, Decision, MbrError, Status


def manifest(bundle: Bundle, **changes: object) -> RunManifest:
    run = RunManifest(
        recording="cage", mode="live", exit_status="running", started=datetime(2026, 1, 1, tzinfo=UTC).isoformat(),
        bundle="demo", bundle_sha256=bundle.sha256, engine="openvino", versions={}, sources=[],
    )  # fmt: skip
    return run.model_copy(update=changes)


def decision(index: int, status: Status, on: int, ticks: int = 1) -> Decision:
    known = status is Status.OK
    nan = float("nan")
    return Decision(
        "cage", index, UNKNOWN if status is Status.GAP else index, index * 10**8, status, nan, nan,
        (0.9 if on else 0.1, 0.1) if known else (), (on, 0) if known else (UNKNOWN, UNKNOWN), ticks,
    )  # fmt: skip


def says_what_the_logs_say(database: Engine, folder: Path) -> None:
    rows = list(read_labels(folder / "cage.labels.csv"))
    runs = [list(each) for _, each in groupby(rows, key=lambda row: row.status)]
    with Session(database) as session:
        (row,) = session.scalars(select(SessionRow)).all()
        assert row.frames == len(rows)
        stretches = session.execute(select(UnknownRow.start_frame, UnknownRow.stop_frame, UnknownRow.status)).all()
        expected = [(run[0].index, run[-1].index, run[0].status) for run in runs if run[0].status != "ok"]
        assert sorted(map(tuple, stretches)) == expected
        for k, name in enumerate(("grooming", "rearing")):
            total = session.get(TotalRow, (row.id, name))
            counts = [sum(each.labels[k] == value for each in rows) for value in (1, 0, UNKNOWN)]
            assert total is not None
            assert [total.on_frames, total.off_frames, total.unknown_frames] == counts
        lines = (folder / "cage.bouts.csv").read_text().splitlines()[1:]
        bouts = session.scalars(select(BoutRow).order_by(BoutRow.start_frame)).all()
        shown = [
            f"{b.behaviour},{b.start_frame},{b.stop_frame},{b.start_s:.1f},{b.stop_s:.1f},{b.duration_s:.1f},"
            f"{b.mean_p:.4f},{int(b.complete)}"
            for b in bouts
        ]
        assert sorted(shown) == sorted(lines)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("rows"), st.sampled_from(list(Status)), st.integers(0, 1), st.integers(1, 30)),
        st.tuples(st.sampled_from(["store", "stop", "crash"]), st.just(Status.OK), st.just(0), st.just(0)),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=40)
@given(steps=STEPS)
def test_however_it_grows_the_store_says_the_same(
    steps: list[tuple[str, Status, int, int]], tmp_path_factory: pytest.TempPathFactory, demo_bundle: Bundle
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    database = open_store(f"sqlite:///{folder / 'mbr.sqlite'}")
    labels, bouts = folder / "cage.labels.csv", folder / "cage.bouts.csv"
    write_run(folder / "cage.run.json", manifest(demo_bundle))
    log = SessionLog.resume(labels, bouts, demo_bundle.manifest)
    last = log.last_index
    for what, status, on, count in steps:
        if what == "rows":
            ticks = [count] if status is Status.GAP else [1] * count
            for each in ticks:
                log.write(decision(last + 1, status, on, each))
                last += each
        elif what == "store":
            store_folder(folder, database)
            says_what_the_logs_say(database, folder)
        else:  # the bout log is made anew, after a clean stop as after a crash
            if what == "stop":
                log.close()
                write_run(folder / "cage.run.json", manifest(demo_bundle, exit_status="stopped"))
                store_folder(folder, database)
                says_what_the_logs_say(database, folder)
                write_run(folder / "cage.run.json", manifest(demo_bundle))
            for file in (log._labels, log._bouts, log._kept.gaps):  # type: ignore[union-attr]
                file.close()
            log = SessionLog.resume(labels, bouts, demo_bundle.manifest)
            last = log.last_index
    log.close()
    write_run(folder / "cage.run.json", manifest(demo_bundle, exit_status="complete"))
    store_folder(folder, database)
    says_what_the_logs_say(database, folder)
    assert all(each.frames == each.bouts == 0 for each in store_folder(folder, database))  # nothing comes twice
    database.dispose()


def test_a_row_that_is_being_written_is_not_one_yet_and_rows_that_were_lost_go(
    tmp_path: Path, demo_bundle: Bundle
) -> None:
    database = open_store(f"sqlite:///{tmp_path / 'mbr.sqlite'}")
    write_run(tmp_path / "cage.run.json", manifest(demo_bundle))
    log = SessionLog.create(tmp_path / "cage.labels.csv", tmp_path / "cage.bouts.csv", demo_bundle.manifest)
    for index in range(50):
        log.write(decision(index, Status.OK, 0))
    log.close()
    labels = tmp_path / "cage.labels.csv"
    whole = labels.read_bytes()
    labels.write_bytes(whole[:-10])
    assert [each.frames for each in store_folder(tmp_path, database)] == [49]
    labels.write_bytes(whole)
    assert [each.frames for each in store_folder(tmp_path, database)] == [1]
    labels.write_bytes(b"".join(whole.splitlines(keepends=True)[:30]))  # a power cut
    store_folder(tmp_path, database)
    says_what_the_logs_say(database, tmp_path)
    database.dispose()


@settings(max_examples=50)
@given(st.integers(1, 300), st.data())
def test_reading_from_a_frame_on_is_reading_and_leaving_out(
    tmp_path_factory: pytest.TempPathFactory, demo_bundle: Bundle, count: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = SessionLog.create(folder / "labels.csv", folder / "bouts.csv", demo_bundle.manifest)
    for index in range(count):
        log.write(decision(index, Status.LOST if index * 7 % 5 else Status.OK, 0))
    log.close()
    first = data.draw(st.integers(0, count + 5))
    rows = [row.index for row in read_labels(folder / "labels.csv", from_frame=first)]
    assert rows == list(range(first, count))


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[str]:
    """A real server, with a database of its own."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = Path(shutil.which("initdb") or (found[-1] if found else ""))
    if not initdb.is_file():
        pytest.skip("no PostgreSQL server here (Debian: apt-get install postgresql)")
    data, user = tmp_path / "pg", _server_user(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(program: str, *arguments: str) -> None:
        command = [str(initdb.with_name(program)), *arguments]
        log = tmp_path / f"{program}.log"
        with log.open("w") as words:
            done = subprocess.run(
                command, user=user, cwd=tmp_path, stdout=words, stderr=words, timeout=300, check=False
            )
        assert done.returncode == 0, log.read_text()

    options = f"-p {port} -k {tmp_path} -h 127.0.0.1"
    run("initdb", "-D", str(data), "-U", "mbr", "--auth=trust", "--no-sync")
    run("pg_ctl", "-D", str(data), "-w", "-t", "300", "-l", str(tmp_path / "server.log"), "-o", options, "start")
    yield f"postgresql+psycopg://mbr@127.0.0.1:{port}/postgres"
    run("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")


def _server_user(folder: Path) -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.getuid():
        return None
    nobody = pwd.getpwnam("nobody")
    for each in (folder, *folder.parents):
        if each == Path(tempfile.gettempdir()):
            break
        each.chmod(0o755)
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    return "nobody"


def test_a_running_system_in_postgresql(postgresql: str, tmp_path: Path) -> None:
    config = system_config(tmp_path / "live", simulated("cage"))
    with System(config.model_copy(update={"store": Store(url=postgresql, every_s=1)})) as system:
        wait_for(lambda: labelled(config.out, "cage") > 40, "labels", system)
        database = open_store(postgresql)

        def stored() -> list[SessionRow]:
            with Session(database) as session:
                return list(session.scalars(select(SessionRow)).all())

        wait_for(stored, "the session in the database", system)
        with Session(database) as session:
            (before,) = session.scalars(select(SessionRow)).all()
            assert before.exit_status == "running" and before.mode == "live"
    says_what_the_logs_say(database, config.out)
    with Session(database) as session:
        (after,) = session.scalars(select(SessionRow)).all()
        assert after.exit_status == "complete" and after.frames > 40 and (after.origin_ns or 0) > 10**18
        session.execute(delete(SessionRow))
        session.commit()
        assert session.scalar(select(func.count()).select_from(UnknownRow)) == 0
    database.dispose()


def test_what_happened_beside_the_labels(postgresql: str, tmp_path: Path) -> None:
    """Outages, alarms, receipts and latencies: in both databases what the logs say, and nothing twice."""
    out = tmp_path / "live"
    with SimulatedBox() as box:
        laser = SerialOutput(kind="serial", name="laser", port=box.port, line=1)
        config = rig_config(out, [trigger([laser])], [laser])
        with closing(Labels(config)) as labels, output_process(config):
            listening(config, labels)
            labels.play([0, 1, 1, 0])
            wait_for(lambda: ("confirmed", "off", "laser", "") in outcomes(config), "the receipts")
    with closing(CameraLog(out / "cage.camera.csv")) as log:
        log.began_with(0, 0, 640, 480, "host")
        log.lost(9 * 10**8, 9, "stalled", "no frame")
        log.back(2 * 10**9, 20, 640, 480, "")
        log.alarm(3 * 10**9, 30, "blurred", "soft", raised=True)
        log.alarm(4 * 10**9, 40, "blurred", "", raised=False)
        log.alarm(5 * 10**9, 50, "moved", "by 9 px", raised=True)
    run = manifest(load_bundle(DEMO_BUNDLE)).model_copy(update={"timings": {"capture_to_label_p50_ms": 3.5}})
    write_run(out / "cage.run.json", run)
    for url in (postgresql, f"sqlite:///{tmp_path / 'mbr.sqlite'}"):
        database = open_store(url)
        for _ in range(2):
            store_folder(out, database)
        with Session(database) as session:
            (outage,) = session.scalars(select(OutageRow)).all()
            assert (outage.cause, outage.start_frame, outage.stop_frame) == ("stalled", 10, 19)
            alarms = session.scalars(select(AlarmRow)).all()
            assert {(row.name, row.raised_frame, row.cleared_frame) for row in alarms} == {
                ("blurred", 30, 40), ("moved", 50, None),
            }  # fmt: skip
            kept = session.scalars(select(ReceiptRow).order_by(ReceiptRow.number)).all()
            logged = receipts(config)
            assert [(row.what, row.trigger, row.edge, row.output) for row in kept] == [
                (row["what"], row["trigger"], row["edge"], row["output"]) for row in logged
            ]
            assert [row.confirmed_ns for row in kept if row.what == "confirmed"] == [
                int(row["confirmed_ns"]) for row in logged if row["what"] == "confirmed"
            ]
            stages = {(row.stage, row.quantile): row.ms for row in session.scalars(select(LatencyRow))}
            assert stages["capture_to_label", "p50"] == 3.5 and ("capture_to_sent", "p99") in stages
            session.execute(delete(SessionRow))
            session.commit()
            for table in (OutageRow, AlarmRow, ReceiptRow, LatencyRow):
                assert session.scalar(select(func.count()).select_from(table)) == 0
        database.dispose()


@pytest.mark.parametrize(
    ("file", "find", "damage"),
    [
        ("b.bouts.csv", b"grooming,11", b"grooming;11"),
        ("b.bouts.csv", b"grooming,11", b"grooming,\xff"),
        ("b.labels.csv", b"\n7,", b"\nx,"),
        ("b.labels.csv", b"\n7,", b"\n\xff\xfe"),
        ("b.run.json", b"", b""),
        ("b.camera.csv", b"", b"event,time_ns,frame,cause,width_px,height_px,detail\nlost,12,\n"),
        ("b.camera.csv", b"", b"event,time_ns,frame,cause,width_px,height_px,detail\nlost,12,\xff,,,,\n"),
    ],
)
def test_a_damaged_log_keeps_no_other_out_of_the_store(
    file: str, find: bytes, damage: bytes, tmp_path: Path, demo_bundle: Bundle
) -> None:
    database = open_store(f"sqlite:///{tmp_path / 'mbr.sqlite'}")
    for name in "abc":
        write_run(tmp_path / f"{name}.run.json", manifest(demo_bundle, recording=name))
        files = tmp_path / f"{name}.labels.csv", tmp_path / f"{name}.bouts.csv"
        with closing(SessionLog.create(*files, demo_bundle.manifest)) as log:
            for index in range(40):
                log.write(decision(index, Status.OK, int(10 < index < 20)))
    damaged = tmp_path / file
    damaged.write_bytes(damaged.read_bytes().replace(find, damage) if find else damage)
    with pytest.raises(MbrError, match=re.escape(str(damaged))):
        store_folder(tmp_path, database)
    with Session(database) as session:
        stored = session.execute(select(SessionRow.recording, SessionRow.frames)).all()
    assert {("a", 40), ("c", 40)} <= set(map(tuple, stored))
    database.dispose()


def stored_in(file: Path) -> list[str]:
    if not file.exists():
        return []
    with closing(sqlite3.connect(file)) as reader, suppress(sqlite3.OperationalError):
        return [name for (name,) in reader.execute("SELECT recording FROM sessions")]
    return []


def test_a_database_that_comes_later_than_the_system_is_waited_for(tmp_path: Path, demo_bundle: Bundle) -> None:
    """As after a power cut, when all machines start together: the process goes on, and says once what is wrong."""
    folder, out = tmp_path / "mounted later", tmp_path / "live"
    config = system_config(out, simulated("cage"))
    out.mkdir()
    write_run(out / "cage.run.json", manifest(demo_bundle))
    with closing(SessionLog.create(out / "cage.labels.csv", out / "cage.bouts.csv", demo_bundle.manifest)) as log:
        log.write(decision(0, Status.OK, 0))
    config = config.model_copy(update={"store": Store(url=f"sqlite:///{folder}/mbr.sqlite", every_s=1)})
    (tmp_path / "system.json").write_text(config.model_dump_json())
    child = Child("store", ("store", str(tmp_path / "system.json")), tmp_path / "store.log")
    child.start()
    wait_for(lambda: "cannot be used" in child.log.read_text(), "the first try")
    time.sleep(2.5)
    assert child.exit_code is None
    folder.mkdir()
    wait_for(lambda: "up to date again" in child.log.read_text(), "the store")
    for file in folder.iterdir():  # to have it filled from the logs
        file.unlink()
    wait_for(lambda: "cage" in stored_in(folder / "mbr.sqlite"), "the store, filled anew")
    child.ask_to_stop()
    assert child.wait(10) and child.exit_code == 0
    assert child.log.read_text().count("cannot be used") == 1
    with closing(sqlite3.connect(folder / "mbr.sqlite")) as reader:
        assert reader.execute("SELECT recording, frames FROM sessions").fetchall() == [("cage", 1)]


def receipt(trial: int, what: str = "decided") -> str:
    known = {"what": what, "trigger": "stim", "trial": trial, "edge": "on", "frame": 9 * trial, "sham": 0, "on_s": 2.0}
    return ",".join(str({**known, "time_ns": trial, "decided_ns": trial}.get(name, "")) for name in COLUMNS) + "\n"


def test_receipts_that_are_in_the_store_are_not_taken_again(tmp_path: Path, demo_bundle: Bundle) -> None:
    """A thousand a day, for weeks: a round costs what is new. After a power cut, the store has what is left."""
    database = open_store(f"sqlite:///{tmp_path / 'mbr.sqlite'}")
    write_run(tmp_path / "cage.run.json", manifest(demo_bundle))
    log, header = tmp_path / "cage.triggers.csv", ",".join(COLUMNS) + "\n"

    def stored() -> list[tuple[int, int, str]]:
        store_folder(tmp_path, database)
        with Session(database) as session:
            rows = session.execute(select(ReceiptRow.number, ReceiptRow.trial, ReceiptRow.why).order_by("number")).all()
        return [(number, trial, why) for number, trial, why in rows]

    log.write_text(header)
    assert stored() == []
    log.write_text(header + "".join(map(receipt, range(6000))) + "decided,st")
    assert [trial for _, trial, _ in stored()] == list(range(6000))
    with Session(database) as session, session.begin():
        session.execute(update(ReceiptRow).where(ReceiptRow.number == 7).values(why="seen"))
    log.write_text(header + "".join(map(receipt, range(6002))))
    assert [(number, trial) for number, trial, _ in stored()] == [(n, n) for n in range(6002)]
    assert stored()[7] == (7, 7, "seen")
    for left in ([*range(50), *range(7000, 13_000)], [*range(50)], []):
        log.write_text(header + "".join(map(receipt, left)))
        assert stored() == [(number, trial, "") for number, trial in enumerate(left)]
    log.write_text(
        header + receipt(1).replace("decided", "dec\udcffided", 1).replace(",9,", ",nine,"), errors="replace"
    )
    with pytest.raises(MbrError, match="nine"):
        stored()
    database.dispose()


def test_a_store_of_an_earlier_version_says_so(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'mbr.sqlite'}"
    open_store(url).dispose()
    with closing(sqlite3.connect(tmp_path / "mbr.sqlite")) as old:
        old.execute("ALTER TABLE sessions DROP COLUMN camera_bytes")
    with pytest.raises(MbrError, match="earlier version"):
        open_store(url)


def test_a_torn_row_beside_the_labels_is_left_to_the_next_call(tmp_path: Path, demo_bundle: Bundle) -> None:
    database = open_store(f"sqlite:///{tmp_path / 'mbr.sqlite'}")
    write_run(tmp_path / "cage.run.json", manifest(demo_bundle))
    with closing(CameraLog(tmp_path / "cage.camera.csv")) as log:
        log.alarm(3 * 10**9, 30, "blurred", "soft", raised=True)
    with (tmp_path / "cage.camera.csv").open("a") as torn:
        torn.write("cleared,40000")
    store_folder(tmp_path, database)
    with Session(database) as session:
        assert [row.cleared_frame for row in session.scalars(select(AlarmRow))] == [None]
    database.dispose()


def test_files_in_sqlite_and_what_people_ask_of_it(box_video: Path, tmp_path: Path) -> None:
    done = mbr_live("batch", box_video, "--out", tmp_path / "labels")
    assert done.returncode == 0, done.stderr
    store = f"sqlite:///{tmp_path / 'mbr.sqlite'}"
    for _ in range(2):
        done = mbr_live("store", tmp_path / "labels", "--url", store)
        assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect(tmp_path / "mbr.sqlite")) as reader:
        assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        asked = (
            "SELECT recording, frames, count(behaviour) FROM sessions LEFT JOIN bouts ON session_id = id GROUP BY id"
        )
        bouts = len((tmp_path / "labels" / "box.bouts.csv").read_text().splitlines()) - 1
        assert reader.execute(asked).fetchall() == [("box", 120, bouts)]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "no address of a database"),
        ("postgresql+psycopg://mbr:secret@127.0.0.1:1/x", "password"),
        ("postgresql+psycopg://mbr@127.0.0.1:1/x", "cannot be used"),
        ("sqlite:////nowhere/mbr.sqlite", "cannot be used"),
        ("oracle+nothing://mbr@host/x", "cannot be used"),
    ],
)
def test_a_store_that_cannot_be_used_is_explained(url: str, words: str) -> None:
    with pytest.raises(MbrError, match=words) as error:
        open_store(url)
    assert "secret" not in str(error.value)
