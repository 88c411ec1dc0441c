"""Read and write a run's output folder: run.json, results, exports, dataset card."""
