"""What a job would cost: a routed and answered sample, and the ranges that follow from it."""
