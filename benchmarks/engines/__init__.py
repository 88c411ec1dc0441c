"""Compare the native engine with vLLM and Ray Data LLM on the same requests."""
