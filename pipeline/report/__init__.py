"""The HTML report of a run."""

from .build import write_report

__all__ = ["write_report"]
