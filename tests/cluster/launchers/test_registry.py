"""The launcher of a cluster's address."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.cluster.launchers import LAUNCHERS, Attempt, Launcher, open_launcher
from pipeline.cluster.launchers.ray_jobs import RayJobs
from pipeline.errors import UserError


class Instant:
    """A launcher whose jobs end at once."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.submitted: list[tuple[str, str, Mapping[str, str], str | None]] = []

    def submit(self, entrypoint: str, name: str, environment: Mapping[str, str], working_dir: str | None) -> str:
        self.submitted.append((entrypoint, name, environment, working_dir))
        return name

    def attempts(self, name: str) -> list[Attempt]:
        return [Attempt(name, "DONE") for _, submitted, *_ in self.submitted if submitted == name]

    def status(self, job: str) -> str | None:
        return "DONE"

    def follow(self, job: str, write: Callable[[str], None]) -> None:
        write("said by the job\n")

    def stop(self, job: str) -> None:
        return None

    def exit_code(self, job: str) -> int:
        return 7


def test_the_scheme_of_an_address_names_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAUNCHERS, "instant", Instant)
    launcher = open_launcher("instant://login")
    assert isinstance(launcher, Instant)
    assert launcher.address == "instant://login"


@pytest.mark.parametrize("address", ["http://head:8265", "https://head", "head:8265"])
def test_ray_has_web_addresses_and_those_without_a_scheme(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clients: list[str] = []

    def connect(address: str) -> Any:
        clients.append(address)
        return SimpleNamespace()

    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", connect)
    launcher: Launcher = open_launcher(address)
    assert isinstance(launcher, RayJobs)
    assert clients == [address]


def test_a_scheme_without_a_launcher_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"submit: slurm://\*\*\*@login: no launcher for slurm://; there are http, "):
        open_launcher("slurm://user:password@login")
