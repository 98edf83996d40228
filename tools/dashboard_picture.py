"""Draws docs/dashboard.svg: the dashboard of a real system on simulated cameras, as it stood at the end of the run.

A trigger fires into a simulated TTL box.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME

from mbr_live.config import DEMO_BUNDLE, Camera, Config, Simulated
from mbr_live.demo import SCENES
from mbr_live.live.run import free_wire, run
from mbr_live.monitoring.watch import Dashboard
from mbr_live.status import SystemStatus, parse_status
from mbr_live.trigger_config import SerialOutput, Trigger
from mbr_live.triggers.outputs.simulated_box import SimulatedBox
from mbr_live.wire.status import StatusSubscriber

SHOWN_OUT = "runs/demo"  # in place of the temporary folder
# Fonts of the reader's machine only: a picture in a README must not load anything.
SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-family: "DejaVu Sans Mono", Menlo, Consolas, ui-monospace, monospace;
  font-size: 20.9px; /* of a cell 20 high: box characters of neighbouring lines touch */
}}
.{unique_id}-title {{ font: bold 18px sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def show(dashboard: Dashboard, endpoint: str, over: Callable[[], bool]) -> None:
    """Let `dashboard` hear what is published until it is over."""
    with closing(StatusSubscriber(endpoint)) as subscriber:
        while not over():
            for raw in subscriber.messages(0.2):
                message = parse_status(raw)
                if isinstance(message, SystemStatus):
                    message = message.model_copy(update={"out": SHOWN_OUT})
                dashboard.take(message, time.monotonic())


def svg(dashboard: Dashboard, now_s: float, columns: int) -> str:
    """The dashboard as an SVG document."""
    console = Console(record=True, width=columns, file=io.StringIO(), color_system="truecolor", force_terminal=False)
    console.print(dashboard.render(now_s))
    document = console.export_svg(title="mbr-live", theme=SVG_EXPORT_THEME, code_format=SVG, unique_id="dashboard")
    return "\n".join(line.rstrip() for line in document.splitlines()) + "\n"


def main() -> None:
    """Run the system, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs" / "dashboard.svg")
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE)
    parser.add_argument("--seconds", type=float, default=100.0, help="length of the run")
    parser.add_argument("--minutes", type=float, default=1.5, help="length of the ethogram")
    parser.add_argument("--columns", type=int, default=100)
    options = parser.parse_args()
    cameras = tuple(
        Camera(name=condition, source=Simulated(kind="simulated", condition=condition, seed=seed))
        for condition, seed in SCENES
    )
    dashboard = Dashboard(options.minutes)
    with tempfile.TemporaryDirectory() as folder, SimulatedBox() as box:
        wire = free_wire()
        laser = SerialOutput(name="laser", kind="serial", port=box.port, line=1)
        stim = Trigger.model_validate({
            "name": "stim", "camera": cameras[0].name, "when": "while", "any": ["grooming", "rearing"], "max_on_s": 2.0,
            "sham": {"probability": 0.5, "seed": 17}, "outputs": ["laser"],
        })  # fmt: skip
        config = Config(
            out=Path(folder),
            bundle=options.bundle.resolve(),
            wire=wire,
            camera=cameras,
            output=(laser,),
            trigger=(stim,),
        )
        ended_s: list[float] = []

        def watch(over: Callable[[], bool]) -> None:
            show(dashboard, config.wire.status, over)
            ended_s.append(time.monotonic())

        run(config, seconds=options.seconds, show=watch)
    options.out.write_text(svg(dashboard, ended_s[0], options.columns))
    print(options.out)


if __name__ == "__main__":
    main()
