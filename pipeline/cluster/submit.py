"""A command as a job of a Ray cluster, through its Jobs API: submitted once, followed, and its exit code passed on."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.storage.store.redact import masked, one_line

_STOPPED = 143  # as a shell has it for SIGTERM, with which Ray stops jobs
_ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
_AGAIN = 2.0  # seconds until a log whose connection broke is read again
# Seconds after which an attempt to connect was a connection that broke: aiohttp gives up connecting after 30.
_HELD = 45.0
_PATIENCE = 300.0  # seconds that the job server may be away
# A head is up seconds before its agent, which starts jobs: the server says so after ten of them, and is asked again.
_NOT_YET = "No available agent"
_START = 60.0
_NO_AGENT = "; another Ray on the head's machine may hold its agent's port (ray start --dashboard-agent-listen-port)"


class JobsClient:
    """The job server at ``address``, as ``http://head:8265``; `UserError` where there is none, or no way in.

    The token of a cluster with authentication comes from ``RAY_AUTH_TOKEN`` or Ray's own token file.
    """

    def __init__(self, address: str) -> None:
        given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
        if given or (Path.home() / ".ray" / "auth_token").exists():
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # before Ray is loaded, which reads it once
        from ray.exceptions import RayError
        from ray.job_submission import JobSubmissionClient

        self.address = address
        self._errors = (RayError, RuntimeError, ConnectionError, OSError)
        self._client: Any = self._said(lambda: JobSubmissionClient(address))

    def attempts(self, name: str) -> list[tuple[str, str]]:
        """Ids and statuses of the jobs that were submitted as ``name``: ``name``, ``name-2``, ``name-3`` ..."""
        jobs = {info.submission_id: str(info.status.value) for info in self._said(self._client.list_jobs)}
        found: list[tuple[str, str]] = []
        while (job := _attempt(name, len(found) + 1)) in jobs:
            found.append((job, jobs[job]))
        return found

    def submit(self, entrypoint: str, name: str, environment: dict[str, Any], metadata: dict[str, str]) -> str:
        """Submit ``entrypoint`` unless its last attempt has not ended; returns the id of the job that runs it now."""
        deadline = time.monotonic() + _START
        while True:
            attempts = self.attempts(name)
            if attempts and attempts[-1][1] not in _ENDED:
                return attempts[-1][0]
            job = _attempt(name, len(attempts) + 1)
            try:
                self._client.submit_job(
                    entrypoint=entrypoint, submission_id=job, runtime_env=environment, metadata=metadata
                )
            except self._errors as error:
                if _NOT_YET in str(error) and time.monotonic() < deadline:
                    time.sleep(_AGAIN)
                    continue
                if self.status(job) is None:  # else another submitted it in this moment
                    hint = _NO_AGENT if _NOT_YET in str(error) else ""
                    raise UserError(f"submit: {self.address} did not take the job: {_line(error)}{hint}") from None
            return job

    def status(self, job: str) -> str | None:
        """``PENDING | RUNNING | SUCCEEDED | FAILED | STOPPED``; None for a job that is not known."""
        jobs = {info.submission_id: info for info in self._said(self._client.list_jobs)}
        return str(jobs[job].status.value) if job in jobs else None

    def follow(self, job: str, say: Callable[[str], None]) -> None:
        """Say the job's log, from its beginning, until the job has ended. A broken connection is made again."""
        log, away = _Log(say), 0.0
        while True:
            begun, before = time.monotonic(), log.said
            try:
                asyncio.run(self._tail(job, log))
                if self.status(job) in _ENDED:
                    return
            except (UserError, *self._errors) as error:
                # A connection that held for a while was one, also where the job had nothing to say.
                held = log.said > before or time.monotonic() - begun > _HELD
                away = 0.0 if held else away + time.monotonic() - begun + _AGAIN
                if away > _PATIENCE:
                    raise UserError(f"submit: no word of {job} from {self.address}: {_line(error)}") from None
            time.sleep(_AGAIN)

    async def _tail(self, job: str, log: "_Log") -> None:
        log.begin()
        async for text in self._client.tail_job_logs(job):
            log.take(text)

    def stop(self, job: str) -> None:
        """Ask the job to stop."""
        self._said(lambda: self._client.stop_job(job))

    def exit_code(self, job: str) -> int:
        """Wait for the end of a job; what its command exited with, 143 where it was stopped."""
        while (status := self.status(job)) not in _ENDED:
            if status is None:
                raise UserError(f"submit: {self.address} does not know {job} any more")
            time.sleep(1)
        if status == "STOPPED":
            return _STOPPED
        info = self._said(lambda: self._client.get_job_info(job))
        code = info.driver_exit_code
        if code is None:
            if status == "FAILED":
                raise UserError(f"submit: {job} did not start: {' '.join((info.message or '').split())[:500]}")
            return 0
        return int(code) if code >= 0 else 128 - int(code)

    def _said(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except self._errors as error:
            hint = "; set RAY_AUTH_TOKEN" if "auth" in str(error).lower() else "; is it the address of the dashboard?"
            raise UserError(f"submit: {self.address}: {_line(error)}{hint}") from None


class _Log:
    """A log that is read from its beginning each time, and said once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.said = self._seen = 0
        self._say = say

    def begin(self) -> None:
        """Start reading."""
        self._seen = 0

    def take(self, text: str) -> None:
        """The next piece."""
        new = text[max(0, self.said - self._seen) :]
        self._seen += len(text)
        if new:
            self._say(new)
            self.said = self._seen


def _attempt(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _line(error: Exception) -> str:
    return masked(one_line(error))[:300]
