"""One engine fed by several threads, with the faults of its machine handled."""
