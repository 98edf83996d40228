"""The candidates of a search as datasets, and as dataset files that train the same model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import ValidationError

from mbr_live.datasets.dataset import Dataset, read_dataset
from mbr_live.datasets.search_space import TUNABLE, TuneSettings, Values, with_values
from mbr_live.datasets.settings import Unfit
from mbr_live.files import write_atomically
from mbr_live.mistakes import mistakes
from mbr_live.types import MbrError


def check_space(plan: Dataset, settings: TuneSettings, file: Path) -> None:
    """MbrError for a key that is no setting, and for a value, or an end of a range, that it can not have."""
    for key in settings.search:
        for value in settings.listed(key):
            # A setting of a table that is itself searched is tried within each of these tables.
            tables = [name for name in settings.search if key.startswith(f"{name}.")]
            around = settings.listed(tables[0]) if tables else [None]
            errors = [_why_not(plan, {key: value} | ({tables[0]: table} if tables else {})) for table in around]
            if all(errors):
                raise MbrError(f"Dataset {file}: tune.search: {key} = {value!r}: {errors[0]}. Mend that entry.")


def _why_not(plan: Dataset, values: Values) -> str | None:
    try:
        candidate(plan, values)
    except Unfit as error:
        return str(error)
    return None


def candidate(plan: Dataset, values: Values) -> Dataset:
    """The dataset with other settings, and nothing more to tune; Unfit where they do not go together."""
    sections = {name: getattr(plan, name).model_dump(mode="json") for name in TUNABLE}
    try:
        chosen = with_values(sections, values)
    except KeyError as error:
        raise Unfit(f"there is no such setting ({error.args[0]})") from error
    try:
        return plan.with_sections(chosen | {"tune": None})
    except ValidationError as error:
        raise Unfit("; ".join(mistakes(chosen, error))) from error


def write_candidate(file: Path, plan: Dataset, dataset_file: Path, values: Values) -> None:
    """Write the dataset file `dataset_file` with other settings, its comments kept, so that it trains from `file`."""
    document = tomlkit.parse(dataset_file.read_text(encoding="utf-8"))
    document.pop("tune", None)
    document["root"] = os.path.relpath((dataset_file.parent / plan.root).resolve(), file.parent.resolve())
    chosen = candidate(plan, values)
    for section, setting in dict.fromkeys(tuple(key.split(".")[:2]) for key in values):
        value: Any = getattr(chosen, section).model_dump(mode="json", exclude_none=True)[setting]
        table: Any = document.setdefault(section, tomlkit.table())
        table[setting] = _inline(value)
    text = tomlkit.dumps(document)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, text)
    again = read_dataset(file)
    if (again.model, again.training) != (chosen.model, chosen.training):
        raise ValueError(f"{file} does not say what was tried: {values}")


def _inline(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    table = tomlkit.inline_table()
    for key, each in value.items():
        table[key] = _inline(each)
    return table
