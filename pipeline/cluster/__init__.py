"""The Ray cluster below a job: connect, size the actor pools, cache files on nodes, launch commands."""
