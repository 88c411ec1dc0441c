"""Input files: listed, planned, read into records."""
