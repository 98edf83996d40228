"""How long until labels come again after a camera was cut off? A real RTSP server, cut and restored again and again.

    python tools/cut_camera.py [--cuts 20] [--seed 1]

Needs GStreamer's RTSP server (the packages that tests/cameras.py names). Cuts are of three kinds in turn: the server
is killed and started again; it stands still with its connections open; the cable is cut (half-open: nothing passes,
neither side is told). Prints the time from the server's return to the first label row of a frame, and to the first `ok`
row, which comes later by the warm-up of the network; and whether every gap is accounted for.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from cameras import Cable, RtspServer, why_no_rtsp, write_pictures  # noqa: E402
from live import system_config  # noqa: E402
from rich.progress import track  # noqa: E402

from mbr_live.cameras.log import read_outages  # noqa: E402
from mbr_live.config import Camera, RtspCamera  # noqa: E402
from mbr_live.live.run import System  # noqa: E402
from mbr_live.sinks.label_log import gap_ranges, read_labels  # noqa: E402
from mbr_live.status import LabelMessage, parse_status  # noqa: E402
from mbr_live.wire.status import StatusSubscriber  # noqa: E402

KINDS = ("killed", "stands still", "half-open")
CUT_S = (2.5, 8.0)  # longer than the watchdog waits, so that each is an outage
GIVE_UP_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if why := why_no_rtsp():
        sys.exit(why)
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "pictures")
        pictures.mkdir()
        write_pictures(pictures, frames=300)
        campaign(Path(folder, "live"), pictures, arguments.cuts, random.Random(arguments.seed))


def campaign(out: Path, pictures: Path, cuts: int, random_: random.Random) -> None:
    with closing(RtspServer(pictures).start()) as server, closing(Cable(server.port)) as cable:
        camera = Camera(name="cage", source=RtspCamera(kind="rtsp", url=f"rtsp://127.0.0.1:{cable.port}/cage"))
        config = system_config(out, camera)
        with System(config) as system, closing(StatusSubscriber(config.wire.status)) as subscriber:
            listen(system, subscriber, 30.0, until_ok=True)
            times = [
                (kind, *cut(system, subscriber, server, cable, kind, random_.uniform(*CUT_S)))
                for kind in track([KINDS[number % len(KINDS)] for number in range(cuts)], "cutting")
            ]
            restarts = [child.restarts for child in (system.inference, *system.captures)]
    for kind in (*KINDS, "all"):
        show(kind, [each[1:] for each in times if kind in (each[0], "all")])
    account(out, cuts, restarts)


def cut(
    system: System, subscriber: StatusSubscriber, server: RtspServer, cable: Cable, kind: str, seconds: float
) -> tuple[float, float]:
    """Cut and restore; seconds from the return to the first label of a frame, and to the first `ok`."""
    {"killed": server.close, "stands still": server.stall, "half-open": cable.cut}[kind]()
    listen(system, subscriber, seconds)
    {"killed": server.start, "stands still": server.go_on, "half-open": cable.mend}[kind]()
    back_s = time.monotonic()
    return listen(system, subscriber, GIVE_UP_S, until_ok=True, since_s=back_s)


def listen(
    system: System, subscriber: StatusSubscriber, seconds: float, *, until_ok: bool = False, since_s: float = 0.0
) -> tuple[float, float]:
    """Hear labels for so long, or until an `ok` one; when the first of a frame came, and the first `ok`."""
    deadline_s, labelled_s = time.monotonic() + seconds, float("nan")
    while time.monotonic() < deadline_s:
        system.look_after()
        for message in subscriber.messages(0.02):
            status, now_s = parse_status(message), time.monotonic()
            if not isinstance(status, LabelMessage) or status.latency_ms is None:
                continue
            if np.isnan(labelled_s):
                labelled_s = now_s - since_s
            if until_ok and status.status == "ok":
                return labelled_s, now_s - since_s
    if until_ok:
        sys.exit(f"no label within {seconds:.0f} s: {system.captures[0].last_words()}")
    return labelled_s, float("nan")


def show(kind: str, times: list[tuple[float, float]]) -> None:
    if not times:
        return
    rows, oks = (np.array(each) for each in zip(*times, strict=True))
    figures = [
        f"{what} p50 {np.median(values):.2f} p95 {np.percentile(values, 95):.2f} max {values.max():.2f} s"
        for what, values in (("label row", rows), ("ok", oks))
    ]
    print(f"{kind:>12} ({len(times):2} cuts): {'; '.join(figures)}")


def account(out: Path, cuts: int, restarts: list[int]) -> None:
    """Every tick once, every outage a gap, and no gap of a second that is none."""
    rows = list(read_labels(out / "cage.labels.csv"))
    outages = read_outages(out / "cage.camera.csv")
    gaps = {tick for first, last in gap_ranges(rows) for tick in range(first, last + 1)}
    known = {tick for each in outages for tick in range(each.first_frame, (each.last_frame or -1) + 1)}
    ticks = [row.index for row in rows] == list(range(len(rows)))
    print(f"{cuts} cuts, {len(outages)} outages in the log: {', '.join(outage.cause for outage in outages)}")
    print(
        f"{len(rows)} ticks, each once: {ticks}; {len(gaps)} without a frame, {len(gaps & known)} of them in outages, "
        f"{len(gaps - known)} single ones missed; ticks of outages with a frame: {len(known - gaps)}"
    )
    print(f"processes restarted: {sum(restarts)}")


if __name__ == "__main__":
    main()
