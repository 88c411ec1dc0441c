"""Reports of a running job: incidents, metrics, structured logs and progress."""
