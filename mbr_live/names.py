"""Names that people give, and that become parts of files, columns and addresses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator


def _named(what: str, pattern: str, expected: str) -> Callable[[str], str]:
    """A check of a name: it, or ValueError."""

    def checked(name: str) -> str:
        if not re.fullmatch(pattern, name):
            raise ValueError(f"{name!r} can not name {what}. Expected {expected} at the beginning")
        return name

    return checked


bundle_name = _named(
    "a bundle",
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}",
    "at most 80 letters from A to Z, digits, '.', '_' and '-', and a letter or digit",
)
camera_name = _named(
    "a camera",
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
    "at most 64 letters from A to Z, digits, '.', '_' and '-', and a letter or digit",
)
_behaviour_name = _named(
    "a behaviour", r"[a-z][a-z0-9_]{0,39}", "at most 40 small letters from a to z, digits and '_', and a letter"
)
_trigger_name = _named(
    "a trigger or an output",
    r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}",
    "at most 64 letters from A to Z, digits, '_' and '-', and a letter or digit",
)

BundleName = Annotated[str, AfterValidator(bundle_name)]
CameraName = Annotated[str, AfterValidator(camera_name)]
BehaviourName = Annotated[str, AfterValidator(_behaviour_name)]
TriggerName = Annotated[str, AfterValidator(_trigger_name)]
