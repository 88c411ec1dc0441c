"""Exactly once, proved by kills: seeded runs of real jobs on a real cluster."""
