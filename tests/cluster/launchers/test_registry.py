"""The launcher of a cluster's address."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import submit
from pipeline.cluster.launchers import LAUNCHERS, Launcher, open_launcher
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

    def attempts(self, name: str) -> list[tuple[str, str]]:
        return [(name, "DONE") for _, submitted, *_ in self.submitted if submitted == name]

    def status(self, job: str) -> str | None:
        return "DONE"

    def follow(self, job: str, write: Callable[[str], None]) -> None:
        write("said by the job\n")

    def stop(self, job: str) -> None:
        return None

    def exit_code(self, job: str) -> int:
        return 7


def test_an_entry_is_all_that_the_submit_command_needs_of_a_launcher(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launchers: list[Instant] = []

    def start(address: str) -> Instant:
        launchers.append(Instant(address))
        return launchers[-1]

    monkeypatch.setitem(LAUNCHERS, "instant", start)
    monkeypatch.setenv("LAKE_KEY", "lake")
    command = ["generate", "--input", "/data/in.jsonl", "--output", "/data/out"]
    words = ["--address", "instant://login", "--env", "LAKE_KEY", "--working-dir", ".", "--", *command]
    assert submit.main(words) == 7
    [launcher] = launchers
    [(entrypoint, name, environment, folder)] = launcher.submitted
    assert entrypoint.split()[-1] == "/data/out"
    assert (launcher.address, environment, folder) == ("instant://login", {"LAKE_KEY": "lake"}, ".")
    assert capsys.readouterr().out.splitlines() == [
        f"job        {name} at instant://login",
        "said by the job",
        f"ended      {name}: DONE, exit code 7",
    ]


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
