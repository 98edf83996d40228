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
