"""Pools of a running job grow: of engines when nodes join, of routing actors while engines wait."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import tiny

ROOT = Path(__file__).parents[2]


def run(module: str, rows: int, folder: Path, *words: object) -> Any:
    """What a module of this package prints at last, in a process of its own, about a job with an input of rows."""
    records = [{"id": f"r{i}", "prompt": tiny.prompts_of(tiny.ADAPTERS[i % 8], 1, seed=i)[0]} for i in range(rows)]
    (folder / "in").mkdir()
    (folder / "in" / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    command = [sys.executable, "-m", f"tests.job.{module}", str(folder), *map(str, words)]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.ray
def test_engines_start_on_nodes_that_join_late_and_all_work(
    tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path
) -> None:
    answered = run("growth", 1600, tmp_path, tiny_model, tiny_bank, tiny_router)
    assert len(answered) == 3
    assert min(answered) > 0


@pytest.mark.slow
@pytest.mark.ray
def test_routing_actors_start_while_engines_wait(
    tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path
) -> None:
    assert 1 < run("routing", 40_960, tmp_path, tiny_model, tiny_bank, tiny_router, 0.3, 0.01) <= 4


@pytest.mark.slow
@pytest.mark.ray
def test_no_routing_actor_starts_while_engines_have_enough(
    tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path
) -> None:
    assert run("routing", 40_960, tmp_path, tiny_model, tiny_bank, tiny_router, 0.01, 0.5) == 1
