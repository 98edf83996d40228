"""What is wrong in a file that people write, in their words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails


def mistakes(document: Any, error: ValidationError) -> list[str]:
    """Of every mistake in a document (what TOML or JSON holds): the key, what is allowed, and what was found."""
    found = error.errors(include_url=False)
    # A table that is wrong does not count, so the list that holds it may be called too short.
    return [_words(document, each) for each in found if each["type"] != "too_short" or not _goes_deeper(found, each)]


def _goes_deeper(found: Sequence[ErrorDetails], mistake: ErrorDetails) -> bool:
    place = mistake["loc"]
    return any(each["loc"][: len(place)] == place and each["loc"] != place for each in found)


def _words(document: Any, mistake: ErrorDetails) -> str:
    key = _key(document, mistake["loc"]) or "the file as a whole"
    if mistake["type"] == "extra_forbidden":
        return f"{key}: is not a key that this program knows"
    if mistake["type"] == "missing":
        return f"{key}: is missing"
    found, text = repr(mistake["input"]), mistake["msg"].removeprefix("Value error, ")
    # A whole table says nothing that the message does not.
    is_told = isinstance(mistake["input"], dict) or found in text
    return f"{key}: {text}" if is_told else f"{key}: {text} (found {found:.80})"


def _key(document: Any, place: Sequence[str | int]) -> str:
    """A place in a document as its author knows it: of several tables by its name, or else counted from 1."""
    words: list[str] = []
    for step, part in enumerate(place, start=1):
        if isinstance(part, int) and isinstance(document, list):
            document = document[part]
            name = document.get("name", document.get("video")) if isinstance(document, dict) else None
            words[-1] += f" {name!r}" if isinstance(name, str) else f" {part + 1}"
        elif isinstance(document, dict) and (part in document or step == len(place)):
            document = document.get(part)
            words.append(str(part))
        # else it is the kind of a table, which is no key
    return ".".join(words)
