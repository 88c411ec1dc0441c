"""Before a run: the composed config, the first records alone, an estimate, and why a prompt gets its mixture."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs import generate, route
from jobs.route import read_settings
from pipeline.errors import UserError
from pipeline.job.generate import GenerateJob
from tests import tiny
from tests.jobs.test_generate import command, parsed, refusal, words

__all__ = ["command"]  # the fixture


@pytest.fixture
def many(command: dict[str, str]) -> dict[str, str]:
    """A command over 60 records, some of them bad."""
    rows = [
        {"id": i, "prompt": p} for i, p in enumerate(p for name in tiny.ADAPTERS[:6] for p in tiny.prompts_of(name, 9))
    ]
    lines = [
        *(json.dumps(row) for row in rows),
        "{broken",
        *(json.dumps({"id": 0, "prompt": "red1"}) for _ in range(5)),
    ]
    Path(command["--input"]).write_text("\n".join(lines) + "\n")
    return command


def test_the_config_is_shown_without_input_and_without_credentials(capsys: pytest.CaptureFixture[str]) -> None:
    secret = "cluster.address=ray://user:hunter2pass@head:10001"
    assert generate.main(["--show-config", "--seed", "3", "generation.top_k=7", secret]) == 0
    said = capsys.readouterr().out
    shown = yaml.safe_load(said)
    assert (shown["seed"], shown["generation"]["top_k"]) == (3, 7)
    assert "hunter2pass" not in said


def test_input_and_output_are_asked_for() -> None:
    with pytest.raises(UserError, match="command: --input and --output must be given"):
        generate.main([])


@pytest.mark.long
def test_records_are_explained_whatever_else_they_hold(
    command: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    columns = {"far": pa.array([2**62], pa.timestamp("us")), "zone": pa.array([1], pa.timestamp("us", "Not/AZone"))}
    path = Path(command["--input"]).with_suffix(".parquet")
    pq.write_table(pa.table({"id": ["a"], "prompt": ["red1 red2"]} | columns), path)
    assert route.main(words({k: v for k, v in command.items() if "tokens" not in k} | {"--input": str(path)})) == 0
    assert "a: red1 red2" in capsys.readouterr().out


@pytest.mark.long
def test_the_first_records_alone_are_another_run(many: dict[str, str]) -> None:
    def planned(*more: str) -> int:
        job = GenerateJob(read_settings(parsed(many, *more)))
        prepared = job.prepare()
        assert prepared.guard["limit"] == (int(more[1]) if more else None)
        return prepared.plan.rows

    assert (planned(), planned("--limit", "7"), planned("--limit", "700")) == (60, 7, 60)
    with pytest.raises(UserError, match="'--limit': 0 is not in the range x>=1; see"):
        generate.main([*words(many), "--limit", "0"])


def test_a_dry_run_estimates_and_writes_nothing(many: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    dry = [*words(many), "--dry-run", "--sample-seconds", "0.001", "cost.device_hour=2", "cost.currency=EUR"]
    assert generate.main([*dry, "engine.batch_size=8"]) == 0
    said = capsys.readouterr().out
    assert not Path(many["--output"]).exists()
    assert "sample     60 records routed: 54 to" in said
    assert "5    8.3%  dead: DuplicateId" in said
    assert "records    54 would be answered" in said  # all of the input is in the sample
    assert "answers    " in said
    assert "216 at most" in said
    assert "EUR" in said
    assert "basis      8 records of the sample, answered here in 1 batch(es) on cpu" in said


def test_a_dry_run_refuses_what_the_run_would_refuse(command: dict[str, str]) -> None:
    assert "bank: no folder" in refusal(command | {"bank.path": "/nowhere"}, "--dry-run")


def test_a_basis_must_be_a_run(many: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run that generated anything"):
        generate.main([*words(many), "--dry-run", "--basis", str(tmp_path)])


@pytest.mark.long
def test_route_says_why(command: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    models = [word for word in words(command) if "=" in word]
    assert route.main(["--prompt", "red1 red2 red3", "--prompt", "zzz qqq", *models, "routing.acceptance=0.9"]) == 0
    first, second = capsys.readouterr().out.split("prompt 2: ")
    assert first.startswith("prompt 1: red1 red2 red3\n  classes    red ")
    assert "in domain" in first
    assert "mixture    red:1.0" in first
    assert "zzz qqq" in second
    assert "(fallback: the base model alone)" in second
    sentences = "red1 red2 red3 red4. cold1 cold2 cold3 cold4."
    more = ["routing.granularity=sentence", "routing.min_sentence_tokens=2", "routing.context_sentences=0"]
    assert route.main(["--prompt", sentences, *models, *more]) == 0
    said = capsys.readouterr().out
    assert said.count("  from token ") == said.count("    classes    ") == 2
    assert "from token 0: red:1.0\n    classes    red " in said
    with pytest.raises(UserError, match="--prompt goes without"):
        route.main(["--prompt", "a", *words(command)])


def test_the_classes_of_each_record_are_written(many: dict[str, str], tmp_path: Path) -> None:
    assert route.main([*words(many), "--explain", "0", "--limit", "20", "routing.gate=false"]) == 0
    rows = pq.read_table(tmp_path / "out" / "routes.parquet").to_pylist()
    assert len(rows) == 20
    for row in rows:
        classes = {c["adapter"]: c["probability"] for c in row["top_classes"]}
        assert len(classes) == 5
        assert set(row["adapters"]) <= set(classes)
        assert list(classes.values()) == sorted(classes.values(), reverse=True)


def test_routes_below_the_input_are_no_input_of_the_next_command(
    command: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "lake"
    folder.mkdir()
    Path(command["--input"]).rename(folder / "in.jsonl")
    asked = words(command | {"--input": str(folder), "--output": str(folder / "routes")})
    for _ in range(2):
        assert route.main([*asked, "--explain", "0"]) == 0
        assert re.search(r"^4 records routed .*, 0 refused$", capsys.readouterr().out, re.M)
        assert pq.read_table(folder / "routes" / "routes.parquet").num_rows == 4
    pq.write_table(other := pa.table({"a": [1]}), folder / "routes" / "routes.parquet")
    with pytest.raises(UserError, match=r"holds another routes\.parquet"):
        route.main(asked)
    assert pq.read_table(folder / "routes" / "routes.parquet") == other
