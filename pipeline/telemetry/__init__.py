"""What a running job reports: incidents, metrics, structured logs, progress."""
