"""Benchmarks; each writes a JSON file under `benchmarks/results/`."""
