"""Ray's job server: submit a command with its Jobs API, follow the log, return the exit code."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.storage.store.redact import masked, masked_error

_STOPPED_EXIT_CODE = 143  # as a shell reports SIGTERM, with which Ray stops jobs
_ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
_RETRY_SECONDS = 2.0
# A connection that lasted longer than this was established: aiohttp gives up connecting after 30 seconds.
_CONNECTED_SECONDS = 45.0
_MAX_AWAY_SECONDS = 300.0
# A head starts seconds before its agent, which starts jobs: the server answers so after ten seconds.
_NO_AGENT = "No available agent"
_AGENT_START_SECONDS = 60.0
_AGENT_HINT = "; another Ray on the head's machine may hold its agent's port (ray start --dashboard-agent-listen-port)"


class RayJobs:
    """The job server at ``address``, such as ``http://head:8265``; raises `UserError` if it refuses the connection.

    The token of a cluster with authentication comes from ``RAY_AUTH_TOKEN`` or Ray's own token file.
    """

    def __init__(self, address: str) -> None:
        token = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
        if token or (Path.home() / ".ray" / "auth_token").exists():
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads it once, when it is imported
        from ray.exceptions import RayError
        from ray.job_submission import JobSubmissionClient

        self.address = address
        self._errors = (RayError, RuntimeError, ConnectionError, OSError)
        self._client: Any = self._call(lambda: JobSubmissionClient(address))

    def submit(self, entrypoint: str, name: str, environment: Mapping[str, str], working_dir: str | None) -> str:
        """Submit a command line under ``name``, unless its last attempt still runs; return the id of the job."""
        runtime = {"env_vars": dict(environment)} | ({"working_dir": working_dir} if working_dir else {})
        deadline = time.monotonic() + _AGENT_START_SECONDS
        while True:
            attempts = self.attempts(name)
            if attempts and attempts[-1][1] not in _ENDED:
                return attempts[-1][0]
            job = _attempt_id(name, len(attempts) + 1)
            try:
                self._client.submit_job(entrypoint=entrypoint, submission_id=job, runtime_env=runtime)
            except self._errors as error:
                has_agent = _NO_AGENT not in str(error)
                if not has_agent and time.monotonic() < deadline:
                    time.sleep(_RETRY_SECONDS)
                    continue
                if self.status(job) is None:  # else another process submitted it at the same moment
                    hint = "" if has_agent else _AGENT_HINT
                    raise UserError(f"submit: {self.address} refused the job: {_line(error)}{hint}") from None
            return job

    def attempts(self, name: str) -> list[tuple[str, str]]:
        """Return the jobs ``name``, ``name-2``, ``name-3`` ... with their statuses."""
        statuses = self._statuses()
        jobs = takewhile(statuses.__contains__, (_attempt_id(name, number) for number in count(1)))
        return [(job, statuses[job]) for job in jobs]

    def status(self, job: str) -> str | None:
        """Return ``PENDING | RUNNING | SUCCEEDED | FAILED | STOPPED``; None for an unknown job."""
        return self._statuses().get(job)

    def follow(self, job: str, write: Callable[[str], None]) -> None:
        """Pass the job's log to ``write`` until the job ends, over as many connections as that takes."""
        log, away = _Log(write), 0.0
        while True:
            start, written = time.monotonic(), log.written
            try:
                asyncio.run(log.read(self._client.tail_job_logs(job)))
                if self.status(job) in _ENDED:
                    return
            except (UserError, *self._errors) as error:
                # A connection that lasted was established, even if the job wrote nothing.
                connected = log.written > written or time.monotonic() - start > _CONNECTED_SECONDS
                away = 0.0 if connected else away + time.monotonic() - start + _RETRY_SECONDS
                if away > _MAX_AWAY_SECONDS:
                    raise UserError(f"submit: lost the connection to {job} at {self.address}: {_line(error)}") from None
            time.sleep(_RETRY_SECONDS)

    def stop(self, job: str) -> None:
        """Ask the job to stop."""
        self._call(lambda: self._client.stop_job(job))

    def exit_code(self, job: str) -> int:
        """Wait until the job ends; return the exit code of its command, 143 if it was stopped."""
        while (status := self.status(job)) not in _ENDED:
            if status is None:
                raise UserError(f"submit: {self.address} does not know {job} any more")
            time.sleep(1)
        if status == "STOPPED":
            return _STOPPED_EXIT_CODE
        info = self._call(lambda: self._client.get_job_info(job))
        code = info.driver_exit_code
        if code is None and status == "FAILED":
            raise UserError(f"submit: {job} did not start: {' '.join((info.message or '').split())[:500]}")
        code = int(code or 0)
        return code if code >= 0 else 128 - code

    def _statuses(self) -> dict[str, str]:
        return {info.submission_id: str(info.status.value) for info in self._call(self._client.list_jobs)}

    def _call(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except self._errors as error:
            hint = "; set RAY_AUTH_TOKEN" if "auth" in str(error).lower() else "; is it the address of the dashboard?"
            raise UserError(f"submit: {self.address}: {_line(error)}{hint}") from None


class _Log:
    """A log that is written once, although every connection reads it from its beginning. Counts characters."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.written = 0
        self._write = write

    async def read(self, chunks: AsyncIterator[str]) -> None:
        """Write what was not written yet of a connection's chunks."""
        seen = 0
        async for text in chunks:
            new = text[max(0, self.written - seen) :]
            seen += len(text)
            if new:
                self._write(new)
                self.written = seen


def _attempt_id(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _line(error: Exception) -> str:
    return masked(masked_error(error))[:300]
