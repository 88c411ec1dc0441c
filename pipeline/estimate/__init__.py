"""Estimate the cost of a job from a sample of its records that is routed and answered."""
