"""Sources, the commit protocol, dead letters: what is read and written, on any fsspec file system. No Ray here."""

from .output.run import read_dead, read_run

__all__ = ["read_dead", "read_run"]
