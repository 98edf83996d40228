"""How far work is, as it is shown."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mbr_live import progress
from mbr_live.progress import bars, tracked


def terminal() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=True, width=100, color_system=None), out


def test_a_terminal_has_a_bar_of_every_stage() -> None:
    console, out = terminal()
    with bars(console) as show:
        show("cropping cage [red] 1", 3, 12)
        show("learning", 7, None)
    last = out.getvalue().rsplit("cropping", 1)[1]
    assert "cage [red] 1" in last and "3/12" in last and "7/?" in last


def test_what_is_done_makes_room_below_the_bar_of_all() -> None:
    console, out = terminal()
    with bars(console, over="recordings") as show:
        show("recordings", 0, 2)
        for name in ("one", "two"):
            show(name, 5, 10)
            show(name, 10, 10)
        show("recordings", 2, 2)
    last = out.getvalue().rsplit("recordings", 1)[1]
    assert "2/2" in last and "one" not in last and "two" not in last


def test_a_file_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    out = io.StringIO()
    with bars(Console(file=out)) as show:
        for done in range(200):
            now_s = float(done)
            show("cage [red] 1", done, 200)
    assert progress.LINE_EVERY_S == 30
    assert out.getvalue().splitlines() == [f"cage [red] 1: {done} of 200" for done in (30, 60, 90, 120, 150, 180)]


def test_items_pass_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tracked(iter("abc"), "letters")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
