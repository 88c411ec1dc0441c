"""Serve one engine to several threads, and recover from faults of its machine."""
