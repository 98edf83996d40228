"""What the processes say of themselves, on standard error: lines for people, or JSON lines for log collectors."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from enum import StrEnum

LOG_VARIABLE = "MBR_LIVE_LOG"


class LogFormat(StrEnum):
    """How lines look."""

    TEXT = "text"
    JSON = "json"


class JsonLines(logging.Formatter):
    """One JSON object a record: time (UTC, ISO 8601), level, module, process id, text, and the traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "module": record.name,
            "pid": record.process,
            "text": record.getMessage(),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False)


def begin_logging(form: LogFormat) -> None:
    """Log to standard error from here on, and so do the processes that this one starts."""
    voice = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    voice.setFormatter(JsonLines() if form is LogFormat.JSON else text)
    logging.basicConfig(level=logging.INFO, handlers=[voice])
    os.environ[LOG_VARIABLE] = form


def go_on_logging() -> None:
    """In a process that another one started: log as that one does."""
    if form := os.environ.get(LOG_VARIABLE):
        begin_logging(LogFormat(form))


class Trouble:
    """What keeps work that is done again and again from being up to date: said when it begins, when it is another, and
    when it is over, and not at every call.
    """

    def __init__(self, log: logging.Logger, what: str) -> None:
        self._log, self._what = log, what
        self._said = ""

    def is_now(self, text: str) -> None:
        """What is wrong now; empty where nothing is."""
        if text and text != self._said:
            self._log.error("%s: not up to date, will be tried again: %s", self._what, text)
        elif self._said and not text:
            self._log.warning("%s: up to date again", self._what)
        self._said = text
