"""Objects of any fsspec store: read, written, listed, with credentials redacted."""
