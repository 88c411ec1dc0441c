"""Measure how a job scales over nodes: `python -m benchmarks.scale`."""
