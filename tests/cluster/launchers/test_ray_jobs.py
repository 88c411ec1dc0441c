"""The launcher for Ray's job server where connections break or the head starts late.

The rest is tested on a real head in tests/cluster/test_submit.py.
"""

from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.cluster.launchers import ray_jobs
from pipeline.cluster.launchers.ray_jobs import RayJobs
from pipeline.errors import UserError


class Server:
    """A job server whose connections break after so many chunks of the log."""

    def __init__(self, chunks: list[str], breaks: list[int]) -> None:
        self.chunks, self.breaks = chunks, breaks
        self.status = "RUNNING"

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        last = self.breaks.pop(0) if self.breaks else None
        for chunk in self.chunks[:last]:
            yield chunk
        if last is not None:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
        self.status = "SUCCEEDED"

    def list_jobs(self) -> list[Any]:
        return [SimpleNamespace(submission_id="job", status=SimpleNamespace(value=self.status))]


@pytest.fixture
def client_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Server], RayJobs]:
    def make(server: Server) -> RayJobs:
        monkeypatch.setattr("ray.job_submission.JobSubmissionClient", lambda address: server)
        monkeypatch.setattr(ray_jobs, "_RETRY_SECONDS", 0.01)
        return RayJobs("http://head:8265")

    return make


def test_a_log_is_said_once_however_often_the_connection_breaks(
    client_of: Callable[[Server], RayJobs],
) -> None:
    said: list[str] = []
    client_of(Server(["one\ntwo\n", "three\n", "four\n"], [1, 0, 2, 2])).follow("job", said.append)
    assert "".join(said) == "one\ntwo\nthree\nfour\n"


def test_a_server_that_stays_away_is_given_up(
    client_of: Callable[[Server], RayJobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_jobs, "_MAX_AWAY_SECONDS", 0.05)
    with pytest.raises(UserError, match="lost the connection to job at http://head:8265"):
        client_of(Server(["one\n"], [0] * 100)).follow("job", print)


class Head:
    """A job server whose agent is not up for the first ``late`` submissions."""

    def __init__(self, late: int) -> None:
        self.late = late
        self.jobs: list[str] = []

    def list_jobs(self) -> list[Any]:
        return [SimpleNamespace(submission_id=job, status=SimpleNamespace(value="PENDING")) for job in self.jobs]

    def submit_job(self, submission_id: str, **about: Any) -> None:
        self.late -= 1
        if self.late >= 0:
            raise RuntimeError(
                "Request failed with status code 500: No available agent to submit job, please try later."
            )
        self.jobs.append(submission_id)


def test_a_head_that_has_just_started_is_waited_for(
    client_of: Callable[[Any], RayJobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = Head(late=3)
    assert client_of(head).submit("true", "job", {}, None) == "job"
    assert head.jobs == ["job"]
    monkeypatch.setattr(ray_jobs, "_AGENT_START_SECONDS", 0.05)
    with pytest.raises(UserError, match=r"refused the job: .*No available agent.* agent's port"):
        client_of(Head(late=1000)).submit("true", "job", {}, None)
