"""Attention over rows laid end to end, and the KV cache that it reads."""
