"""Record decode steps once and replay them: small models on a GPU wait for Python, not for memory."""
