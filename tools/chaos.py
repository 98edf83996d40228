"""The reliability campaign: a real system is harmed in every way that we know of, and everything is counted.

    python tools/chaos.py [SCENARIO ...] [--seed 1] [--minutes 60] [--messages 1000000] [--json PATH] [--markdown PATH]

Bounded and local: nothing leaves this machine, and what each scenario does hangs on the seed alone. Exit status 1 when
a count that must be 0 is not. `--list` says what the scenarios are.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent))

from chaos_scenarios.clocks import clock_jumps
from chaos_scenarios.counting import Outcome, as_csv
from chaos_scenarios.disks import full_disk, slow_disk
from chaos_scenarios.forged import forged
from chaos_scenarios.garbage import garbage
from chaos_scenarios.hour import hour
from chaos_scenarios.networks import broker_down, cuts
from chaos_scenarios.processes import freezes, kills, supervisor
from chaos_scenarios.rig import Watching, processes_of

Scenario = Callable[[Path, int, Watching], Outcome]
COLUMNS = (
    "scenario", "s", "captured", "labelled", "lost, accounted", "no frame", "unaccounted", "told", "labels lost",
    "edges", "lost", "false", "leaked", "growth MiB", "",
)  # fmt: skip


def scenarios(minutes: float, messages: int) -> dict[str, Scenario]:
    """All of them, in the order in which they are run."""
    return {
        "kills": kills,
        "freezes": freezes,
        "supervisor": supervisor,
        "cuts": cuts,
        "broker": broker_down,
        "clock": clock_jumps,
        "slow-disk": slow_disk,
        "full-disk": full_disk,
        "garbage": partial(garbage, messages=messages),
        "forged": partial(forged, messages=messages // 10),
        "hour": partial(hour, minutes=minutes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenario", nargs="*", help="all, unless some are named")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60, help="of simulated time, of the scenario `hour`")
    parser.add_argument("--messages", type=int, default=1_000_000, help="of the scenario `garbage`")
    parser.add_argument("--json", type=Path, help="the outcomes as JSON")
    parser.add_argument("--markdown", type=Path, help="the table as Markdown")
    parser.add_argument("--memory", type=Path, help="memory over time as CSV")
    parser.add_argument("--keep", type=Path, help="an empty folder for what the systems wrote; else it is deleted")
    parser.add_argument("--list", action="store_true", help="say what the scenarios do")
    arguments = parser.parse_args()
    known = scenarios(arguments.minutes, arguments.messages)
    if arguments.list:
        for name, scenario in known.items():
            print(f"{name:>10}  {_described(scenario)}")
        return
    if unknown := set(arguments.scenario) - set(known):
        parser.error(f"no scenario {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    outcomes = campaign({name: known[name] for name in arguments.scenario or known}, arguments.seed, arguments.keep)
    console = Console(width=180)
    console.print(table(outcomes))
    for outcome in outcomes:
        for line in outcome.wrong:
            console.print(f"[red]{outcome.name}: {line}")
    if arguments.json:
        arguments.json.write_text(json.dumps([outcome.as_json() for outcome in outcomes], indent=1) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(markdown(outcomes, arguments.seed))
    if arguments.memory:
        as_csv(outcomes, arguments.memory)
    sys.exit(0 if all(outcome.good for outcome in outcomes) else 1)


def campaign(chosen: dict[str, Scenario], seed: int, keep: Path | None) -> list[Outcome]:
    """Run scenarios one after the other."""
    console = Console(stderr=True)
    outcomes = []
    for name, scenario in chosen.items():
        with tempfile.TemporaryDirectory(prefix="chaos-") as temporary, console.status(name) as status:
            folder = Path(temporary) if keep is None else keep / name
            folder.mkdir(parents=True, exist_ok=True)
            outcomes.append(one(name, scenario, seed, folder, Watching(partial(_say, status, name))))
        console.print(f"{name}: {_verdict(outcomes[-1])}")
    return outcomes


def one(name: str, scenario: Scenario, seed: int, folder: Path, watching: Watching) -> Outcome:
    """Run one scenario, and see which processes it leaves."""
    start_s = time.monotonic()
    outcome = scenario(folder, seed, watching)
    outcome.seconds = time.monotonic() - start_s
    if not outcome.skipped:
        outcome.leaked = len(processes_of(folder))
        outcome.must_be_zero()
    return outcome


def table(outcomes: list[Outcome]) -> Table:
    """For the terminal."""
    shown = Table(title=f"reliability campaign, {platform.machine()}, {datetime.now(UTC):%Y-%m-%d}")
    for column in COLUMNS:
        shown.add_column(column, justify="left" if column == "scenario" else "right")
    for outcome in outcomes:
        shown.add_row(*_cells(outcome), style="" if outcome.good else "red")
    return shown


def markdown(outcomes: list[Outcome], seed: int) -> str:
    """For docs/reliability.md."""
    rows = ["| " + " | ".join((*COLUMNS[:-1], "harm")) + " |", "|" + "---|" * len(COLUMNS)]
    for outcome in outcomes:
        words = "; ".join((outcome.harm, *outcome.notes)) if not outcome.skipped else f"skipped: {outcome.skipped}"
        rows.append("| " + " | ".join((*_cells(outcome)[:-1], words)) + " |")
    return "\n".join([f"{datetime.now(UTC):%Y-%m-%d}, seed {seed}", "", *rows, ""])


def _cells(outcome: Outcome) -> tuple[str, ...]:
    if outcome.skipped:
        return (outcome.name, *["-"] * (len(COLUMNS) - 2), "skipped")
    counts = (
        outcome.captured, outcome.labelled, outcome.lost_between, outcome.no_frame, outcome.unaccounted, outcome.told,
        outcome.labels_lost, outcome.triggers, outcome.triggers_lost, outcome.triggers_false, outcome.leaked,
    )  # fmt: skip
    growth = "" if outcome.growth_mib is None else f"{outcome.growth_mib:+.1f}"
    return (outcome.name, f"{outcome.seconds:.0f}", *map(str, counts), growth, "ok" if outcome.good else "WRONG")


def _verdict(outcome: Outcome) -> str:
    if outcome.skipped:
        return f"skipped: {outcome.skipped}"
    return "ok" if outcome.good else "; ".join(outcome.wrong)


def _say(status: object, name: str, text: str) -> None:
    status.update(f"{name}: {text}")  # type: ignore[attr-defined]


def _described(scenario: Scenario) -> str:
    function = getattr(scenario, "func", scenario)
    return (function.__doc__ or "").splitlines()[0]


if __name__ == "__main__":
    main()
