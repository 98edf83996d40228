"""`mbr-live engine build | list | remove`: the plans of this machine's GPU."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from mbr_live.engines.plans import GpuPrecision, kept_plans, plan_folder
from mbr_live.engines.tensorrt_build import build_in_child
from mbr_live.types import MbrError


def build_program(bundle: Path, precision: GpuPrecision, batch: int) -> None:
    """Build one plan, with words about what is being done."""
    console = Console(stderr=True)
    with console.status(f"{precision}, {batch} lane(s)") as status:

        def say(text: str) -> None:
            status.update(f"{precision}, {batch} lane(s): {text}")

        path = build_in_child(bundle, precision, batch, plan_folder(), say)
    print(path)


def list_program() -> int:
    """Print the plans; 1 where one can not be used."""
    folder, problems = plan_folder(), []
    plan = Column("plan", no_wrap=True)  # what `remove` takes; it tells bundle, precision and lanes
    table = Table(plan, "GPU", "TensorRT", "MB", "convolutions", "built", title=str(folder))
    for kept in kept_plans(folder):
        header = kept.header
        if header is None:
            problems.append(f"{kept.path.name} cannot be used: {kept.problem}")
            continue
        key = header.key
        layers = ", ".join(f"{name} ({count})" for name, count in header.layers.items())
        table.add_row(kept.path.name, key.gpu, key.tensorrt, f"{header.plan_bytes / 1e6:.1f}", layers, header.built)
    console = Console(soft_wrap=True)
    console.print(table)
    for problem in problems:
        console.print(problem, markup=False)
    return int(bool(problems))


def remove_program(names: list[str], *, every: bool) -> None:
    """Delete plans by the names of their files, or all."""
    known = {kept.path.name: kept.path for kept in kept_plans(plan_folder())}
    if not names and not every:
        raise MbrError("engine remove: name a plan (mbr-live engine list), or give --all.")
    strangers = [name for name in names if name not in known]
    if strangers:
        raise MbrError(
            f"engine remove: there is no plan {', '.join(strangers)} in {plan_folder()}, only "
            f"{', '.join(known) or 'none'}. Nothing was removed."
        )
    for name in known if every else dict.fromkeys(names):
        known[name].unlink()
        print(f"removed {known[name]}")
