"""The HTML report of a run."""

from .build import NAME, render, write_report
from .tracking import check_tracking, log_run

__all__ = ["NAME", "check_tracking", "log_run", "render", "write_report"]
