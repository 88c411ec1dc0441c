"""Settings of single records through the stages and the whole job, with a tiny random model."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.engine import Constraint, Sampling
from pipeline.errors import UserError
from pipeline.job.generate import GenerateJob
from pipeline.records import Record
from pipeline.routing import SentenceSettings
from pipeline.settings import JobSettings
from pipeline.stages.generate import GenerateRecords
from pipeline.stages.route import RouteRecords
from pipeline.storage import read_dead, read_run
from pipeline.storage.input.columns import Columns
from pipeline.storage.input.read import staged_table
from tests import tiny
from tests.stages import tiny_job, tiny_pools

SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["red", "tall"]}, "sure": {"type": "boolean"}},
    "required": ["label", "sure"],
    "additionalProperties": False,
}


@pytest.fixture
def job_settings(tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path) -> JobSettings:
    sampling = Sampling(max_new_tokens=64, constraint=Constraint("json_schema", json.dumps(SCHEMA)))
    columns = Columns(sampling="own", choices="labels")
    return tiny_job(tmp_path, tiny_model, tiny_bank, tiny_router, columns=columns, sampling=sampling)


def rows_without_ray(settings: JobSettings, records: list[Record]) -> list[dict[str, Any]]:
    """What the stages' own classes make of some records, called directly."""
    routed = RouteRecords(settings, tiny.CONTEXT)(staged_table(records, pa.schema([])))
    rows: list[dict[str, Any]] = GenerateRecords(settings, "cpu", 1)(routed).to_pylist()
    return rows


def error_type(row: dict[str, Any]) -> str | None:
    return row["dead"] and row["dead"]["error_type"]


def test_a_prompt_has_the_room_that_its_own_settings_leave(job_settings: JobSettings) -> None:
    prompt = "red1 " * 80  # about 160 tokens of 256
    settings = replace(job_settings, sampling=Sampling(max_new_tokens=8), long_prompts="truncate_left")
    own = [None, {"max_tokens": 200}, {"choices": ["red", "tall " * 30]}, {"max_tokens": 256}, {"max_tokens": 9000}]
    records = [Record(i, f"r{i}", prompt, sampling=one) for i, one in enumerate(own)]
    rows = RouteRecords(settings, tiny.CONTEXT)(staged_table(records, pa.schema([]))).to_pylist()
    whole = rows[0]["tokens"]
    [label] = RouteRecords(settings, tiny.CONTEXT).prompts.encode_answer(["tall " * 30])
    assert len(whole) > 100
    assert rows[1]["tokens"] == whole[-56:]
    assert rows[2]["tokens"] == whole[-(tiny.CONTEXT - len(label)) :]
    assert [error_type(row) for row in rows] == [None, None, None, "BadSampling", "BadSampling"]


def test_bad_settings_are_dead_letters_of_their_record(job_settings: JobSettings) -> None:
    own = [
        {"heat": 2},
        {"top_p": 7},
        {"regex": "(a"},
        {"stop_token_ids": [9999], "regex": None},
        {"choices": ["a", "a"]},
    ]
    records = [Record(i, f"r{i}", "red1 red2", sampling=one) for i, one in enumerate([*own, None])]
    rows = rows_without_ray(job_settings, records)
    assert [row["dead"] and row["dead"]["stage"] for row in rows] == [
        "route",
        "route",
        "generate",
        "generate",
        "route",
        None,
    ]
    assert {error_type(row) for row in rows[:5]} == {"BadSampling"}
    assert "unknown setting 'heat'" in rows[0]["dead"]["message"]
    assert "unclosed group" in rows[2]["dead"]["message"]


def test_choices_are_scored_where_sentences_are_routed(job_settings: JobSettings) -> None:
    settings = replace(job_settings, sentences=SentenceSettings(min_sentence_tokens=2))
    words = [" ".join(tiny.prompts_of(name, 2, seed=1)) for name in ("red", "cold")]
    records = [Record(0, "a", "\n\n".join(words), sampling={"choices": ["red", "tall"]})]
    [row] = rows_without_ray(settings, records)
    assert len({span["mixture"] for span in row["sentence_mixtures"]}) == 2
    assert (row["finish_reason"], len(row["choice_log_likelihoods"])) == ("choice", 2)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_job_over_all_formats_with_choices_overrides_and_a_schema(job_settings: JobSettings, tmp_path: Path) -> None:
    asked: dict[str, dict[str, Any]] = {
        "schema": {},
        "labels": {"labels": ["red1", "tall2"]},
        "several": {"own": {"regex": "[a-z ]{4,9}", "temperature": 1.0, "n": 3, "logprobs": 1}},
        "short": {"own": {"json_schema": SCHEMA, "max_tokens": 3}},
        "broken": {"own": {"temperature": "hot"}},
    }
    (tmp_path / "in").mkdir()
    lines = [{"id": f"jsonl {k}", "prompt": "red1 red2", **v} for k, v in asked.items()]
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with (tmp_path / "in" / "b.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["id", "prompt", "own", "labels"])
        for name, values in asked.items():
            texts = [json.dumps(values[key]) if key in values else "" for key in ("own", "labels")]
            writer.writerow([f"csv {name}", "red1 red2", *texts])
    # A struct column has one type for each field; the schema goes in as text.
    structs = {k: {"regex": None, **v.get("own", {})} for k, v in asked.items() if k != "broken"}
    structs["short"]["json_schema"] = json.dumps(SCHEMA)
    parquet = [
        {"id": f"parquet {k}", "prompt": "red1 red2", "own": own, "labels": asked[k].get("labels")}
        for k, own in structs.items()
    ]
    pq.write_table(pa.Table.from_pylist(parquet), tmp_path / "in" / "c.parquet")
    result = GenerateJob(job_settings, log=lambda line: None).run(tiny_pools)
    assert (result.counts.data, result.counts.dead, result.counts.errors) == (12, 2, {"BadSampling": 2})
    found = {row["id"]: row for row in read_run(job_settings.output).to_table().to_pylist()}
    for source in ("jsonl", "csv", "parquet"):
        value = json.loads(found[f"{source} schema"]["output"])
        assert list(value) == ["label", "sure"]
        assert (value["label"] in ("red", "tall"), type(value["sure"])) == (True, bool)
        chosen = found[f"{source} labels"]
        scores = chosen["choice_log_likelihoods"]
        assert chosen["output"] == ["red1", "tall2"][scores.index(max(scores))]
        assert chosen["finish_reason"] == "choice"
        several = found[f"{source} several"]
        assert len({answer["output"] for answer in several["outputs"]}) > 1
        assert several["output"] == several["outputs"][0]["output"]
        assert several["completion_tokens"] == sum(answer["completion_tokens"] for answer in several["outputs"])
        for answer in several["outputs"]:
            assert len(answer["logprobs"]) == answer["completion_tokens"]
            assert all(len(token["top_logprobs"]) == 1 for token in answer["logprobs"])
        short = found[f"{source} short"]
        assert (short["finish_reason"], short["completion_tokens"], short["outputs"]) == ("length", 3, None)
    # The settings, not the format, decide; and the input's columns say how each answer came about.
    for name in ("schema", "labels", "short"):
        assert len({found[f"{source} {name}"]["output"] for source in ("jsonl", "csv", "parquet")}) == 1
    assert {"own", "labels"} <= set(found["jsonl labels"])
    assert all("'temperature'" in row["message"] for row in read_dead(job_settings.output).to_table().to_pylist())
    guard = json.loads((Path(job_settings.output) / "run.json").read_text())["guard"]
    assert json.loads(guard["generation"]["constraint"]["text"]) == SCHEMA
    assert GenerateJob(job_settings).prepare().plan.rows == 14
    for changes in ({"sampling": Sampling(max_new_tokens=64)}, {"columns": Columns(sampling="own")}):
        with pytest.raises(UserError, match="holds a run that differs in"):
            GenerateJob(replace(job_settings, **changes)).prepare()  # type: ignore[arg-type]
