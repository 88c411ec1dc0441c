"""Test exactly-once output by killing real jobs on a real cluster, in seeded runs."""
