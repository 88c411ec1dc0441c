"""The HTML report of a finished run, and its record in MLflow."""

from .html import render, write_report
from .run_summary import flatten_config
from .tracking import check_tracking, log_run

__all__ = ["check_tracking", "flatten_config", "log_run", "render", "write_report"]
