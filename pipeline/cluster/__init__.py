"""The cluster under a job: connect to Ray, size the actor pools, cache files on nodes, submit jobs."""
