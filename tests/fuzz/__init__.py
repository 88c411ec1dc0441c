"""Mutated files put to all that reads what others made: `python -m tests.fuzz --inputs 1000000 --seed 1`."""
