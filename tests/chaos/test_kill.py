"""Real kills of real jobs: nothing lost, nothing doubled."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage import read_dead, read_run
from tests import tiny

pytestmark = [pytest.mark.ray, pytest.mark.chaos]
ROOT = Path(__file__).parents[2]

# A model whose process dies when it meets one token id: a record that kills its actor each time.
POISON = """
import os
from transformers import LlamaForCausalLM
class PoisonLlama(LlamaForCausalLM):
    def forward(self, input_ids=None, **kwargs):
        if input_ids is not None and input_ids.shape[1] > 1 and (input_ids == {token}).any():
            os._exit(1)
        return super().forward(input_ids=input_ids, **kwargs)
"""


def write_input(path: Path, count: int) -> set[str]:
    rows = [{"id": f"r{i}", "prompt": tiny.prompts_of(tiny.ADAPTERS[i % 8], 1, seed=i)[0]} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {row["id"] for row in rows}


def command(folder: Path, model: Path, bank: Path, router: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "jobs.generate", "--input", str(folder / "in.jsonl"), "--output", str(folder / "out")),
        *("model=custom", f"model.path={model}", "model.dtype=fp32", "bank=custom", f"bank.path={bank}"),
        *("router=custom", f"router.path={router}", "generation.max_new_tokens=16", *more),
    ]


def ids_of(output: Path) -> Counter[str]:
    found = [kind(str(output)).to_table(columns=["id"])["id"].to_pylist() for kind in (read_run, read_dead)]
    return Counter(found[0] + found[1])


@pytest.mark.slow  # the seeded runs kill drivers too
def test_a_killed_driver_loses_and_doubles_nothing(
    tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path
) -> None:
    ids = write_input(tmp_path / "in.jsonl", 72)
    more = ("shuffle.shard_records=8", "window.records=40", "engine.batch_size=4", "cluster.cpus=2")
    words = command(tmp_path, tiny_model, tiny_bank, tiny_router, *more)
    first = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_for_commits(first, tmp_path / "out", 2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = ids_of(tmp_path / "out")
    assert set(before.values()) <= {1}
    assert 0 < len(before) < len(ids)
    second = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert second.returncode == 0, second.stderr
    assert ids_of(tmp_path / "out") == Counter(ids)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["counts"]["data"] == len(ids)


@pytest.mark.slow
def test_a_second_driver_is_refused_and_sigterm_ends_the_first_in_order(
    tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path
) -> None:
    ids = write_input(tmp_path / "in.jsonl", 96)  # work for longer than the second driver needs to be refused
    more = ("shuffle.shard_records=8", "window.records=56", "engine.batch_size=4", "cluster.cpus=2")
    words = command(tmp_path, tiny_model, tiny_bank, tiny_router, *more)
    first = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_files(first, tmp_path / "out", "_lease/*.json", 1)
    second = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode == 2, second.stderr
    assert second.stderr.startswith(f"run: process {first.pid} on ")
    assert len(second.stderr.splitlines()) == 1
    wait_for_commits(first, tmp_path / "out", 1)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=120)[1]
    assert first.returncode == 143
    assert said.splitlines()[-1].startswith("stopped: SIGTERM; committed records are kept; run the same command again")
    assert "Traceback" not in said
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (run["state"], 0 < run["counts"]["data"] < len(ids)) == ("stopped", True)
    third = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert third.returncode == 0, third.stderr
    assert ids_of(tmp_path / "out") == Counter(ids)


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_committed_and_says_how_to_go_on(
    tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path
) -> None:
    ids = write_input(tmp_path / "in.jsonl", 72)
    more = ("shuffle.shard_records=8", "engine.batch_size=4", "cluster.cpus=2")
    words = command(tmp_path, tiny_model, tiny_bank, tiny_router, *more)
    first = subprocess.Popen(
        words,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job of a shell may have to ignore it
    )
    wait_for_commits(first, tmp_path / "out", 1)
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=120)[1]
    assert first.returncode == 130
    assert said.splitlines()[-1] == (
        "interrupted; committed records are kept; run the same command again (without --new-run) to finish"
    )
    assert "Traceback" not in said
    second = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert second.returncode == 0, second.stderr
    assert ids_of(tmp_path / "out") == Counter(ids)


def wait_for_commits(job: subprocess.Popen[Any], output: Path, count: int) -> None:
    """Wait until a running job has committed so many shards."""
    wait_for_files(job, output, "_commits/w0*.json", count)


def wait_for_files(job: subprocess.Popen[Any], output: Path, pattern: str, count: int) -> None:
    """Wait until a running job has written so many files."""
    deadline = time.monotonic() + 240
    while job.poll() is None and len(list(output.glob(pattern))) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    assert job.poll() is None, "the job ended before it could be stopped"


@pytest.mark.slow
def test_a_record_that_kills_its_actor_is_found_and_set_aside(
    tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path
) -> None:
    from pipeline.models import load_tokenizer

    ids = write_input(tmp_path / "in.jsonl", 60)
    [token] = load_tokenizer(str(tiny_model))("@").input_ids
    with (tmp_path / "in.jsonl").open("a") as f:
        f.write(json.dumps({"id": "poison", "prompt": "red1 red2 @ red3"}) + "\n")
    model = tmp_path / "model"
    subprocess.run(["cp", "-r", str(tiny_model), str(model)], check=True)
    (model / "poison.py").write_text(textwrap.dedent(POISON.format(token=token)))
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "poison.PoisonLlama"}
    (model / "config.json").write_text(json.dumps(config))
    more = ("model.trust_remote_code=true", "shuffle.shard_records=32", "errors.budget=0.05", "cluster.cpus=2")
    words = command(tmp_path, model, tiny_bank, tiny_router, *more)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ids_of(tmp_path / "out") == Counter(ids | {"poison"})
    [letter] = read_dead(str(tmp_path / "out")).to_table().to_pylist()
    assert (letter["id"], letter["stage"], letter["error_type"]) == ("poison", "generate", "NoAnswer")
    assert json.loads(letter["record"])["prompt"] == "red1 red2 @ red3"
