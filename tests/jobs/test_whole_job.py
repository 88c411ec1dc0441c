"""A whole job in this process: OpenAI requests in and out, progress as JSON, report and card beside the output."""

import json
from pathlib import Path

import pytest

from jobs import generate, report
from pipeline import read_dead, read_run
from tests.jobs.test_generate import command, words

__all__ = ["command"]  # the fixture

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def test_requests_come_in_and_go_out_unchanged(
    command: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies = [
        {"model": "m", "messages": [{"role": "user", "content": f"red{i}"}], "max_tokens": 1 + i} for i in range(4)
    ]
    bodies.append({"model": "m", "messages": bodies[0]["messages"], "tools": [{"type": "function"}]})
    requests = [
        {"custom_id": f"r{i}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for i, body in enumerate(bodies)
    ]
    Path(command["--input"]).write_text("".join(json.dumps(r) + "\n" for r in requests))
    more = ["input=openai_batch", "--progress", "json", "errors.budget=1", "routing.gate=false"]
    assert generate.main([*words(command), *more]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {event["event"] for event in events} == {"message", "progress", "result"}
    progress = [event for event in events if event["event"] == "progress"]
    assert [event["stage"] for event in progress][:1] == ["starting Ray"]
    assert (progress[-1]["done"], progress[-1]["records"], progress[-1]["dead"]) == (5, 5, 1)
    assert (events[-1]["committed"], events[-1]["ok"]) == (4, True)
    out = tmp_path / "out"
    lines = [json.loads(line) for line in (out / "batch_output.jsonl").open()]
    rows = {row["id"]: row for row in read_run(str(out)).to_table().to_pylist()}
    assert {line["custom_id"] for line in lines} == {"r0", "r1", "r2", "r3"} == set(rows)
    for line in lines:
        body, row = line["response"]["body"], rows[line["custom_id"]]
        assert body["choices"][0]["message"]["content"] == row["output"]
        assert body["usage"]["completion_tokens"] <= 1 + int(row["id"][1:])
    (error,) = [json.loads(line) for line in (out / "batch_errors.jsonl").open()]
    assert error["custom_id"] == "r4"
    assert "tools: calls are not read from answers" in error["error"]["message"]
    assert read_dead(str(out)).count_rows() == 1
    assert "path: data/*.parquet" in (out / "README.md").read_text()
    run = json.loads((out / "run.json").read_text())
    assert run["timeline"][-1][1:3] == [4, 1]
    assert run["devices"]["device_seconds"] > 0


@pytest.mark.slow
def test_a_run_is_the_basis_of_an_estimate_and_of_a_comparison(
    command: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = command | {"--output": str(tmp_path / "trial")}
    assert generate.main([*words(trial), "--limit", "3", "--progress", "quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert read_run(trial["--output"]).count_rows() == 3
    changed = command | {"generation.max_new_tokens": "5"}
    assert generate.main([*words(changed), "--dry-run", "--basis", trial["--output"]]) == 0
    said = capsys.readouterr().out
    assert f"basis      the run {trial['--output']}: 3 records at" in said
    assert "that run differs in generation.max_new_tokens (was 4, is 5)" in said
    assert not (tmp_path / "out").exists()
    assert generate.main([*words(command), "--progress", "quiet"]) == 0
    assert report.main(["--run", command["--output"], "--against", trial["--output"]]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "3 of 3 records that were compared have the same answer" in page
    assert "<td>command.limit</td><td>None</td><td>3</td>" in page
