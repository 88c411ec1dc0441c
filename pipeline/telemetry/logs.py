"""Structured logs: one JSON object per line, with the run and, if it has one, the window and the shard.

Tasks and actors write to their own stderr, which Ray keeps in the session's ``logs`` folder of each node and shows in
its dashboard. The driver writes to stderr if ``cluster.log_format=json``.
"""

import json
import logging
import os
import sys
import time
from typing import Any

from pipeline.storage.store.redact import masked

_LOGGER = logging.getLogger("loraloom")


class JsonLines(logging.Formatter):
    """Formats an event as ``{"time", "level", "event", "pid", ...}`` with its values, and masks credentials."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the event as one line."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "pid": os.getpid(),
            **getattr(record, "values", {}),
        }
        return masked(json.dumps(line, default=str))


def write_json_lines() -> None:
    """Write the events of this process to stderr from now on."""
    if _LOGGER.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False


def log_event(event: str, level: int = logging.INFO, **values: Any) -> None:
    """Log an event of the driver; it is dropped unless `write_json_lines` was called."""
    if _LOGGER.handlers:
        _LOGGER.log(level, event, extra={"values": values})


def log_worker_event(event: str, level: int = logging.INFO, **values: Any) -> None:
    """Log an event of a task or an actor."""
    write_json_lines()
    log_event(event, level, **values)
