"""The HTML report of a run."""

from .build import NAME, render, write_report

__all__ = ["NAME", "render", "write_report"]
