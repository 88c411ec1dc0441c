"""Prompts cut into parts, through the stages: real model, bank and router, most of it without Ray."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import route as route_job
from pipeline.batches import Generate, Route
from pipeline.engine import Sampling
from pipeline.errors import UserError
from pipeline.job.generate import GenerateJob
from pipeline.models import load_tokenizer
from pipeline.records import DATA, PROVENANCE, Conversation, Mixture, Prompt, Record
from pipeline.routing import PartSettings
from pipeline.settings import JobSettings
from pipeline.stages.generate import GenerateRecords
from pipeline.stages.output_schema import OutputSchema
from pipeline.stages.part_requests import part_tokens
from pipeline.stages.regroup import cut_shards, pack, unpack
from pipeline.stages.route import RouteRecords
from pipeline.stages.shard_plan import ShardLimits
from pipeline.storage import read_run
from pipeline.storage.input.read import staged_table
from tests import tiny
from tests.stages import tiny_job, tiny_pools, words_of

TASKS = [(tiny.ADAPTERS[i], tiny.ADAPTERS[(i + 3) % 8]) for i in range(8)]


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path) -> JobSettings:
    sampling = Sampling(max_new_tokens=8, temperature=1.0)
    changes = {"input": str(tmp_path / "in.jsonl"), "sampling": sampling, "parts": PartSettings()}
    return tiny_job(tmp_path, tiny_model, tiny_bank, tiny_router, **changes)


def question(adapter: str) -> str:
    return tiny.prompts_of(adapter, 6)[5]


def numbered(*adapters: str) -> str:
    return "Answer all.\n" + "\n".join(f"{n}. {question(adapter)}" for n, adapter in enumerate(adapters, 1))


def routed(settings: JobSettings, given: list[Prompt], samplings: list[dict[str, Any]] | None = None) -> pa.Table:
    own: list[Any] = [*(samplings or []), *[None] * len(given)]
    records = [Record(i, f"r{i}", prompt, sampling=own[i]) for i, prompt in enumerate(given)]
    return RouteRecords(settings, tiny.CONTEXT)(staged_table(records, pa.schema([])))


def generated(settings: JobSettings, table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = GenerateRecords(settings, "cpu", 1)(table).to_pylist()
    return rows


def part_texts(settings: JobSettings, row: dict[str, Any]) -> list[str]:
    tokenizer = load_tokenizer(settings.model.path)
    return [tokenizer.decode(tokens) for tokens in part_tokens(row["tokens"], row["prompt_parts"])]


def test_each_part_of_a_prompt_gets_the_adapter_of_its_words(settings: JobSettings) -> None:
    rows = routed(settings, [numbered(*tasks) for tasks in TASKS]).to_pylist()
    for row, (first, second) in zip(rows, TASKS, strict=True):
        assert part_texts(settings, row) == [question(first), question(second)]
        assert [part["mixture"] for part in row["prompt_parts"]] == [f"{first}:1.0", f"{second}:1.0"]
        assert [part["mark"] for part in row["prompt_parts"]] == ["1.", "2."]
        assert row["mixture"] == Mixture.of({first: 0.5, second: 0.5}).key


def test_a_prompt_that_asks_one_thing_is_routed_as_a_record(settings: JobSettings) -> None:
    one = [question("red"), f"{question('red')}\n{question('red')}.", numbered("cold", "cold"), "", " \n "]
    rows = routed(settings, list(one)).to_pylist()
    expected = routed(replace(settings, parts=None), list(one)).to_pylist()
    assert [row.pop("prompt_parts") for row in rows] == [None] * len(one)
    assert rows == expected


def test_a_text_is_kept_with_each_question_about_it(settings: JobSettings) -> None:
    text = "Long ago. There was a text."
    [row] = routed(settings, [f"{text}\n\n- {question('red')}\n- {question('cold')}"]).to_pylist()
    assert part_texts(settings, row) == [f"{text}\n\n{question(name)}" for name in ("red", "cold")]


def test_the_last_message_of_a_conversation_is_cut(settings: JobSettings) -> None:
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": numbered("red", "cold")}]
    [row, other] = routed(
        settings, [Conversation(talk), Conversation([*talk, {"role": "assistant", "content": "no"}])]
    ).to_pylist()
    assert part_texts(settings, row) == [
        f"<|system|>Be brief.\n<|user|>{question(name)}\n<|assistant|>" for name in ("red", "cold")
    ]
    assert other["prompt_parts"] is None, "the user asks nothing last"


@pytest.mark.parametrize(
    "sampling",
    [{"choices": ["a", "b"]}, {"regex": "[a-z]+"}, {"n": 2}, {"logprobs": 1}],
    ids=lambda sampling: next(iter(sampling)),
)
def test_answers_that_cannot_be_joined_are_asked_for_at_once(settings: JobSettings, sampling: dict[str, Any]) -> None:
    columns = replace(settings.columns, sampling="sampling")
    table = routed(replace(settings, columns=columns), [numbered("red", "cold")] * 2, [sampling])
    assert [row["prompt_parts"] is None for row in table.to_pylist()] == [True, False]


def test_a_part_is_answered_as_a_record_of_its_own(settings: JobSettings) -> None:
    settings = replace(settings, sampling=Sampling(max_new_tokens=8))
    rows = generated(settings, routed(settings, [*(numbered(*tasks) for tasks in TASKS), question("red")]))
    alone = generated(settings, routed(settings, [question(name) for tasks in TASKS for name in tasks]))
    for index, row in enumerate(rows[:-1]):
        names = ("output", "finish_reason", "prompt_tokens", "completion_tokens", "mixture")
        parts, records = row["parts"], alone[2 * index : 2 * index + 2]
        assert [[one[name] for name in names] for one in parts] == [[one[name] for name in names] for one in records]
        logprobs = [one["answer_logprob"] for one in records]
        assert [one["answer_logprob"] for one in parts] == pytest.approx(logprobs, abs=1e-5), "in other batches"
        assert row["answer_logprob"] == pytest.approx(
            np.average(logprobs, weights=[one["completion_tokens"] for one in parts])
        )
        assert row["output"] == "\n".join(
            f"{n} {one['output']}" for n, one in zip(["1.", "2."], row["parts"], strict=True)
        )
        for name in ("prompt_tokens", "completion_tokens"):
            assert row[name] == sum(part[name] for part in row["parts"])
        assert row["finish_reason"] == ("length" if "length" in [p["finish_reason"] for p in row["parts"]] else "stop")
    assert {reason for row in rows for reason in [row["finish_reason"]]} >= {"length"}
    assert (rows[-1]["parts"], rows[-1]["output"]) == (None, alone[0]["output"])


def test_parts_draw_tokens_of_their_own_in_any_batch(settings: JobSettings) -> None:
    table = routed(settings, ["1. red1 red2\n2. cold1 cold2\n3. red1 red2", *(numbered(*tasks) for tasks in TASKS)])
    rows = generated(settings, table)
    first, _, third = rows[0]["parts"]
    assert first["mixture"] == third["mixture"]
    assert first["output"] != third["output"], "equal parts draw different tokens"
    backwards = generated(settings, table.take(list(range(table.num_rows))[::-1]))[::-1]
    assert backwards == rows


def test_a_part_that_is_refused_makes_one_dead_letter(settings: JobSettings) -> None:
    long = f"1. {question('red')}\n2. {question('cold')} " + "cold1 " * 150
    row, other = generated(settings, routed(settings, [long, numbered("red", "cold")]))
    assert (row["dead"]["stage"], row["dead"]["error_type"]) == ("route", "PromptTooLong")
    assert row["dead"]["message"].startswith("part 2 of 2: ")
    assert (row["mixture"], row["output"], row["parts"], other["dead"]) == ("", None, None, None)


def test_a_part_that_fails_in_the_engine_makes_one_dead_letter(settings: JobSettings) -> None:
    settings = replace(settings, engine=replace(settings.engine, kv_tokens=64))
    long = f"1. {question('red')}\n2. {question('cold')} " + "cold1 " * 30
    row, other = generated(settings, routed(settings, [long, numbered("red", "cold")]))
    assert (row["dead"]["stage"], row["dead"]["error_type"]) == ("generate", "KvBudget")
    assert row["dead"]["message"].startswith("part 2 of 2: ")
    assert (row["output"], row["parts"], other["dead"]) == (None, None, None)


def test_parts_pass_through_shards_into_the_output(settings: JobSettings) -> None:
    table = routed(settings, [*(numbered(*tasks) for tasks in TASKS), question("red")])
    shards = [unpack(pack(shard)["records"][0].as_py()) for shard in cut_shards(table, ShardLimits(4, 4))]
    assert all(
        len({a for key in shard["mixture"].to_pylist() for a in Mixture.parse(key).adapters}) <= 4 for shard in shards
    )
    generate = GenerateRecords(settings, "cpu", 1)
    schema = OutputSchema(pa.schema([]), False, "router", "bank", settings.divided_columns)
    rows = pa.concat_tables([schema.data_table(generate(shard)) for shard in shards]).to_pylist()
    for row in (whole := generated(settings, table)) + rows:
        for part in row["parts"] or ():
            assert part.pop("answer_logprob") < 0  # in other batches a little different
    assert {row["id"]: row["parts"] for row in rows} == {row["id"]: row["parts"] for row in whole}
    assert {(*row["adapters"], *row["weights"]) for row in rows} == {
        *((*sorted(tasks), 0.5, 0.5) for tasks in TASKS),
        ("red", 1.0),
    }


WORDS = ("routing.granularity=parts",)


def write_input(settings: JobSettings) -> None:
    prompts = [numbered(*tasks) for tasks in TASKS] + [question("red")]
    lines = [json.dumps({"id": f"r{i}", "prompt": prompt, "parts": i}) for i, prompt in enumerate(prompts)]
    Path(settings.input).write_text("\n".join(lines) + "\n")


def test_the_route_command_shows_the_cut(
    settings: JobSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_input(settings)
    assert route_job.main(words_of(settings, tmp_path / "routes", *WORDS)) == 0
    rows = pq.read_table(tmp_path / "routes" / "routes.parquet").to_pylist()
    expected = routed(settings, [numbered(*tasks) for tasks in TASKS]).to_pylist()
    assert [row["prompt_parts"] for row in rows] == [*(row["prompt_parts"] for row in expected), None]
    assert [row["top_classes"] is None for row in rows] == [True] * 8 + [False]
    first, second = TASKS[0]
    printed = capsys.readouterr().out
    assert f"  part 1 of 2: {question(first)}\n    classes    {first} " in printed
    assert f"  part 2 of 2: {question(second)}\n    classes    {second} " in printed


def test_batches_of_other_pipelines_are_answered_in_parts(settings: JobSettings) -> None:
    config = [word for word in words_of(settings, Path("out"), *WORDS) if "=" in word] + ["generation.max_new_tokens=4"]
    batch = [{"id": "a", "prompt": numbered("red", "cold")}, {"id": "b", "prompt": question("red")}]
    rows = Route(config)(batch).to_pylist()
    assert [row["mixture"] for row in rows] == ["cold:0.5+red:0.5", "red:1.0"]
    assert [row["top_classes"] is None for row in rows] == [True, False]
    cut, whole = Generate(config, "cpu", 1)(batch).to_pylist()
    assert cut["output"] == "\n".join(f"{n}. {part['output']}" for n, part in enumerate(cut["parts"], 1))
    assert (cut["parts"][0]["output"], whole["parts"]) == (whole["output"], None)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_job_in_parts(settings: JobSettings) -> None:
    write_input(settings)
    result = GenerateJob(settings, log=lambda line: None).run(tiny_pools)
    assert (result.ok, result.counts.data) == (True, len(TASKS) + 1)
    table = read_run(settings.output).to_table()
    assert table.schema.names == [*DATA.names, "parts", "input_parts", *PROVENANCE.names]
    rows = sorted(table.to_pylist(), key=lambda row: row["input_parts"])
    expected = generated(settings, routed(settings, [*(numbered(*tasks) for tasks in TASKS), question("red")]))
    for name in ("output", "parts", "mixture"):
        assert [row[name] for row in rows] == [row[name] for row in expected]
    assert rows[0]["adapters"] == sorted(TASKS[0])
    with pytest.raises(UserError, match=r"routing.granularity \(was 'parts', is 'record'\)"):
        GenerateJob(replace(settings, parts=None)).prepare()
