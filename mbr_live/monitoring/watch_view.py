"""The picture that the terminal dashboard shows: pure functions of what was heard, the time and the room there is.

The richest of three forms that the terminal has room for: a box per camera, a short block, or a single line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from mbr_live import __version__
from mbr_live.monitoring.ethogram import GLYPHS, Mark, Run, axis, bar, braille_dots, braille_strip, span_ticks, strip
from mbr_live.monitoring.watch_state import Watched, WatchedCamera
from mbr_live.monitoring.watch_words import (
    ALARM,
    GREY,
    MAX_NAME,
    clock,
    count,
    figures_of,
    is_current,
    lasted,
    number,
    printable,
    state_of,
    triggers_of,
    troubles,
    where,
)
from mbr_live.types import RATE_FPS

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2")
"""One per behaviour: the palette of Okabe and Ito (2008), less what is invisible on black or white, or means alarm."""

_MIN_WIDTH = 72  # of one camera where two stand side by side
_COLUMNS = " {:>5} {:>6} {:>6}"  # fps, latency and losses, behind a camera's single line
_BAR_CELLS, _MARK_CELLS, _VALUE_CELLS = 8, 9, 4


class View:
    """The dashboard at one moment; laid out when rich knows how much room there is."""

    def __init__(self, watched: Watched, now_s: float, width: int | None) -> None:
        self._watched, self._now_s, self._width = watched, now_s, width

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = self._width or options.max_width
        height = options.height or (console.height if console.is_terminal else None)
        for line in picture(self._watched, self._now_s, width, height):
            line.truncate(width, overflow="ellipsis")
            line.no_wrap = True
            yield line


def picture(watched: Watched, now_s: float, width: int, height: int | None) -> list[Text]:
    """The lines of the dashboard, at most `height` if there is a limit."""
    header = _header(watched, now_s, width)
    cameras = list(watched.cameras.values())
    room = None if height is None else height - len(header) - 1
    for form, least in ((_box, len(watched.behaviours) + 4), (_block, len(watched.behaviours) + 1), (_line, 1)):
        for columns in range(1, max(1, width // _MIN_WIDTH) + 1):
            if room is None or -(-len(cameras) // columns) * least <= room:
                body = _body(form, cameras, watched, now_s, width, columns)
                if room is None or len(body) <= room:
                    return [*header, *body, _legend(watched, one_line=form is _line)]
    columns = max(1, width // _MIN_WIDTH)
    shown = max(0, (room or 0) - 1) * columns
    body = _body(_line, cameras[:shown], watched, now_s, width, columns)
    return [*header, *body, _and_more(cameras[shown:], watched, now_s)][:height]


_Form = Callable[[WatchedCamera, Watched, float, int], list[Text]]


def _body(
    form: _Form, cameras: Sequence[WatchedCamera], watched: Watched, now_s: float, width: int, columns: int
) -> list[Text]:
    """All cameras in one form, `columns` of them beside each other."""
    each = (width - 2 * (columns - 1)) // columns
    blocks = [form(camera, watched, now_s, each) for camera in cameras]
    lines = []
    for start in range(0, len(blocks), columns):
        row = blocks[start : start + columns]
        for line in range(max(map(len, row))):
            parts = [block[line] if line < len(block) else Text() for block in row]
            lines.append(Text("  ").join(_fitted(part, each) for part in parts))
    if blocks and form is not _box:
        before, cells = _line_cells(each) if form is _line else _row_cells(watched.behaviours, each)
        after = _COLUMNS.format("fps", "p99 ms", "lost") if form is _line else ""
        one = " " * before + axis(cells, _cell_s(watched, cells)) + after
        lines.append(Text("  ".join([one] * min(columns, len(blocks))), GREY))
    return lines


# ---- one camera -----------------------------------------------------------------------------------------------------


def _box(camera: WatchedCamera, watched: Watched, now_s: float, width: int) -> list[Text]:
    """Everything about one camera."""
    names, inner = watched.behaviours, width - 4
    symbol, words, style = state_of(camera, watched, now_s)
    title = Text.assemble(("╭─ ", GREY), (printable(camera.name), "bold"), "  ", (f"{symbol} {words}", style), " ")
    title = _fitted(title, width - 2, "─")
    title.append(" ╮" if title.plain[-1] == "…" else "─╮", GREY)
    before, cells = _row_cells(names, inner)
    below = _fitted(Text(where(camera), GREY), before)
    below.append(axis(cells, _cell_s(watched, cells)), GREY)
    lines = [*_rows(camera, watched, now_s, inner), below, *_flow(figures_of(camera), inner)]
    framed = [Text.assemble(("│ ", GREY), _fitted(line, inner), (" │", GREY)) for line in lines]
    return [title, *framed, Text("╰" + "─" * (width - 2) + "╯", GREY)]


def _block(camera: WatchedCamera, watched: Watched, now_s: float, width: int) -> list[Text]:
    """One line about the camera, and one per behaviour."""
    symbol, words, style = state_of(camera, watched, now_s)
    title = Text.assemble((f"{symbol} ", style), (printable(camera.name), "bold"), " ", (words, style), " ")
    for figure in figures_of(camera):
        if title.cell_len + figure.cell_len + 3 <= width:
            title.append("· ", GREY).append_text(figure).append(" ")
    return [_fitted(title, width, "─"), *_rows(camera, watched, now_s, width)]


def _line(camera: WatchedCamera, watched: Watched, now_s: float, width: int) -> list[Text]:
    """State, present behaviours, ethogram and the most important figures in one line."""
    symbol, words, style = state_of(camera, watched, now_s)
    before, cells = _line_cells(width)
    text = Text.assemble((f"{symbol} ", style), _fitted(Text(printable(camera.name), "bold"), 11), " ")
    on = [k for k, label in enumerate(camera.labels) if label == 1] if is_current(camera, watched, now_s) else []
    if on:
        names = watched.behaviours
        text.append_text(Text(" ").join(Text(printable(names[k]), f"bold {_colour(k)}") for k in on))
    else:
        text.append(words.removeprefix("live · "), style)
    text = _fitted(text, before)
    _append_runs(text, braille_strip(camera.history.columns(_edge(camera, now_s), 2 * cells, _span(watched, cells))))
    fps, latency, drops = None, None, 0
    if camera.figures is not None:
        fps, latency = camera.figures.fps, camera.figures.latency.get("p99_ms")
        drops = sum(camera.figures.drops.values())
    text.append(_COLUMNS.format(number(fps, 1), number(latency), count(drops)))
    if drops:
        text.stylize(ALARM, len(text) - 6)
    return [text]


def _rows(camera: WatchedCamera, watched: Watched, now_s: float, width: int) -> list[Text]:
    """One row per behaviour: name, label, probability, ethogram."""
    names = watched.behaviours
    before, cells = _row_cells(names, width)
    columns = camera.history.columns(_edge(camera, now_s), 2 * cells, _span(watched, cells))
    current = is_current(camera, watched, now_s)
    rows = []
    for k, name in enumerate(names):
        label = camera.labels[k] if current and k < len(camera.labels) else None
        row = _fitted(Text(printable(name), "bold" if label == 1 else ""), before - _BAR_CELLS - _MARK_CELLS - 7)
        row.append(" ").append_text(_mark(label, camera.last_index - camera.on_since[k] + 1 if label == 1 else 0))
        value = camera.probabilities[k] if current and k < len(camera.probabilities) else None
        _append_runs(row, bar(value, _BAR_CELLS, k) if value is not None else [(" " * _BAR_CELLS, -1)])
        row.append(f" {number(value, 2):>{_VALUE_CELLS}} ")
        row = _fitted(row, before)
        if k < len(columns):
            _append_runs(row, strip(columns[k], k))
        rows.append(row)
    return rows


def _mark(label: int | None, lasted_frames: int) -> Text:
    if label == 1:
        return _fitted(Text(f"● {lasted(lasted_frames / RATE_FPS)}", "bold"), _MARK_CELLS)
    return _fitted(Text("" if label is None else "  no" if label == 0 else "  ?", GREY), _MARK_CELLS)


def _append_runs(text: Text, runs: Iterable[Run]) -> None:
    for glyphs, behaviour in runs:
        text.append(glyphs, GREY if behaviour < 0 else _colour(behaviour))


def _row_cells(names: Sequence[str], width: int) -> tuple[int, int]:
    """Cells before the ethogram and of the ethogram, in a row of a box or block."""
    longest = max((cell_len(printable(name)) for name in names), default=0)
    before = min(longest, MAX_NAME, width // 5) + 1 + _MARK_CELLS + _BAR_CELLS + 1 + _VALUE_CELLS + 1
    return before, width - before


def _line_cells(width: int) -> tuple[int, int]:
    """Cells before the ethogram and of the ethogram, in a camera's single line."""
    before = 14 + max(16, width // 5)
    return before, max(1, width - before - len(_COLUMNS.format("", "", "")))


def _span(watched: Watched, cells: int) -> int:
    return span_ticks(watched.minutes, cells)


def _cell_s(watched: Watched, cells: int) -> float:
    return 2 * _span(watched, cells) / RATE_FPS


def _edge(camera: WatchedCamera, now_s: float) -> int:
    """The tick of this moment: silence moves the picture on, leaving it empty, until the camera has ended."""
    if camera.heard_s is None or (camera.figures is not None and camera.figures.state == "ended"):
        return camera.last_index
    return camera.last_index + max(0, round((now_s - camera.heard_s - 1.0) * RATE_FPS))


# ---- around the cameras ---------------------------------------------------------------------------------------------


def _header(watched: Watched, now_s: float, width: int) -> list[Text]:
    fields = [Text(f"mbr-live {__version__}", "bold")]
    if (system := watched.system) is not None:
        fields += [
            Text(f"bundle {printable(system.bundle)}"),
            Text(f"engine {printable(system.engine)}"),
            Text(f"up {clock(system.uptime_s)}"),
            Text(f"labels in {printable(system.out)}", GREY),
        ]
    lines = [*_flow(fields, width), *_flow(troubles(watched, now_s), width)]
    triggers = triggers_of(watched)
    return [*lines, *_flow([Text("triggers", "bold"), *triggers], width)] if triggers else lines


def _legend(watched: Watched, *, one_line: bool) -> Text:
    text = Text("", GREY)
    if one_line:
        for k, name in enumerate(watched.behaviours):
            text.append(f"{braille_dots([k], [k], len(watched.behaviours)) * 2} {printable(name)}  ", _colour(k))
    else:
        text.append("▄ yes  ")
    words = {Mark.NO: "no", Mark.WARMUP: "warm-up", Mark.GAP: "no frame", Mark.LOST: "not found"}
    text.append("  ".join(f"{GLYPHS[mark]} {word}" for mark, word in words.items()))
    return text.append(f"  {GLYPHS[Mark.BLIND]} dark or frozen")


def _and_more(cameras: Sequence[WatchedCamera], watched: Watched, now_s: float) -> Text:
    states = [(camera.figures.state if camera.figures else "live") for camera in cameras]
    said = ", ".join(f"{states.count(s)} {s}" for s in ("live", "stale", "waiting", "ended") if s in states)
    lost = sum(sum(camera.figures.drops.values()) for camera in cameras if camera.figures)
    text = Text(f"… and {len(cameras)} more: {said}", "bold")
    return text.append(f", {count(lost)} frames lost" if lost else ", none dropped", ALARM if lost else "")


# ---- text -----------------------------------------------------------------------------------------------------------


def _colour(behaviour: int) -> str:
    return COLOURS[behaviour % len(COLOURS)]


def _fitted(text: Text, width: int, fill: str = " ") -> Text:
    """A copy of `text` that is exactly `width` cells long: cut with an ellipsis, or filled up."""
    text = Text().append_text(text)  # its style must not reach what is appended later
    text.truncate(max(width, 0), overflow="ellipsis")
    return text.append(fill * (width - text.cell_len), GREY if fill != " " else "")


def _flow(fields: Sequence[Text], width: int) -> list[Text]:
    """Fields one after the other on as few lines as hold them."""
    lines: list[Text] = []
    for field in fields:
        if lines and lines[-1].cell_len + 3 + field.cell_len <= width:
            lines[-1].append(" · ", GREY).append_text(field)
        else:
            lines.append(Text().append_text(field))
    return lines
