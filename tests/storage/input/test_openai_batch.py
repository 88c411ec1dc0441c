"""Requests of the OpenAI batch API come in unchanged, and go out in its form."""

import json
from typing import Any

import orjson
import pytest

from pipeline.engine import Sampling, override_sampling
from pipeline.records import Record
from pipeline.storage.input.columns import Columns
from pipeline.storage.input.formats import InputRow, format_of
from pipeline.storage.input.formats.openai_batch import as_record
from pipeline.storage.input.plan import plan_input
from pipeline.storage.input.read import read_split
from pipeline.storage.output.export import openai_response
from tests.storage import memory_url, user_error, write_file

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
    return COLUMNS.record(0, as_record(InputRow(values)))


def sampling(**body: Any) -> Sampling:
    made = record(request(**body))
    assert made.dead is None
    return override_sampling(Sampling(), made.sampling or {})


def test_a_request_is_a_record() -> None:
    made = record(request(max_tokens=7))
    assert (made.id, made.prompt, made.dead) == ("request-1", MESSAGES, None)
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
    assert made.prompt == [{"role": "user", "content": "ab"}]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (request() | {"url": "/v1/embeddings"}, "BadRequest: url is '/v1/embeddings'; only"),
        (request() | {"body": "text"}, "BadRequest: body is not an object"),
        (request(stream=True), "BadRequest: stream=true"),
        (request(response_format={"type": "xml"}), "BadRequest: response_format is none of"),
        (request(response_format={"type": "json_schema", "json_schema": {}}), "BadRequest: response_format is none of"),
        (request(response_format={"type": "json_schema"}), "BadRequest: response_format is none of"),
        (request(messages=None), "MissingPrompt: neither"),
        (request(messages="hi"), "BadMessages: "),
    ],
)
def test_a_request_that_cannot_be_answered_keeps_its_id(values: dict[str, Any], said: str) -> None:
    made = record(values)
    assert made.dead is not None
    assert made.id == "request-1"
    assert f"{made.dead.error_type}: {made.dead.message}".startswith(said)


def test_what_means_nothing_here_is_told_by_name() -> None:
    with pytest.raises(ValueError, match="unknown setting 'tools'"):
        sampling(tools=[{"type": "function"}])


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
    with user_error("has none of the suffixes .jsonl, .ndjson, .json (input.layout=openai_batch)", "a.parquet"):
        format_of("a.parquet", "openai_batch")


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
