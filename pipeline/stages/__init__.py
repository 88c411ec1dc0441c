"""The Ray Data graph: read, route, shuffle, generate, commit; window by window, with resume."""

from .job import GenerateJob, JobResult
from .settings import JobSettings

__all__ = ["GenerateJob", "JobResult", "JobSettings"]
