"""Attention over packed sequences, and the KV cache that it reads."""
