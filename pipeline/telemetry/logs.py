"""Structured logs: one JSON object a line, with the run and, where there is one, the window and the shard.

Tasks and actors write them to their own stderr, which Ray keeps in the session's ``logs`` folder of each node and shows
in its dashboard. The driver does so with ``cluster.log_format=json``.
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
    """``{"time", "level", "event", "pid", ...}``, the values of an event beside them; without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
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
    """Write this process's events to stderr from now on."""
    if _LOGGER.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False


def tell(event: str, level: int = logging.INFO, **values: Any) -> None:
    """An event of the driver: a line where `write_json_lines` was called, else nothing."""
    if _LOGGER.handlers:
        _LOGGER.log(level, event, extra={"values": values})


def tell_here(event: str, level: int = logging.INFO, **values: Any) -> None:
    """An event of a task or an actor."""
    write_json_lines()
    tell(event, level, **values)
