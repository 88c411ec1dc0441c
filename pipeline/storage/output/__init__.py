"""A run's output folder: run.json, results, exports, dataset card."""
