"""Compute metrics of the outputs of runs, and compare ways to choose mixtures over a suite."""
