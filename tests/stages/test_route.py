"""The route stage, called without Ray."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.conversations import PromptSettings
from pipeline.records import Conversation, DeadLetter, Prompt, Record
from pipeline.routing import PartSettings, RoutingPolicy, SentenceSettings
from pipeline.settings import JobSettings
from pipeline.stages.generate import GenerateRecords
from pipeline.stages.route import RouteRecords
from pipeline.storage.input.read import staged_table
from tests import tiny
from tests.stages import tiny_job


@pytest.fixture
def route_settings(tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path) -> JobSettings:
    return tiny_job(tmp_path, tiny_model, tiny_bank, tiny_router)


def route(settings: JobSettings, *prompts: Prompt, dead: DeadLetter | None = None) -> list[dict[str, Any]]:
    records = [Record(i, f"r{i}", prompt) for i, prompt in enumerate(prompts)]
    if dead:
        records.append(Record(len(records), "dead", None, raw="{", dead=dead))
    rows: list[dict[str, Any]] = RouteRecords(settings, tiny.CONTEXT)(staged_table(records, pa.schema([]))).to_pylist()
    return rows


def test_prompts_get_the_adapter_of_their_words(route_settings: JobSettings) -> None:
    rows = route(route_settings, *(tiny.prompts_of(name, 3)[2] for name in tiny.ADAPTERS))
    assert [row["mixture"] for row in rows] == [f"{name}:1.0" for name in tiny.ADAPTERS]
    assert all(row["tokens"] and not row["fallback"] for row in rows)


def test_prompts_outside_the_domain_get_the_base_model(route_settings: JobSettings) -> None:
    settings = replace(route_settings, routing=RoutingPolicy(gate=True))
    inside, outside = route(settings, tiny.prompts_of("red", 3)[2], "(){}[];:?!" * 5)
    assert (inside["fallback"], inside["mixture"]) == (False, "red:1.0")
    assert (outside["fallback"], outside["mixture"]) == (True, "base")
    assert outside["route_score"] < inside["route_score"]
    assert inside["route_confidence"] > 0.9
    assert 1 / len(tiny.ADAPTERS) < outside["route_confidence"] <= 1


def test_prompts_outside_the_domain_can_get_a_blend(route_settings: JobSettings) -> None:
    settings = replace(route_settings, routing=RoutingPolicy(fallback="all"))
    [row] = route(settings, "(){}[];:?!" * 5)
    assert (row["fallback"], row["mixture"]) == (True, "+".join(f"{name}:0.125" for name in sorted(tiny.ADAPTERS)))


def test_no_adapters_allowed_is_the_base_model_for_all(route_settings: JobSettings) -> None:
    rows = route(replace(route_settings, routing=RoutingPolicy(max_adapters=0)), "red1 red2", "cold1")
    assert {row["mixture"] for row in rows} == {"base"}


@pytest.mark.parametrize(("policy", "kept"), [("truncate_left", "glad"), ("truncate_right", "red")])
def test_long_prompts_are_cut_where_asked(route_settings: JobSettings, policy: Any, kept: str) -> None:
    prompt = "red1 red2 " * 150 + "glad1 glad2 " * 150
    [row] = route(replace(route_settings, long_prompts=policy), prompt)
    assert len(row["tokens"]) == tiny.CONTEXT - 8
    assert row["mixture"] == f"{kept}:1.0"


@pytest.mark.parametrize("policy", ["truncate_left", "truncate_right"])
def test_a_cut_conversation_keeps_its_template(route_settings: JobSettings, policy: Any) -> None:
    settings = replace(route_settings, long_prompts=policy)
    [row] = route(settings, Conversation([{"role": "user", "content": "red1 red2 " * 300}]))
    text = RouteRecords(settings, tiny.CONTEXT).prompts.tokenizer.decode(row["tokens"])
    assert len(row["tokens"]) == tiny.CONTEXT - 8
    assert text.startswith("<|user|>")
    assert text.endswith("\n<|assistant|>")


def test_a_cut_conversation_keeps_its_system_message(route_settings: JobSettings) -> None:
    """A template may write a system message of its own where there is none; special tokens in it stay text."""
    stage = RouteRecords(replace(route_settings, long_prompts="truncate_left"), tiny.CONTEXT)
    tokenizer = stage.prompts.tokenizer
    tokenizer.chat_template = "{% if messages[0].role != 'system' %}Default.{% endif %}" + tiny.TEMPLATE
    messages = [{"role": "system", "content": "Be brief<end>."}, {"role": "user", "content": "red1 red2 " * 300}]
    records = [Record(0, "a", Conversation(messages)), Record(1, "b", Conversation(messages[1:]))]
    own, default = stage(staged_table(records, pa.schema([])))["tokens"].to_pylist()
    assert (len(own), len(default)) == (tiny.CONTEXT - 8, tiny.CONTEXT - 8)
    assert tokenizer.decode(own).startswith("<|system|>Be brief<end>.\n<|user|>")
    assert tokenizer.eos_token_id not in own
    assert tokenizer.decode(default).startswith("Default.<|user|>")


ITEMS = {"role": "user", "content": "1. red1 red2 red3\n2. glad1 glad2 glad3\n"}
LONG = {"role": "user", "content": "red1 red2 " * 300}


@pytest.mark.parametrize("changes", [{"parts": PartSettings()}, {"sentences": SentenceSettings()}, {}])
@pytest.mark.parametrize(
    ("template", "prompt", "said"),
    [
        (None, Conversation([ITEMS]), "the model's tokenizer has no chat template for messages"),
        (
            tiny.TEMPLATE,
            Conversation([ITEMS], {"tools": [{"name": "f"}]}),
            "tools: the chat template does not write it",
        ),
        (tiny.TEMPLATE, Conversation([ITEMS], {"chat_template": "x"}), "chat_template_kwargs: 'chat_template' is not"),
        ("{{ raise_exception('no') }}", Conversation([ITEMS]), "message 0, key 'role': no"),
        (
            "{{ messages[0].content + messages[1].content }}",
            Conversation([LONG, LONG]),
            "2401 prompt tokens; beside the answer's 8",
        ),
    ],
)
def test_a_conversation_that_is_refused_stops_no_other(
    route_settings: JobSettings, changes: dict[str, Any], template: str | None, prompt: Conversation, said: str
) -> None:
    """What its template writes around a message is asked for parts and sentences, and to cut it."""
    stage = RouteRecords(replace(route_settings, long_prompts="truncate_left", **changes), tiny.CONTEXT)
    stage.prompts.tokenizer.chat_template = template
    records = [Record(0, "a", prompt), Record(1, "b", "red1 red2")]
    bad, good = stage(staged_table(records, pa.schema([]))).to_pylist()
    assert bad["dead"]["message"].removeprefix("part 1 of 2: ").startswith(said)
    assert good["mixture"] == "red:1.0"


def test_arguments_of_the_template_may_be_whole_numbers_of_any_size(route_settings: JobSettings) -> None:
    settings = replace(route_settings, long_prompts="truncate_left")
    [row] = route(settings, Conversation([LONG], {"seed": 2**70}))
    assert len(row["tokens"]) == tiny.CONTEXT - 8


def test_long_prompts_are_dead_letters_else(route_settings: JobSettings) -> None:
    long, short = route(route_settings, "red1 red2 " * 150, "red1 red2")
    assert (long["dead"]["stage"], long["dead"]["error_type"]) == ("route", "PromptTooLong")
    assert "the context leaves 248" in long["dead"]["message"]
    assert (long["mixture"], long["tokens"], short["dead"]) == ("", None, None)


@pytest.mark.parametrize("own", [{"max_tokens": tiny.CONTEXT}, {"max_tokens": 10**6}, {"choices": ["red1 " * 600]}])
@pytest.mark.parametrize("policy", ["dead_letter", "truncate_left"])
def test_an_answer_that_fills_the_context_is_the_cause_by_name(
    route_settings: JobSettings, policy: Any, own: dict[str, Any]
) -> None:
    stage = RouteRecords(replace(route_settings, long_prompts=policy), tiny.CONTEXT)
    [row] = stage(staged_table([Record(0, "a", "red1", sampling=own)], pa.schema([]))).to_pylist()
    assert row["dead"]["error_type"] == "BadSampling"
    assert "max_tokens or choices of the record" in row["dead"]["message"]
    assert f"no room for a prompt in the model's context of {tiny.CONTEXT}" in row["dead"]["message"]


def test_messages_go_through_the_chat_template(route_settings: JobSettings) -> None:
    text = "red1 red2 red3"
    plain, chat = route(route_settings, text, Conversation([{"role": "user", "content": text}]))
    assert len(chat["tokens"]) > len(plain["tokens"]) + 10  # "<|user|>", "<|assistant|>"
    assert chat["mixture"] == "red:1.0"


def test_a_conversation_that_the_template_refuses_is_dead_alone(route_settings: JobSettings) -> None:
    stage = RouteRecords(route_settings, tiny.CONTEXT)
    stage.prompts.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    records = [
        Record(0, "a", "red1"),
        Record(1, "b", Conversation([{"role": "user", "content": "x"}])),
        Record(2, "c", "cold1"),
    ]
    rows = stage(staged_table(records, pa.schema([]))).to_pylist()
    assert [row["dead"] and row["dead"]["error_type"] for row in rows] == [None, "ChatTemplateError", None]
    assert "roles must alternate" in rows[1]["dead"]["message"]
    assert [rows[0]["mixture"], rows[2]["mixture"]] == ["red:1.0", "cold:1.0"]


@pytest.mark.parametrize(
    ("policy", "ends", "dead"),
    [("continue", "<|assistant|>cold1", None), ("drop", "<|assistant|>", None), ("refuse", "", "LastAssistant")],
)
def test_conversations_that_end_with_the_assistant_are_counted(
    route_settings: JobSettings, policy: Any, ends: str, dead: str | None
) -> None:
    model = replace(route_settings.model, prompts=PromptSettings(last_assistant=policy))
    talk = [{"role": "user", "content": "red1 red2"}, {"role": "assistant", "content": "cold1"}]
    settings = replace(route_settings, model=model)
    last, other = route(settings, Conversation(talk), Conversation(talk[:1]))
    assert (last["dead"] and last["dead"]["error_type"], last["last_assistant"]) == (dead, None if dead else True)
    assert other["last_assistant"] is False
    if not dead:
        text = RouteRecords(settings, tiny.CONTEXT).prompts.tokenizer.decode(last["tokens"])
        assert text == f"<|user|>red1 red2\n{ends}"


def test_dead_letters_pass_untouched(route_settings: JobSettings) -> None:
    letter = DeadLetter("read", "InvalidJson", "unexpected end")
    good, dead = route(route_settings, "red1", dead=letter)
    assert good["dead"] is None
    assert (DeadLetter(**dead["dead"]), dead["raw"], dead["mixture"]) == (letter, "{", "")


def test_a_table_of_dead_letters_alone_is_routed(route_settings: JobSettings) -> None:
    [row] = route(route_settings, dead=DeadLetter("read", "NotAnObject", "the line holds a list"))
    assert row["mixture"] == ""


def test_a_table_of_dead_letters_alone_needs_no_generation(route_settings: JobSettings) -> None:
    letter = DeadLetter("read", "NotAnObject", "the line holds a list")
    routed = RouteRecords(route_settings, tiny.CONTEXT)(
        staged_table([Record(0, "dead", raw="", dead=letter)], pa.schema([]))
    )
    [row] = GenerateRecords(route_settings, "cpu", 1)(routed).to_pylist()
    assert (row["dead"]["error_type"], row["output"]) == ("NotAnObject", None)
