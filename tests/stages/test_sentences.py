"""Sentence granularity through the stages: real model, bank and router, most of it without Ray."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from jobs import route as route_job
from pipeline.engine import Sampling
from pipeline.engine.settings import EngineSettings
from pipeline.errors import UserError
from pipeline.job.generate import GenerateJob
from pipeline.models import load_tokenizer
from pipeline.records import DATA, PROVENANCE, Conversation, Prompt, Record
from pipeline.routing import RoutingPolicy, SentenceSettings
from pipeline.settings import JobSettings
from pipeline.stages.generate import GenerateRecords
from pipeline.stages.route import RouteRecords
from pipeline.storage import read_run
from pipeline.storage.input.read import staged_table
from tests import tiny
from tests.stages import tiny_job, tiny_pools, words_of

SENTENCES = SentenceSettings(min_sentence_tokens=4)
TASKS = [(tiny.ADAPTERS[i % 8], tiny.ADAPTERS[(i + 3) % 8]) for i in range(16)]


@pytest.fixture(scope="module")
def talking_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, made to end sentences and to start new ones often."""
    folder = tiny.make_model(tmp_path_factory.mktemp("talking"))
    tensors = load_file(folder / "model.safetensors")
    tokenizer = load_tokenizer(str(folder))
    often = tokenizer(" red. cold! slow? tall. kind", add_special_tokens=False).input_ids
    tensors["lm_head.weight"][often] *= 4
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def settings(tmp_path: Path, talking_model: Path, tiny_bank: Path, tiny_router: Path) -> JobSettings:
    sampling = Sampling(max_new_tokens=40, temperature=1.0)
    changes = {"input": str(tmp_path / "in.jsonl"), "sampling": sampling, "sentences": SENTENCES, "shard_records": 8}
    return tiny_job(tmp_path, talking_model, tiny_bank, tiny_router, **changes)


def two_tasks(first: str, second: str, seed: int = 0) -> str:
    """A prompt of a paragraph for each of two adapters."""
    return f"{tiny.prompts_of(first, 4, seed)[3]}. \n\n{tiny.prompts_of(second, 4, seed)[3]}."


def prompts() -> list[str]:
    return [two_tasks(a, b, seed) for seed, (a, b) in enumerate(TASKS)]


def routed(settings: JobSettings, given: list[Prompt]) -> pa.Table:
    records = [Record(i, f"r{i}", prompt) for i, prompt in enumerate(given)]
    return RouteRecords(settings, tiny.CONTEXT)(staged_table(records, pa.schema([])))


def generated(settings: JobSettings, table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = GenerateRecords(settings, "cpu", 1)(table).to_pylist()
    return rows


def starts_and_texts(settings: JobSettings, row: dict[str, Any]) -> list[tuple[str, str]]:
    """The text and the mixture of each sentence of a routed prompt."""
    tokenizer = load_tokenizer(settings.model.path)
    ends = [*(span["start"] for span in row["spans"][1:]), len(row["tokens"])]
    return [
        (tokenizer.decode(row["tokens"][span["start"] : end]), span["mixture"])
        for span, end in zip(row["spans"], ends, strict=True)
    ]


def test_each_sentence_of_a_prompt_gets_the_adapter_of_its_words(settings: JobSettings) -> None:
    for row, prompt, (first, second) in zip(
        routed(settings, list(prompts())).to_pylist(), prompts(), TASKS, strict=True
    ):
        parts = starts_and_texts(settings, row)
        assert "".join(text for text, _ in parts) == prompt
        assert [mixture for _, mixture in parts] == [f"{first}:1.0", f"{second}:1.0"]
        assert row["mixture"] == f"{second}:1.0"
        assert row["context"] == row["spans"][-1]["start"]


def test_a_chat_template_goes_with_the_first_and_the_last_sentence(settings: JobSettings) -> None:
    [row] = routed(settings, [Conversation([{"role": "user", "content": two_tasks("red", "cold")}])]).to_pylist()
    texts = [text for text, _ in starts_and_texts(settings, row)]
    assert len(texts) == 2
    assert texts[0].startswith("<|user|>")
    assert texts[1].endswith("<|assistant|>")


@pytest.mark.parametrize(("policy", "kept"), [("truncate_left", "cold"), ("truncate_right", "red")])
def test_sentences_of_a_cut_prompt_are_those_that_are_left(settings: JobSettings, policy: Any, kept: str) -> None:
    words = {name: tiny.prompts_of(name, 6)[5] for name in ("red", "cold")}
    prompt = " ".join([f"{words['red']}."] * 12) + "\n\n" + " ".join([f"{words['cold']}."] * 12)
    [whole] = routed(replace(settings, sampling=Sampling(max_new_tokens=1), long_prompts=policy), [prompt]).to_pylist()
    assert len(whole["tokens"]) == tiny.CONTEXT - 1
    parts = starts_and_texts(settings, whole)
    assert {kept} < {mixture.removesuffix(":1.0") for _, mixture in parts}
    inner = parts[1:-1]
    assert len(inner) > 4
    assert all(text.strip() in (f"{words['red']}.", f"{words['cold']}.") for text, _ in inner)
    assert all(text.strip().startswith(mixture.removesuffix(":1.0")) for text, mixture in inner)


def test_a_record_falls_back_where_all_its_sentences_do(settings: JobSettings) -> None:
    settings = replace(settings, routing=RoutingPolicy(gate=True), sentences=replace(SENTENCES, context_sentences=0))
    strange = "(){}[];:?!" * 5
    known = tiny.prompts_of("red", 3)[2]
    none, mixed, known_alone = routed(settings, [strange, f"{known}. {strange}", known]).to_pylist()
    assert (none["fallback"], none["mixture"]) == (True, "base")
    assert len(mixed["spans"]) > 2
    assert {span["mixture"] for span in mixed["spans"]} == {"red:1.0"}, "the strange ones go on with the one before"
    assert (mixed["fallback"], known_alone["fallback"]) == (False, False)
    assert none["route_score"] < mixed["route_score"]


@pytest.mark.long
@pytest.mark.parametrize("temperature", [pytest.param(0.0, marks=pytest.mark.slow), 1.0], ids=["greedy", "sampled"])
def test_answers_by_sentence_do_not_depend_on_batches_or_order(settings: JobSettings, temperature: float) -> None:
    settings = replace(settings, sampling=Sampling(max_new_tokens=40, temperature=temperature))
    table = routed(settings, list(prompts()))
    names = ["id", "output", "mixture", "sentence_mixtures"]
    expected = [{n: row[n] for n in names} for row in generated(replace(settings, engine=EngineSettings(16)), table)]
    backwards = table.take(list(range(table.num_rows))[::-1])
    for batch_size in (1, 5):
        rows = generated(replace(settings, engine=EngineSettings(batch_size)), backwards)[::-1]
        assert [{n: row[n] for n in names} for row in rows] == expected


def test_sentences_of_an_answer_are_routed_while_it_is_generated(settings: JobSettings) -> None:
    rows = generated(settings, routed(settings, list(prompts())))
    later = 0
    for row in rows:
        starts = [span["start"] for span in row["sentence_mixtures"]]
        assert starts == sorted(set(starts))
        assert starts[0] == 0
        assert starts[-1] < row["prompt_tokens"] + row["completion_tokens"]
        assert row["sentence_mixtures"][: len(row["spans"])] == row["spans"]
        assert all(
            start >= row["prompt_tokens"] + SENTENCES.min_sentence_tokens for start in starts[len(row["spans"]) :]
        )
        later += len(starts) - len(row["spans"])
    assert later >= 16
    mixtures = [[span["mixture"] for span in row["sentence_mixtures"]] for row in rows]
    assert any(len(set(found)) > 2 for found in mixtures), "an answer changed to an adapter that its prompt has not"


def test_record_granularity_has_no_columns_of_sentences(settings: JobSettings) -> None:
    table = routed(replace(settings, sentences=None), list(prompts()))
    assert not {"spans", "context"} & set(table.schema.names)
    [row, *_] = generated(replace(settings, sentences=None), table)
    assert "sentence_mixtures" not in row


WORDS = ("routing.granularity=sentence", "routing.min_sentence_tokens=4")


def write_input(settings: JobSettings) -> None:
    lines = [
        json.dumps({"id": f"r{i}", "prompt": prompt, "sentence_mixtures": i}) for i, prompt in enumerate(prompts())
    ]
    Path(settings.input).write_text("\n".join(lines) + "\n")


def test_the_route_command_writes_the_mixtures_of_sentences(settings: JobSettings, tmp_path: Path) -> None:
    write_input(settings)
    assert route_job.main(words_of(settings, tmp_path / "routes", *WORDS)) == 0
    table = pq.read_table(tmp_path / "routes" / "routes.parquet")
    expected = [row["spans"] for row in routed(settings, list(prompts())).to_pylist()]
    assert table["sentence_mixtures"].to_pylist() == expected
    assert table["mixture"].to_pylist() == [f"{second}:1.0" for _, second in TASKS]


@pytest.mark.parametrize(
    "wrong", ["routing.granularity=token", "routing.language=English", "routing.min_sentence_tokens=0"]
)
def test_wrong_settings_are_refused(settings: JobSettings, tmp_path: Path, wrong: str) -> None:
    with pytest.raises(UserError, match=wrong.split("=")[0]):
        route_job.main([*words_of(settings, tmp_path / "routes", *WORDS), wrong])


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_job_by_sentence(settings: JobSettings) -> None:
    write_input(settings)
    result = GenerateJob(settings, log=lambda line: None).run(tiny_pools)
    assert (result.ok, result.counts.data) == (True, len(TASKS))
    table = read_run(settings.output).to_table()
    assert table.schema.names == [*DATA.names, "sentence_mixtures", "input_sentence_mixtures", *PROVENANCE.names]
    rows = sorted(table.to_pylist(), key=lambda row: row["input_sentence_mixtures"])
    expected = generated(settings, routed(settings, list(prompts())))
    for name in ("output", "sentence_mixtures", "mixture"):
        assert [row[name] for row in rows] == [row[name] for row in expected]
    assert all(len({span["mixture"] for span in row["sentence_mixtures"]}) > 1 for row in rows)
    assert [row["adapters"] for row in rows] == [[second] for _, second in TASKS]
    with pytest.raises(UserError, match=r"routing.granularity \(was 'sentence', is 'record'\)"):
        GenerateJob(replace(settings, sentences=None)).prepare()
    changed = replace(settings, sentences=replace(SENTENCES, context_sentences=5))
    with pytest.raises(UserError, match=r"routing.context_sentences \(was 2, is 5\)"):
        GenerateJob(changed).prepare()
