"""List input files, plan the job's windows, and read records."""
