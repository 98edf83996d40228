"""What the dashboard says in words: of a camera, of triggers, of what is wrong; numbers and times for people."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.text import Text

from mbr_live.monitoring.watch_state import Watched, WatchedCamera
from mbr_live.status import OutputState, OutputStatus, TriggerFigures
from mbr_live.types import RATE_FPS, Status

SILENT_AFTER_S = 3.0  # inference speaks every second
GREY, ALARM, GOOD = "#808080", "bold #D55E00", "bold #009E73"
STATUS_WORDS: dict[str, str] = {
    Status.OK: "ok",
    Status.WARMUP: "warm-up",
    Status.GAP: "gap",
    Status.LOST: "not found",
    Status.BLIND: "dark or frozen",
}
WHY_UNKNOWN: dict[str, str] = {
    Status.WARMUP: "warming up, no label yet",
    Status.GAP: "no frame came",
    Status.LOST: "animal not found",
    Status.BLIND: "picture dark or frozen",
    "missed": "messages missed here",
}
DROP_WORDS: dict[str, str] = {
    "dropped_queue_full": "queue full",
    "dropped_on_purpose": "on purpose",
    "no_frame": "no frame",
    "jump": "jump in time",
    "size": "wrong size",
}
MAX_NAME = 20
_MOST_SHOWN = 8  # triggers, and outputs


def state_of(camera: WatchedCamera, watched: Watched, now_s: float) -> tuple[str, str, str]:
    """Symbol, words and style of what is known about a camera now."""
    for_s = silent_s(watched, now_s)
    if for_s > SILENT_AFTER_S:
        return "✕", f"nothing heard for {lasted(for_s)}", ALARM
    quiet_s = None if camera.heard_s is None else now_s - camera.heard_s
    state = camera.figures.state if camera.figures else "live"
    if state == "waiting":
        return "○", "waiting for the first frame", "bold"
    if state == "ended":
        return "■", "ended", "bold"
    if state in ("stale", "live") and camera.figures and camera.figures.lost:
        return "▲", f"lost · {printable(camera.figures.lost)} · {lasted(camera.figures.lost_for_s)}", ALARM
    if state == "stale":
        return "▲", f"stale · {'a while' if quiet_s is None else lasted(quiet_s)} without a frame", ALARM
    if camera.figures and camera.figures.unwritten:
        return "▲", "live · labels wait for room on the disk", ALARM
    why = WHY_UNKNOWN.get(camera.status or "")
    if why is None:
        alarms = ", ".join(map(printable, camera.figures.alarms)) if camera.figures else ""
        return ("▲", f"live · {alarms}", ALARM) if alarms else ("●", "live", GOOD)
    since_s = (camera.last_index - camera.status_since + 1) / RATE_FPS
    return "●", f"live · {why} ({lasted(since_s)})", "bold" if camera.status == Status.WARMUP else ALARM


def is_current(camera: WatchedCamera, watched: Watched, now_s: float) -> bool:
    """Whether the newest label still says what is."""
    live = camera.figures is None or camera.figures.state == "live"
    return live and camera.status is not None and silent_s(watched, now_s) <= SILENT_AFTER_S


def silent_s(watched: Watched, now_s: float) -> float:
    """Since when inference has said nothing; 0 if it never said anything."""
    return 0.0 if watched.heard_s is None else now_s - watched.heard_s


def troubles(watched: Watched, now_s: float) -> list[Text]:
    if watched.heard_s is None:
        words = ["nothing heard from inference yet"]
    elif (for_s := silent_s(watched, now_s)) > SILENT_AFTER_S:
        words = [f"nothing heard from inference for {lasted(for_s)}"]
    else:
        words = []
    refused = watched.system.refused if watched.system else {}
    words += [f"inference refused {count(n)} {printable(what)}" for what, n in list(refused.items())[:4] if n]
    if watched.unreadable:
        words.append(f"{count(watched.unreadable)} status messages could not be read")
    if watched.unlisted:
        words.append(f"{count(watched.unlisted)} labels of cameras that are not listed")
    words += _output_troubles(watched.system.output) if watched.system and watched.system.output else []
    return [Text(word, ALARM) for word in words]


def _output_troubles(output: OutputStatus) -> Iterator[str]:
    if not output.up:
        yield "output process says nothing: no trigger can fire"
        return
    for each in output.outputs[:_MOST_SHOWN]:
        name = printable(each.name, MAX_NAME)
        if each.error:
            yield f"output {name}: {printable(each.error)}"
        if failed := each.delivered.get("failed", 0):
            yield f"output {name}: {count(failed)} edges could not be delivered"


def triggers_of(watched: Watched) -> list[Text]:
    """What every trigger does and did, and what the outputs made of it."""
    output = watched.system.output if watched.system else None
    if output is None or not output.up:
        return []
    return [
        *(_trigger(each) for each in output.triggers[:_MOST_SHOWN]),
        *(text for each in output.outputs[:_MOST_SHOWN] if (text := _delivered(each)).plain),
        *([Text(f"last: {printable(output.last)}", GREY)] if output.last else []),
    ]


def _trigger(trigger: TriggerFigures) -> Text:
    trials = f"{count(trigger.trials)} trial{'' if trigger.trials == 1 else 's'}"
    shams = f", {count(trigger.shams)} sham" if trigger.shams else ""
    dry = ", dry run" if trigger.dry_run else ""
    text = Text(printable(trigger.name, 2 * MAX_NAME))
    if trigger.on:
        text.append(" ON", GOOD)
    return text.append(f" ({trials}{shams}{dry})", GREY)


def _delivered(output: OutputState) -> Text:
    parts = [f"{count(n)} {what}" for what, n in output.delivered.items() if n and what != "failed"]
    parts += [f"{count(output.waiting)} waiting"] if output.waiting else []
    return Text(f"{printable(output.name, MAX_NAME)}: {', '.join(parts)}" if parts else "")


def figures_of(camera: WatchedCamera) -> list[Text]:
    figures = camera.figures
    if figures is None:
        return [Text("no figures yet", GREY)]
    by_status = sorted(list(figures.rows.items())[:8], key=lambda row: row[0] != Status.OK)
    rows = [f"{count(n)} {printable(STATUS_WORDS.get(status, status))}" for status, n in by_status if n]
    drops = [f"{count(n)} {printable(DROP_WORDS.get(why, why))}" for why, n in list(figures.drops.items())[:8] if n]
    p50, p99 = (number(figures.latency.get(key)) for key in ("p50_ms", "p99_ms"))
    alarms = [Text(f"{printable(name)}: {printable(text)}", ALARM) for name, text in list(figures.alarms.items())[:8]]
    lost = [Text(f"{count(figures.unwritten)} rows wait for room on the disk", ALARM)] if figures.unwritten else []
    lost += [Text(f"dropped: {', '.join(drops)}", ALARM) if drops else Text("none dropped")]
    lost += [Text(f"{count(figures.unrecorded)} pictures not recorded", ALARM)] if figures.unrecorded else []
    if not rows:
        return [*alarms, *lost]
    unlike = [f"{printable(name)} {number(figures.drift.get(name), 2)}" for name in figures.drifted[:6]]
    drifted = [Text(f"unlike training: {', '.join(unlike)}", ALARM)] if unlike else []
    fps, latency = f"{number(figures.fps, 1)} fps", f"latency p50 {p50} p99 {p99} ms"
    return [*alarms, Text(fps), *lost, *drifted, Text(latency), Text(f"rows: {', '.join(rows)}")]


def where(camera: WatchedCamera) -> str:
    if camera.last_index < 0:
        return ""
    at = clock((camera.last_index + 1) / RATE_FPS)
    if camera.position_px is None:
        return at
    return f"{at}  x {number(camera.position_px[0])} y {number(camera.position_px[1])} px"


def printable(text: str, most: int = 200) -> str:
    """`text` without anything that could move the cursor, and not longer than `most` characters."""
    return "".join(c if c.isprintable() else "�" for c in text[:most])


def number(value: float | None, decimals: int = 0) -> str:
    """A number for people; a dash when there is none, and nothing longer than nine characters."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{decimals}f}" if abs(value) < 1e6 else f"{value:.1e}"


def count(n: int) -> str:
    """A count for people: 950, 12.3k, 4.5M."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if abs(n) >= max(size, 10**4):
            return f"{number(n / size, 1)}{letter}" if abs(n) < 10**15 else "very many"
    return str(n)


def lasted(seconds: float) -> str:
    """A duration for people: 2.3 s, 45 s, 12 min, 5 h."""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{number(seconds / size)} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def clock(seconds: float) -> str:
    """h:mm:ss"""
    if not math.isfinite(seconds) or abs(seconds) > 1e9:
        return "–"
    whole = int(max(seconds, 0))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
