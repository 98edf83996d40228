"""`mbr-live doctor`: is everything there that a live system needs, and what is to be done where it is not?"""

from __future__ import annotations

from rich.console import Console

from mbr_live.config import Config
from mbr_live.live.checks import doctor_checks

WATCH_S = 3.0
_SYMBOLS = {"ok": "[green]ok[/green]     ", "warning": "[yellow]warning[/yellow]", "error": "[red]error[/red]  "}


def doctor_program(config: Config) -> int:
    """Print what is found as it is found; exit code 1 where `mbr-live run` would refuse to start."""
    console, levels = Console(soft_wrap=True, highlight=False), []
    for finding in doctor_checks(config, WATCH_S):
        levels.append(finding.level)
        console.print(_SYMBOLS[finding.level], end=" ")
        named = finding.text.startswith(finding.subject)
        console.print(finding.text if named else f"{finding.subject}: {finding.text}", markup=False)
    errors, warnings = levels.count("error"), levels.count("warning")
    console.print(f"checks: {len(levels)}, warnings: {warnings}, errors: {errors}")
    return int(errors > 0)
