"""From logits to tokens: penalties, sampling, stop strings, constraints."""
