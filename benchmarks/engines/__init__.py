"""The native engine beside vLLM and Ray Data LLM, on the same requests."""
