"""Requests of the OpenAI batch API come in unchanged, and go out in its form."""

import json
from typing import Any

import orjson
import pytest

from pipeline.engine import Sampling, override_sampling
from pipeline.records import Conversation, Record
from pipeline.storage.input.columns import Columns
from pipeline.storage.input.formats import InputRow
from pipeline.storage.input.plan import plan_input
from pipeline.storage.input.read import read_split
from pipeline.storage.output.export import openai_response
from tests.storage import memory_url, write_file

COLUMNS = Columns("custom_id", sampling="sampling", layout="openai_batch")
MESSAGES = [{"role": "user", "content": "hi"}]


def request(**body: Any) -> dict[str, Any]:
    return {
        "custom_id": "request-1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "gpt-x", "messages": MESSAGES, **body},
    }


def record(values: dict[str, Any]) -> Record:
    return COLUMNS.record(0, COLUMNS.arranged(InputRow(values)))


def sampling(**body: Any) -> Sampling:
    made = record(request(**body))
    assert made.dead is None
    return override_sampling(Sampling(), made.sampling or {})


def test_a_request_is_a_record() -> None:
    made = record(request(max_tokens=7))
    assert (made.id, made.prompt, made.dead) == ("request-1", Conversation(MESSAGES), None)
    assert made.passed == {
        "request_model": "gpt-x",
        "request_url": "/v1/chat/completions",
        "sampling": '{"max_tokens":7}',
    }
    text = record({"custom_id": "b", "url": "/v1/completions", "body": {"prompt": "Once", "logprobs": 3}})
    assert (text.prompt, text.sampling) == ("Once", {"logprobs": 3})


def test_what_the_body_says_of_sampling_holds() -> None:
    body = {"temperature": 0.5, "top_p": 0.9, "max_completion_tokens": 5, "n": 2, "stop": "\n", "seed": 3}
    found = sampling(**body, presence_penalty=1, user="u", stream=False)
    assert (found.temperature, found.top_p, found.max_new_tokens, found.n) == (0.5, 0.9, 5, 2)
    assert (found.stop, found.seed, found.presence_penalty) == (("\n",), 3, 1.0)
    assert sampling(logprobs=True, top_logprobs=4).logprobs == 4
    assert sampling(logprobs=True).logprobs == 0
    assert sampling(logprobs=False).logprobs is None
    assert sampling() == sampling(response_format={"type": "text"}) == Sampling()


def test_response_formats_are_constraints() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    constraint = sampling(response_format=form).constraint
    assert constraint is not None
    assert json.loads(constraint.text) == schema
    assert list(json.loads(constraint.text)["properties"]) == ["b", "a"]
    objects = sampling(response_format={"type": "json_object"}).constraint
    assert objects is not None
    assert objects.kind == "json_schema"


def test_texts_in_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    made = record(request(messages=[{"role": "user", "content": parts}]))
    assert made.prompt == Conversation([{"role": "user", "content": "ab"}])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (request() | {"url": "/v1/embeddings"}, "BadRequest: url is '/v1/embeddings'; only"),
        (request() | {"body": "text"}, "BadRequest: body is not an object"),
        (request(response_format={"type": "xml"}), "BadRequest: response_format is none of"),
        (request(response_format={"type": "json_schema", "json_schema": {}}), "BadRequest: response_format is none of"),
        (request(response_format={"type": "json_schema"}), "BadRequest: response_format is none of"),
        (
            request(messages=None),
            "MissingPrompt: neither 'prompt' nor 'messages' has a value; a chat request needs body.",
        ),
        (request(messages="hi"), "BadMessages: "),
    ],
)
def test_a_request_that_cannot_be_answered_keeps_its_id(values: dict[str, Any], said: str) -> None:
    made = record(values)
    assert made.dead is not None
    assert made.id == "request-1"
    if made.dead.error_type == "BadRequest":
        assert made.raw == json.dumps(values, sort_keys=True, separators=(",", ":"))
    assert f"{made.dead.error_type}: {made.dead.message}".startswith(said)


CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize(
    ("url", "body"),
    [
        *(
            (CHAT, body)
            for body in (
                {"tools": []},
                {"tools": [], "tool_choice": "none", "parallel_tool_calls": False},
                {"tools": None, "tool_choice": "auto"},
                {"functions": [], "function_call": "none"},
                {"logit_bias": {}},
                {"stream": False, "stream_options": {"include_usage": True}},
                {"modalities": ["text"], "audio": None, "prediction": {"type": "content", "content": "x"}},
                {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "top_p": 1, "temperature": None},
                {"logprobs": False, "top_logprobs": 0},
                {"top_logprobs": 0},
                {"response_format": {"type": "text"}, "verbosity": "medium"},
                {"store": True, "service_tier": "auto", "metadata": {"k": "v"}, "user": "u", "prompt_cache_key": "z"},
                {"skip_special_tokens": True, "ignore_eos": False, "add_generation_prompt": True, "priority": 3},
                {"chat_template_kwargs": {}, "documents": [], "continue_final_message": False},
            )
        ),
        *(
            (TEXT, body)
            for body in ({"echo": False, "best_of": 1, "suffix": None}, {"suffix": "", "n": 1, "best_of": 1})
        ),
    ],
)
def test_parameters_without_effect_are_accepted(url: str, body: dict[str, Any]) -> None:
    given = {"messages": MESSAGES} if url == CHAT else {"prompt": "hi"}
    made = record({"custom_id": "a", "url": url, "body": given | body})
    assert made.dead is None
    assert made.prompt == (Conversation(MESSAGES) if url == CHAT else "hi")
    assert override_sampling(Sampling(), made.sampling or {}) == Sampling()


@pytest.mark.parametrize(
    ("url", "body", "said"),
    [
        (CHAT, {"tools": [{"type": "function"}]}, "tools: calls are not read from answers; with tool_choice=none"),
        (CHAT, {"tool_choice": "required"}, 'tool_choice="required" is not supported'),
        (CHAT, {"logit_bias": {"50256": -100}}, 'logit_bias={"50256":-100} is not supported'),
        (CHAT, {"verbosity": 2**70}, "verbosity=1180591620717411303424 is not supported"),
        (CHAT, {"stream": True}, "stream=true is not supported"),
        (CHAT, {"modalities": ["text", "audio"]}, 'modalities=["text","audio"] is not supported'),
        (CHAT, {"verbosity": "low"}, 'verbosity="low" is not supported'),
        (CHAT, {"ignore_eos": True}, "ignore_eos=true is not supported"),
        (CHAT, {"add_generation_prompt": False}, "add_generation_prompt=false is not supported"),
        (CHAT, {"top_logprobs": 2}, "logprobs is neither true nor false, or top_logprobs is given without it"),
        (CHAT, {"chat_template_kwargs": [1]}, "chat_template_kwargs is not an object"),
        (TEXT, {"echo": True}, "echo=true is not supported"),
        (TEXT, {"best_of": 3}, "best_of=3 is not supported"),
        (TEXT, {"suffix": "end"}, 'suffix="end" is not supported'),
        (TEXT, {"prompt": ["a", "b"]}, "prompt: a list that is not one text"),
    ],
)
def test_parameters_with_an_effect_are_refused_by_name(url: str, body: dict[str, Any], said: str) -> None:
    given = {"messages": MESSAGES} if url == CHAT else {"prompt": "hi"}
    made = record({"custom_id": "a", "url": url, "body": given | body})
    assert made.dead is not None
    assert (made.id, made.dead.error_type, made.dead.message[: len(said)]) == ("a", "BadRequest", said)


def test_other_parameters_are_settings_of_the_record() -> None:
    with pytest.raises(ValueError, match="unknown setting 'web_search_options'"):
        sampling(web_search_options={})
    one = record({"custom_id": "a", "url": TEXT, "body": {"prompt": ["hi"], "n": 2, "best_of": 2}})
    assert (one.prompt, one.sampling) == ("hi", {"n": 2})


def test_a_request_may_ask_to_continue_its_last_message() -> None:
    prefilled = [*MESSAGES, {"role": "assistant", "content": "No"}]
    made = record(request(messages=prefilled, add_generation_prompt=False, continue_final_message=True))
    assert made.prompt == Conversation(prefilled, {"continue_final_message": True})


def test_files_of_requests_are_planned_and_read() -> None:
    url = memory_url()
    lines = [request() | {"custom_id": f"r{i}"} for i in range(5)]
    write_file(f"{url}/a.jsonl", b"\n".join([orjson.dumps(line) for line in lines] + [b"{", orjson.dumps(lines[0])]))
    plan = plan_input(url, 100, COLUMNS)
    (split,) = plan.splits(0)
    records = list(read_split(url, split, COLUMNS, plan.duplicates_of(0)))
    assert [r.id for r in records[:5]] == [f"r{i}" for i in range(5)]
    assert [r.dead.error_type for r in records if r.dead] == ["InvalidJson", "DuplicateId"]
    assert plan.passed.names == ["request_url", "request_model", "sampling"]


def test_an_answer_has_the_form_of_the_api() -> None:
    token = {"token_id": 5, "token": "é", "logprob": -0.5}
    row = {
        "id": "r1",
        "output": "yes",
        "finish_reason": "stop",
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "mixture": "red:1.0",
        "route_score": 0.9,
        "route_confidence": 0.9,
        "fallback": False,
        "request_model": "gpt-x",
        "request_url": "/v1/chat/completions",
        "logprobs": [token | {"top_logprobs": [token]}],
    }
    line = openai_response(row, "base")
    assert (line["custom_id"], line["error"], line["response"]["status_code"]) == ("r1", None, 200)
    body = line["response"]["body"]
    assert (body["object"], body["model"], body["usage"]["total_tokens"]) == ("chat.completion", "gpt-x", 5)
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "yes"}
    assert choice["logprobs"]["content"][0]["bytes"] == [195, 169]
    several = [{"output": o, "finish_reason": r, "logprobs": None} for o, r in (("a", "length"), ("b", "choice"))]
    text = openai_response(row | {"request_url": "/v1/completions", "outputs": several}, "base")["response"]["body"]
    choices = [(c["index"], c["text"], c["finish_reason"]) for c in text["choices"]]
    assert choices == [(0, "a", "length"), (1, "b", "stop")]
    two = [token | {"top_logprobs": [token]}, token | {"token": "x", "top_logprobs": None}]
    text = openai_response(row | {"request_url": "/v1/completions", "logprobs": two}, "base")["response"]["body"]
    assert text["choices"][0]["logprobs"] == {
        "tokens": ["é", "x"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"é": -0.5}, {}],
        "text_offset": [0, 1],
    }
