"""The fused operator: rows and tokens with different mixtures share a batch, in one of three exact forms."""
