"""Dead letters tried again by the command itself, in this process."""

import json
from pathlib import Path

import pytest

from jobs import retry_dead
from jobs.route import read_settings
from pipeline import read_dead, read_run
from pipeline.errors import UserError
from pipeline.job.generate import GenerateJob
from tests.job import faulty
from tests.jobs.test_generate import command, parsed
from tests.stages import tiny_pools

__all__ = ["command"]  # the fixture

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def test_the_command_answers_dead_letters_with_the_runs_own_config(
    command: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": f"r{i}", "prompt": f"red{i} red2"} for i in range(4)]
    lines = [*(json.dumps(row) for row in rows), "{not json"]
    Path(command["--input"]).write_text("".join(f"{line}\n" for line in lines))
    settings = read_settings(parsed(command | {"errors.budget": "1"}))
    GenerateJob(settings, lambda line: None, generator=faulty.RefusesSome).run(tiny_pools)
    out = command["--output"]
    assert sorted(read_dead(out).to_table()["error_type"].to_pylist()) == ["InvalidJson", *["OutOfMemoryError"] * 2]
    with pytest.raises(UserError, match=r"generation.seed=1 would change the output; only engine\.\*, "):
        retry_dead.main(["--run", out, "generation.seed=1"])
    capsys.readouterr()
    assert retry_dead.main(["--run", out, "--stage", "route", "--progress", "quiet"]) == 0
    assert retry_dead.main(["--run", out, "--progress", "lines", "engine.batch_size=2"]) == 0
    said = capsys.readouterr().out
    assert "retried    2 dead letters: 2 answered, 1 dead letters left" in said
    assert sorted(read_run(out).to_table()["id"].to_pylist()) == ["r0", "r1", "r2", "r3"]
    assert read_dead(out).to_table()["error_type"].to_pylist() == ["InvalidJson"]
    assert "InvalidJson" in (Path(out) / "report.html").read_text()
    # What is left is over a budget of none.
    assert retry_dead.main(["--run", out, "--progress", "quiet", "errors.max=0"]) == 1
    assert capsys.readouterr().err.strip() == "over budget: 1 dead letters left, over errors.max=0"


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run: there is no run\.json at .*; give the --output of a run"):
        retry_dead.main(["--run", str(tmp_path)])
