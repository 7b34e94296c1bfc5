"""Logs of one JSON object a line."""

import logging
import traceback
from datetime import UTC, datetime
from typing import Any

import msgspec
from pydantic import ValidationError

NAMED_FAULTS = 100  # of one request in one line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the `fields` that came as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ValidationError):  # its text and its traceback repeat what the caller sent
            line["faults"] = [{"at": fault["loc"], "type": fault["type"]} for fault in error.errors()[:NAMED_FAULTS]]
        elif record.exc_info:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return msgspec.json.encode(line).decode()


def configure_logging(level: str) -> None:
    """Every line of this process as JSON, BentoML's, uvicorn's and warnings included."""
    logging.captureWarnings(capture=True)
    formatter = JsonFormatter()
    for name in ("", "bentoml", "uvicorn.error", "circus"):
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(formatter)
    # uvicorn would put together a line for each request, and then find that nobody wants it.
    logging.getLogger("uvicorn.access").propagate = False
    logging.getLogger("tabserve").setLevel(level)
