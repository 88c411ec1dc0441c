"""vLLM's own processes that die, and whole jobs over it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import orjson
import psutil
import pytest

from pipeline.engine import Request
from pipeline.engine.vllm.backend import VllmBackend
from pipeline.records import Completion
from pipeline.storage import read_dead, read_run
from tests.vllm.engines import Engines, mixtures_of, start_vllm

pytestmark = pytest.mark.vllm

_HANG = 15.0  # seconds without a pass; one takes a fraction of a second, a long prompt's some seconds beside other load

_ALONE = """
import os, sys
from tests.vllm.engines import start_vllm
if __name__ == "__main__":
    backend = start_vllm("bf16", lambda: os._exit(1))
    print(*backend.process_ids, flush=True)
    sys.stdin.read()
"""


def test_an_engine_ends_with_the_process_that_started_it(root: Path) -> None:
    words = [sys.executable, "-c", _ALONE]
    process = subprocess.Popen(words, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    children = [psutil.Process(int(word)) for word in process.stdout.readline().split()]
    family = children + [child for parent in children for child in parent.children(recursive=True)]
    assert family
    shared = {Path(held.path) for process in family for held in process.memory_maps()}
    shared = {path for path in shared if path.parent == Path("/dev/shm") and path.exists()}
    process.kill()
    process.wait()
    assert not psutil.wait_procs(family, timeout=60)[1]
    assert _soon(lambda: not any(path.exists() for path in shared)), shared


def test_requests_of_an_engine_that_dies_do_not_wait_for_ever(fp32: Engines) -> None:
    told = threading.Event()
    backend = start_vllm("bf16", told.set)
    asked = _Asked(backend, _long_requests(fp32))
    for pid in backend.process_ids:
        os.kill(pid, signal.SIGKILL)
    assert told.wait(60)
    assert asked.errors() == ["EngineDeadError"]
    backend.close()


def test_an_engine_that_hangs_is_noticed_and_one_that_is_slow_is_not(fp32: Engines) -> None:
    told = threading.Event()
    backend = start_vllm("bf16", told.set, hang_seconds=_HANG)
    taken = 0.0
    for new in (100, 200, 400, 800, 1600, 3200, 6400):
        begun = time.monotonic()
        requests = fp32.requests(mixtures_of(fp32.bank)[2:3], 1, min_new_tokens=new, max_new_tokens=new)
        assert isinstance(backend.answer(requests)[0], Completion)
        taken = time.monotonic() - begun
        if taken > 2 * _HANG:
            break
    assert taken > 2 * _HANG, "the machine is too fast for this test"
    assert not told.is_set()
    asked = _Asked(backend, _long_requests(fp32))
    processes = backend.process_ids
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert told.wait(60)
        assert asked.waits  # ending the process is up to who was told
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGKILL)
    assert asked.errors() == ["EngineDeadError"]
    backend.close()


def test_a_whole_job_whose_engine_is_killed_answers_every_record_once(tmp_path: Path, root: Path) -> None:
    lines = (root / "demo" / "records.jsonl").read_bytes().splitlines()[:40]
    (tmp_path / "in.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    words = [
        *(sys.executable, "-m", "jobs.generate", "--input", str(tmp_path / "in.jsonl")),
        *("--output", str(tmp_path / "out"), "engine=vllm", "engine.kv_gb=1"),
        *("engine.adapter_slots=8", "generation.max_new_tokens=16", "cluster.cpus=2", "shuffle.shard_records=16"),
    ]
    job = subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    killed = threading.Thread(target=_kill_engine_once, args=(job.pid, tmp_path / "out"))
    killed.start()
    said, _ = job.communicate(timeout=550)
    killed.join()
    assert job.returncode == 0, said
    table = read_run(str(tmp_path / "out")).to_table()
    found = Counter(table["id"].to_pylist() + read_dead(str(tmp_path / "out")).to_table()["id"].to_pylist())
    assert found == Counter(orjson.loads(line)["id"] for line in lines)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["guard"]["engine.backend"] == "vllm"
    other = [word for word in words if not word.startswith("engine")]
    refused = subprocess.run(other, cwd=root, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "engine.backend (was 'vllm', is 'native')" in refused.stderr


def _kill_engine_once(job: int, output: Path) -> None:
    """Kill vLLM's process, below that of the job, once a shard is committed."""
    until = time.monotonic() + 300
    while time.monotonic() < until and psutil.pid_exists(job):
        committed = list(output.glob("_commits/**/*.json"))
        for process in psutil.Process(job).children(recursive=True) if committed else ():
            with suppress(psutil.Error):
                if "EngineCore" in " ".join([process.name(), *process.cmdline()]):
                    process.kill()
                    return
        time.sleep(0.5)


class _Asked:
    """Requests that a thread waits for, some of which vLLM has begun."""

    def __init__(self, backend: VllmBackend, requests: list[Request]) -> None:
        self._failed: list[Exception] = []
        self._thread = threading.Thread(target=self._ask, args=(backend, requests))
        self._thread.start()
        time.sleep(3)

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()

    def errors(self) -> list[str]:
        """What the thread got in the place of answers; no later than in a minute."""
        self._thread.join(60)
        assert not self.waits
        return [type(error).__name__ for error in self._failed]

    def _ask(self, backend: VllmBackend, requests: list[Request]) -> None:
        try:
            backend.answer(requests)
        except Exception as error:
            self._failed.append(error)


def _long_requests(engines: Engines) -> list[Request]:
    return engines.requests(mixtures_of(engines.bank), 20, min_new_tokens=200, max_new_tokens=200)


def _soon(condition: Callable[[], bool]) -> bool:
    """Whether it comes to be within a minute."""
    until = time.monotonic() + 60
    while not condition() and time.monotonic() < until:
        time.sleep(0.2)
    return condition()
