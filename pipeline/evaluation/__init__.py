"""Metrics over the outputs of a run."""

from .accuracy import GroupAccuracy, accuracy_by_group, normalised

__all__ = ["GroupAccuracy", "accuracy_by_group", "normalised"]
