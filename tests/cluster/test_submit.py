"""`jobs.submit` against a real Ray head with its job server."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.telemetry.metrics import COUNTERS, GAUGES
from tests import tiny
from tests.cluster.head import ROOT, Head
from tests.docker.test_grafana import dashboard_metrics

pytestmark = [pytest.mark.ray, pytest.mark.cluster]


def start(head: Head, *command: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.submit", "--address", head.address, "--", *command],
        cwd=ROOT,
        env=os.environ | head.environment | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def job_of(out: str) -> str:
    return out.splitlines()[0].split()[1]


@pytest.mark.slow
def test_logs_and_the_exit_code_of_the_command_come_back_and_a_wrong_token_is_refused(head: Head) -> None:
    command = ("generate", "--input", "/nowhere.jsonl", "--output", "/tmp/never")
    first = start(head, *command)
    other = start(head, *command)
    refused = start(head, *command, RAY_AUTH_TOKEN="0" * 64)
    (code, out, err), (code2, out2, _) = finish(first), finish(other)
    assert (code, code2) == (2, 2), err
    assert "input: cannot read /nowhere.jsonl: no such file" in out
    assert job_of(out) == job_of(out2), "the same command at the same time is one job"
    code, out, err = finish(
        subprocess.Popen(
            [sys.executable, "-m", "jobs.submit", "--address", head.address, "--status", "--", *command],
            cwd=ROOT,
            env=os.environ | head.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    )
    assert (code, out.split()[0]) == (0, "FAILED"), err
    code, out, err = finish(refused)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "RAY_AUTH_TOKEN" in err
    assert "0" * 64 not in out + err


@pytest.mark.slow
def test_a_job_runs_on_the_cluster_and_its_metrics_are_exported(
    head: Head, tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path
) -> None:
    words = tiny_command(tmp_path, tiny_model, tiny_bank, tiny_router, records=40)
    first = start(head, *words)
    assert first.stdout is not None
    said: list[str] = []
    names: set[str] = set()
    for line in first.stdout:
        said.append(line)
        names |= exported(head)
    assert first.wait() == 0, "".join(said) + (first.stderr.read() if first.stderr else "")
    out = "".join(said)
    assert "40 in, 40 committed, 0 dead" in out
    assert f"dashboard  {head.address}" in out
    assert wait_for(lambda: {f"ray_{name}" for name in GAUGES} <= exported(head) | names)
    assert wait_for(lambda: {"ray_loraloom_records_total", "ray_loraloom_routed_records_total"} <= exported(head))
    assert set(dashboard_metrics()) <= {f"ray_{name}" for name in GAUGES} | {f"ray_{name}_total" for name in COUNTERS}
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert {"read", "route", "route start", "generate", "generate start", "commit"} <= set(run["timings"]["stages"])
    logged = [event for event in events(head.folder) if event.get("run") == run["run"]]
    shards = [event for event in logged if event["event"] == "shard committed"]
    assert sum(event["records"] for event in shards) == 40
    assert all(event["shard"].startswith("w000000-") and event["seconds"] >= 0 for event in shards)
    code, out, _ = finish(start(head, *words))  # again: another id, and nothing left to do
    assert (code, job_of(out)) == (0, f"{job_of(''.join(said))}-2")
    assert "tokens     0 generated" in out


@pytest.mark.slow
def test_ctrl_c_asks_and_the_job_stops_or_runs_on(
    head: Head, tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path
) -> None:
    words = tiny_command(tmp_path, tiny_model, tiny_bank, tiny_router, records=2000, tokens=200)
    code, said = interrupted(head, words, answer="n\n")
    assert (code, "runs on" in said) == (130, True)
    code, said = interrupted(head, words, answer="y\n")  # the same job, followed again
    assert (code, "stopped    loraloom-" in said) == (143, True)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["state"] == "stopped"


def tiny_command(folder: Path, model: Path, bank: Path, router: Path, records: int, tokens: int = 8) -> list[str]:
    rows = [{"id": f"r{i}", "prompt": tiny.prompts_of(tiny.ADAPTERS[i % 8], 1, seed=i)[0]} for i in range(records)]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        *("generate", "--input", str(folder / "in.jsonl"), "--output", str(folder / "out")),
        *("model=custom", f"model.path={model}", "model.dtype=fp32", "bank=custom", f"bank.path={bank}"),
        *("router=custom", f"router.path={router}", f"generation.max_new_tokens={tokens}", "shuffle.shard_records=8"),
    ]


def interrupted(head: Head, words: list[str], answer: str) -> tuple[int, str]:
    """Ctrl-C in a terminal once the job has said something, and the answer to the question."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.submit", "--address", head.address, "--", *words],
        cwd=ROOT,
        env=os.environ | head.environment,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # As in a terminal: what runs in the background of a script ignores it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    said = ""
    while "records in" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGINT)
    os.write(ours, answer.encode())
    said += process.communicate(timeout=120)[0]
    os.close(ours)
    os.close(theirs)
    return process.returncode, said


def exported(head: Head) -> set[str]:
    """Names of what the node exports to Prometheus."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{head.metrics_port}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
    except OSError:
        return set()
    return {line.split("{")[0] for line in text.splitlines() if line.startswith("ray_loraloom_")}


def events(folder: Path) -> list[dict[str, object]]:
    """Structured log lines in the logs of the session's workers."""
    paths = (folder / "session_latest" / "logs").glob("worker-*.err")
    lines = (line for path in paths for line in path.read_text().splitlines() if line.startswith('{"time"'))
    return [json.loads(line) for line in lines]


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True
