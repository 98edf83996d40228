"""The terminal dashboard: what it keeps, what it draws, and `watch` on a real socket."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live import PATIENCE_S, free_endpoint
from rich.cells import cell_len
from rich.console import Console

from mbr_live.monitoring.ethogram import (
    History,
    Mark,
    Marks,
    axis,
    bar,
    braille_strip,
    gather,
    mark_of,
    span_ticks,
    strip,
)
from mbr_live.monitoring.watch import Dashboard, event_line, plain_lines, watch
from mbr_live.monitoring.watch_state import MAX_BEHAVIOURS, MAX_CAMERAS, MAX_EVENTS, Watched
from mbr_live.status import CameraStatus, LabelMessage, Liveness, StatusMessage, SystemStatus
from mbr_live.types import MbrError
from mbr_live.wire.status import StatusPublisher

N, Y, U, G = Mark.NO, Mark.YES, Mark.LOST, Mark.GAP


def marks(*rows: Sequence[int]) -> Marks:
    return np.array(rows, np.uint8)


def text_of(runs: Sequence[tuple[str, int]]) -> str:
    return "".join(glyphs for glyphs, _ in runs)


def label(index: int, labels: Sequence[int] = (0, 0), camera: str = "a", status: str = "ok") -> LabelMessage:
    known = status == "ok"
    return LabelMessage(
        camera=camera, index=index, status=status, labels=list(labels) if known else [-1, -1],
        probabilities=[0.875, 0.125] if known else [], x_px=120.0 if known else None, y_px=80.0 if known else None,
        latency_ms=12.0,
    )  # fmt: skip


def system(*cameras: CameraStatus, behaviours: Sequence[str] = ("grooming", "rearing"), **more: Any) -> SystemStatus:
    given_ = {"out": "runs/night", "bundle": "demo", "engine": "openvino", "uptime_s": 65.0, **more}
    return SystemStatus(behaviours=list(behaviours), cameras=list(cameras), **given_)


def camera(name: str = "a", state: Liveness = "live", last_index: int = 0, **more: Any) -> CameraStatus:
    return CameraStatus(name=name, state=state, fps=10.0, last_index=last_index, **more)


def drawn(dashboard: Dashboard, now_s: float, width: int = 100, height: int | None = None) -> list[str]:
    screen = io.StringIO()
    Console(
        file=screen, width=width, height=height or 25, force_terminal=height is not None, color_system=None,
        legacy_windows=False,
    ).print(dashboard.render(now_s))  # fmt: skip
    return screen.getvalue().splitlines()


def test_a_column_shows_a_behaviour_that_occurred_at_all() -> None:
    row = marks([N, N, Y, N, N, N, N, U, N, N, N, N])
    assert gather(row, first=0, edge=11, count=4, span=3).tolist() == [[Y, N, U, N]]


def test_columns_are_aligned_to_the_span_and_move_by_whole_columns() -> None:
    row = marks([N, N, N, N, Y, N, N, N])
    pictures = [gather(row[:, : edge + 1], 0, edge, 3, 4).tolist() for edge in range(4, 8)]
    assert pictures == [[[0, N, Y]]] * 4  # nothing that was drawn changes while the last column fills
    assert gather(row, 0, 8, 3, 4).tolist() == [[N, Y, Mark.NOTHING]]


@given(
    ticks=st.lists(st.sampled_from(list(Mark)), min_size=1, max_size=60),
    first=st.integers(-50, 10**20),
    ahead=st.integers(-10, 30),
    count=st.integers(1, 20),
    span=st.integers(1, 9),
)
def test_every_column_is_the_largest_mark_of_its_ticks(
    ticks: list[Mark], first: int, ahead: int, count: int, span: int
) -> None:
    edge = first + len(ticks) - 1 + ahead
    shown = gather(marks(ticks), first, edge, count, span)[0].tolist()
    for column, mark in enumerate(shown):
        start = (edge // span - count + 1 + column) * span
        inside = [m for tick, m in enumerate(ticks, first) if start <= tick < start + span]
        assert mark == max(inside, default=Mark.NOTHING)


def test_strip_draws_half_cells_and_tells_no_from_unknown_from_nothing() -> None:
    assert strip(np.array([Y, Y, Y, N, N, Y, N, N, N, G, U, U, 0, 0], np.uint8), 1) == [("▄▖▗", 1), ("▁×? ", -1)]


def test_one_line_for_several_behaviours_keeps_them_apart_by_height_and_colour() -> None:
    two = marks([Y, Y, N, N, Y, N], [N, N, N, Y, Y, N])
    assert braille_strip(two) == [("⠛", 0), ("⢠", 1), ("⡇", 0)]
    four = marks([Y, N, N, N], [N, N, N, N], [N, Y, N, N], [N, N, U, N])
    assert braille_strip(four) == [("⠡", 0), ("?", -1)]


def test_bar_is_empty_only_at_zero_and_full_only_at_one() -> None:
    drawn_bars = [text_of(bar(value, 4, 0)) for value in (0.0, 0.001, 0.5, 0.999, 1.0, 7.0, -1.0, float("nan"))]
    assert drawn_bars == ["▁▁▁▁", "▖▁▁▁", "▄▄▁▁", "▄▄▄▖", "▄▄▄▄", "▄▄▄▄", "▁▁▁▁", "▁▁▁▁"]


def test_axis_marks_whole_times_before_now() -> None:
    line = axis(61, 3.0)
    assert line == "╵-3:00    ╵-2:30    ╵-2:00    ╵-1:30    ╵-1:00    ╵-0:30 now╵"
    assert axis(2, 3.0) == "  "


@given(cells=st.integers(1, 300), cell_s=st.floats(0.1, 400))
def test_axis_has_its_length_and_its_labels_never_touch(cells: int, cell_s: float) -> None:
    line = axis(cells, cell_s)
    assert len(line) == cells
    assert all(word.count("╵") == 1 for word in line.split())


@given(minutes=st.floats(0.1, 60), cells=st.integers(1, 300))
def test_the_strip_holds_the_minutes_that_were_asked_for(minutes: float, cells: int) -> None:
    span = span_ticks(minutes, cells)
    assert 2 * cells * span >= round(minutes * 600)
    assert span == 1 or 2 * cells * (span - 1) < round(minutes * 600)


@given(puts=st.lists(st.tuples(st.integers(-5, 60), st.integers(-2, 80), st.sampled_from([N, Y, U])), max_size=20))
def test_history_is_the_last_ticks_of_a_ledger(puts: list[tuple[int, int, Mark]]) -> None:
    history, length = History(1, 16), 16
    ledger: dict[int, Mark] = {}
    for index, ticks, mark in puts:
        history.put(index, ticks, [mark])
        if ticks > 0:
            newest = max([index + ticks - 1, *ledger])
            ledger.update(dict.fromkeys(range(index, index + ticks), mark))
            ledger = {tick: m for tick, m in ledger.items() if tick > newest - length}
    edge = history.last if history.last is not None else 0
    expected = [ledger.get(tick, Mark.NOTHING) for tick in range(edge - length + 1, edge + 1)]
    assert history.columns(edge, length, 1).tolist() == [expected]


def test_marks_say_why_a_label_is_unknown() -> None:
    assert [mark_of(1, "ok"), mark_of(0, "ok"), mark_of(-1, "gap"), mark_of(-1, "new word")] == [Y, N, G, Mark.UNKNOWN]


def events(messages: Sequence[StatusMessage]) -> list[str]:
    dashboard = Dashboard()
    for message in messages:
        dashboard.take(message, 0.0)
    return [event_line(event) for event in dashboard.watched.events]


def test_onset_and_offset_with_time_and_duration() -> None:
    rows = [label(600 + i, (int(10 <= i < 33), 0)) for i in range(40)]
    said = events([system(camera(last_index=-1)), *rows])
    assert said == ["0:01:01.0 a grooming: onset", "0:01:03.3 a grooming: offset after 2.3 s"]


def test_a_bout_that_is_under_way_or_lost_from_view_is_not_called_onset_or_offset() -> None:
    said = events(
        [system(camera(last_index=-1)), label(50, (0, 1)), label(51, (0, 1)), label(52, status="lost"),
         label(53, (0, 1)), label(60, (0, 1))]
    )  # fmt: skip
    assert said == [
        "0:00:05.0 a rearing: under way",
        "0:00:05.2 a rearing: unknown after 0.2 s (animal not found)",
        "0:00:05.3 a rearing: under way",
        "0:00:05.4 a rearing: unknown after 0.1 s (messages missed here)",
        "0:00:06.0 a rearing: under way",
    ]


def test_a_late_label_completes_the_past_and_leaves_the_present_alone() -> None:
    watched = Watched(1.0)
    for message in (system(camera(last_index=-1)), label(5, (0, 0)), label(8, (1, 0)), label(6, (0, 1))):
        watched.take(message, 3.0)
    watching = watched.cameras["a"]
    assert watching.labels == [1, 0] and watching.last_index == 8
    assert watching.history.columns(8, 4, 1).tolist() == [[N, N, 0, Y], [N, Y, 0, N]]


def test_a_session_that_begins_anew_has_no_past() -> None:
    watched = Watched(1.0)
    for message in (system(camera(last_index=-1)), label(900, (1, 0)), label(0), system(camera(last_index=0))):
        watched.take(message, 3.0)
    assert watched.cameras["a"].history.last is None
    watched.take(label(1), 4.0)
    assert watched.cameras["a"].last_index == 1


def test_labels_before_the_first_system_message_are_kept_until_their_names_are_known() -> None:
    dashboard = Dashboard()
    dashboard.take(label(6, (0, 0)), 0.9)
    dashboard.take(label(7, (1, 0)), 1.0)
    assert not any("behaviour" in line for line in drawn(dashboard, 1.0)) and not dashboard.watched.events
    dashboard.take(system(camera(last_index=7)), 1.5)
    assert any("grooming" in line and "▗" in line and "0.88" in line for line in drawn(dashboard, 1.5))
    assert [event_line(event) for event in dashboard.watched.events] == ["0:00:00.7 a grooming: onset"]


def one_camera(state: Liveness = "live", status: str = "ok", **more: Any) -> Dashboard:
    dashboard = Dashboard()
    dashboard.take(system(camera(last_index=-1, state="waiting")), 0.0)
    for index in range(30):
        dashboard.take(label(index, (int(index >= 20), 0), status=status), 10.0 + index / 10)
    dashboard.take(system(camera(state=state, last_index=29, **more)), 13.0)
    return dashboard


def test_present_labels_probabilities_and_figures_are_shown() -> None:
    figures: dict[str, Any] = {
        "latency": {"p50_ms": 12.4, "p99_ms": 31.0},
        "rows": {"warmup": 4, "ok": 30},
        "drops": {"late": 0},
    }
    page = "\n".join(drawn(one_camera(**figures), 13.0))
    for words in (
        "● live", "● 1.0 s", "0.88", "0.12", "10.0 fps", "p50 12 p99 31 ms", "30 ok, 4 warm-up", "none dropped",
        "x 120 y 80 px", "0:00:03", "bundle demo", "up 0:01:05", "labels in runs/night", "now",
    ):  # fmt: skip
        assert words in page


@pytest.mark.parametrize(
    ("status", "words"),
    [("warmup", "warming up"), ("gap", "no frame came"), ("lost", "animal not found"), ("blind", "dark or frozen")],
)
def test_an_unknown_label_is_explained_and_no_probability_shown(status: str, words: str) -> None:
    page = drawn(one_camera(status=status), 13.0)
    assert any(words in line and "3.0 s" in line for line in page)
    assert all("0.88" not in line for line in page)


@pytest.mark.parametrize(("width", "height"), [(200, 60), (120, 24), (80, 24)])
def test_what_is_wrong_with_one_of_eight_cameras_is_seen_in_every_form(width: int, height: int) -> None:
    """However many and long its figures have become, after weeks."""
    dashboard = Dashboard()
    names, week = [f"cage{n}" for n in range(8)], 6_048_000
    figures = {"rows": {"ok": week}, "drops": {"no_frame": 480_000, "dropped_queue_full": 213}, "unrecorded": 52_000}
    moved, waiting = {"moved": "the picture is off the reference by 4.2% of its width"}, {"unwritten": 812}
    more: dict[str, dict[str, Any]] = {"cage2": {"alarms": moved}, "cage5": waiting}
    cameras = [camera(name, last_index=week, **figures, **more.get(name, {})) for name in names]
    dashboard.take(system(*cameras), 0.0)
    for name in names:
        dashboard.take(label(week, camera=name), 0.0)
    page = drawn(dashboard, 0.5, width, height)
    for name, words in (("cage2", "moved"), ("cage5", "labels wait")):
        assert any(f"{name} " in line and "▲" in line and words in line for line in page), page
    assert sum(line.count("▲") for line in page) == 2
    assert all("480.0k no frame" in line or " 480.2k" in line for line in page if "480" in line)


@pytest.mark.parametrize(
    ("state", "words"), [("stale", "stale · 5.1 s without a frame"), ("ended", "■ ended"), ("waiting", "waiting for")]
)
def test_what_a_silent_camera_said_last_is_not_shown_as_the_present(state: Liveness, words: str) -> None:
    dashboard = one_camera(state=state)
    dashboard.take(system(camera(state=state, last_index=29)), 18.0)
    page = drawn(dashboard, 18.0)
    assert any(words in line for line in page)
    assert all("0.88" not in line and "● 1.0 s" not in line for line in page)


def test_silence_of_inference_is_said() -> None:
    page = drawn(one_camera(), 25.0)
    assert any("nothing heard from inference for 12 s" in line for line in page)
    assert all("● live" not in line and "0.88" not in line for line in page)
    assert "nothing heard from inference yet" in "\n".join(drawn(Dashboard(), 0.0))


def test_losses_and_refusals_and_unreadable_messages_are_said() -> None:
    dashboard = one_camera(drops={"dropped_queue_full": 12, "late": 3})
    dashboard.take(system(camera(last_index=29, drops={"dropped_queue_full": 12}), refused={"messages": 7}), 13.0)
    dashboard.read(b"{}", 13.0)
    dashboard.read(b"\xff\x00", 13.0)
    dashboard.take(label(3, camera="stranger"), 13.0)
    page = "\n".join(drawn(dashboard, 13.0))
    for words in ("dropped: 12 queue full", "inference refused 7 messages", "2 status messages could not be read",
                  "1 labels of cameras that are not listed"):  # fmt: skip
        assert words in page
    assert "stranger" not in page


@pytest.mark.parametrize(("cameras", "height", "form"), [(1, 24, "box"), (4, 24, "block"), (8, 24, "line")])
def test_the_richest_form_that_fits_is_drawn(cameras: int, height: int, form: str) -> None:
    dashboard = Dashboard()
    names = [f"cage-{n}" for n in range(cameras)]
    dashboard.take(system(*(camera(name, last_index=-1, rows={"ok": 1}) for name in names)), 0.0)
    page = drawn(dashboard, 1.0, 80, height)
    assert len(page) <= height
    assert all(any(name in line for line in page) for name in names)
    found = (
        "box" if any("╭" in line for line in page) else "block" if any("rearing " in x for x in page[1:-1]) else "line"
    )
    assert found == form


def test_cameras_that_have_no_room_are_counted() -> None:
    dashboard = Dashboard()
    states: list[Liveness] = ["live" if n < 8 else "stale" for n in range(20)]
    dashboard.take(system(*(camera(f"c{n}", state) for n, state in enumerate(states))), 0.0)
    page = drawn(dashboard, 0.0, 100, 12)
    assert len(page) == 12 and page[-1].startswith("… and 11 more: 11 stale, none dropped")


def test_a_length_that_cannot_be_is_refused() -> None:
    for minutes in (0.0, -1.0, 61.0, float("nan")):
        with pytest.raises(MbrError, match="minutes"):
            Dashboard(minutes)


names = st.one_of(st.sampled_from(["a", "b", "c"]), st.text(max_size=12))
counts = st.dictionaries(names, st.integers(-(10**20), 10**20), max_size=3)
any_label = st.builds(
    LabelMessage,
    camera=names,
    index=st.one_of(st.integers(-3, 2000), st.integers(-(10**25), 10**25)),
    ticks=st.one_of(st.just(1), st.integers(-5, 5000), st.integers(-(10**25), 10**25)),
    status=st.one_of(st.sampled_from(["ok", "warmup", "gap", "lost", "blind"]), st.text(max_size=9)),
    x_px=st.none() | st.floats(),
    y_px=st.none() | st.floats(),
    probabilities=st.lists(st.floats(), max_size=5),
    labels=st.lists(st.integers(-2, 2), max_size=5),
)
any_camera = st.builds(
    CameraStatus,
    name=names,
    state=st.sampled_from(["waiting", "live", "stale", "ended"]),
    fps=st.floats(),
    last_index=st.one_of(st.integers(-1, 2000), st.integers(-(10**25), 10**25)),
    latency=st.dictionaries(st.sampled_from(["p50_ms", "p99_ms"]), st.floats()),
    rows=counts,
    drops=counts,
)
any_system = st.builds(
    SystemStatus,
    out=st.text(max_size=40),
    bundle=st.text(max_size=20),
    engine=names,
    behaviours=st.lists(names, max_size=4),
    uptime_s=st.floats(),
    refused=counts,
    cameras=st.lists(any_camera, max_size=9),
)


@settings(max_examples=80)
@given(
    messages=st.lists(st.one_of(any_label, any_system), max_size=12),
    width=st.integers(60, 220),
    height=st.none() | st.integers(3, 60),
    late_s=st.floats(0, 1e6),
)
def test_any_valid_messages_are_drawn_within_the_terminal(
    messages: list[StatusMessage], width: int, height: int | None, late_s: float
) -> None:
    dashboard = Dashboard(0.5)
    for now_s, message in enumerate(messages):
        dashboard.take(message, float(now_s))
    page = drawn(dashboard, len(messages) + late_s, width, height)
    assert all(cell_len(line) <= width for line in page)
    assert height is None or len(page) <= height
    assert all(line.isprintable() for line in plain_lines(dashboard, len(messages) + late_s))


def test_memory_is_bounded_whatever_comes() -> None:
    dashboard = Dashboard(0.5)
    for n in range(9000):
        dashboard.take(label(n, (n % 2, 1), camera=f"camera {n % 700}"), float(n))
    assert not dashboard.watched.cameras
    dashboard.take(system(*(camera(f"x{n}") for n in range(400)), behaviours=[str(n) for n in range(100)]), 0.0)
    assert 0 < dashboard.watched.unlisted < 9000
    for n in range(5000):
        dashboard.take(LabelMessage(camera="x1", index=n, status="ok", labels=[n % 2] * 100), float(n))
    watched = dashboard.watched
    assert len(watched.cameras) == MAX_CAMERAS and len(watched.events) == MAX_EVENTS
    assert len(watched.cameras["x1"].labels) == MAX_BEHAVIOURS


def publish(endpoint: str, over: threading.Event) -> None:
    publisher = StatusPublisher(endpoint)
    for index in range(10**6):
        if index % 5 == 0:
            publisher.publish(system(camera(last_index=index - 1, rows={"ok": index})))
        publisher.publish(label(index, (int(index % 20 >= 10), 0)))
        if over.wait(0.05):
            break
    publisher.close()


def test_watch_in_plain_lines_on_a_real_socket(capsys: pytest.CaptureFixture[str]) -> None:
    endpoint, over = free_endpoint(), threading.Event()
    speaker = threading.Thread(target=publish, args=(endpoint, over))
    speaker.start()
    lines: list[str] = []

    def enough() -> bool:
        lines.extend(capsys.readouterr().out.splitlines())
        return any("offset after 1.0 s" in line for line in lines) and any(" live; " in line for line in lines)

    try:
        watch(endpoint, seconds=PATIENCE_S, plain=True, stop=enough)
    finally:
        over.set()
        speaker.join()
    lines.extend(capsys.readouterr().out.splitlines())
    assert any(line.endswith("a grooming: onset") for line in lines)
    assert any(line.endswith("a grooming: offset after 1.0 s") for line in lines)
    assert any(line.startswith("a live; 0:00:") and "10.0 fps" in line and "rearing 0.12" in line for line in lines)


def test_watch_ends_after_the_seconds_that_were_asked_for() -> None:
    began_s = time.monotonic()
    watch(free_endpoint(), seconds=1.5, plain=True)
    assert time.monotonic() - began_s >= 1.5


def test_watch_says_that_nobody_speaks_and_ends_when_told(capsys: pytest.CaptureFixture[str]) -> None:
    asked = iter([False, False, True])
    watch(free_endpoint(), plain=True, stop=lambda: next(asked))
    assert capsys.readouterr().out == "nothing heard from inference yet\n"


def test_watch_in_a_terminal_draws_and_leaves_it_as_it_was() -> None:
    endpoint, over = free_endpoint(), threading.Event()
    speaker = threading.Thread(target=publish, args=(endpoint, over))
    speaker.start()
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    # A test runner in the background hands down an ignored Ctrl-C; a terminal does not.
    heeded = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{heeded}; from mbr_live.monitoring.watch import watch; watch({endpoint!r})"]
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1"}
    said = b""
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as program:
        os.close(theirs)
        began_s = time.monotonic()
        interrupted = False
        while program.poll() is None and time.monotonic() - began_s < PATIENCE_S:
            said += read_some(ours)
            # The names of the behaviours come with the status, once a second: after the first labels, at times.
            if not interrupted and "● live".encode() in said and b"grooming" in said:
                program.send_signal(signal.SIGINT)
                interrupted = True
        program.kill()
    over.set()
    speaker.join()
    said += read_some(ours)
    os.close(ours)
    assert program.returncode == 0, said[-2000:].decode(errors="replace")
    drawing, _, after = said.partition(b"\x1b[?1049l")  # the end of the alternate screen
    assert b"\x1b[?1049h" in drawing and "grooming" in drawing.decode()
    assert "a live; 0:00:" in after.decode() and b"\x1b[?25h" in said  # the last figures stay, and the cursor is back


def read_some(terminal: int) -> bytes:
    if not select.select([terminal], [], [], 0.1)[0]:
        return b""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the other side of the terminal is closed
        return b""
