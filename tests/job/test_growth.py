"""A pool of engines grows when nodes join a running job."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.ray
def test_engines_start_on_nodes_that_join_late_and_all_work(
    tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path
) -> None:
    rows = [{"id": f"r{i}", "prompt": tiny.prompts_of(tiny.ADAPTERS[i % 8], 1, seed=i)[0]} for i in range(1600)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [sys.executable, "-m", "tests.job.growth", str(tmp_path), *map(str, (tiny_model, tiny_bank, tiny_router))]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    answered = json.loads(done.stdout.splitlines()[-1])
    assert len(answered) == 3
    assert min(answered) > 0
