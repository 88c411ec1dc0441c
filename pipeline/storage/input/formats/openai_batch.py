"""Request files of the OpenAI batch API: the `body` of a request becomes the columns of a record.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": [...], ...}}

`body.messages` or `body.prompt` is the prompt. Sampling keys of the body become the record's own settings. An unknown
key makes the record a dead letter that names the key, except keys that cannot change an answer. `body.model` and `url`
are passed through.
"""

from typing import Any

import fsspec

from pipeline.records import DeadLetter
from pipeline.storage.types.values import dumps

from .base import FILE_START, InputRow, LocatedRows, SeekPoint
from .jsonl import Jsonl

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ID, MODEL, URL, SAMPLING = "custom_id", "request_model", "request_url", "sampling"
_NO_EFFECT = ("model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")


class OpenAiBatch(Jsonl):
    """JSON lines of requests; see `Jsonl`."""

    layout = "openai_batch"

    def read(self, fs: fsspec.AbstractFileSystem, path: str, start: SeekPoint = FILE_START) -> LocatedRows:
        """Yield the rows from ``start`` on."""
        for offset, row in super().read(fs, path, start):
            yield offset, as_record(row)


def as_record(row: InputRow) -> InputRow:
    """Turn a request into a row with `custom_id`, `prompt` or `messages`, `sampling` and the passed-through columns."""
    if row.values is None:
        return row
    body, url = row.values.get("body"), row.values.get("url")
    known = {ID: row.values.get(ID), URL: url if isinstance(url, str) else None}
    if url not in (CHAT, TEXT):
        return _refused(known, f"url is {str(url)[:100]!r}; only {CHAT} and {TEXT} are answered")
    if not isinstance(body, dict):
        return _refused(known, "body is not an object")
    prompt = "messages" if url == CHAT else "prompt"
    values = known | {MODEL: body.get("model"), prompt: _join_parts(body.get(prompt))}
    try:
        settings = _settings({key: value for key, value in body.items() if key != prompt}, url == CHAT)
    except ValueError as error:
        return _refused(values, str(error))
    return InputRow(values | {SAMPLING: dumps(settings) if settings else None})


def _refused(values: dict[str, Any], message: str) -> InputRow:
    return InputRow(values, DeadLetter("read", "BadRequest", message))


def _join_parts(messages: Any) -> Any:
    """Join the text parts of each message's content into one text, as chat templates expect it."""
    if not isinstance(messages, list):
        return messages
    return [m | {"content": _text(m["content"])} if isinstance(m, dict) and "content" in m else m for m in messages]


def _text(content: Any) -> Any:
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        return "".join(str(part.get("text", "")) for part in content)
    return content


def _settings(body: dict[str, Any], chat: bool) -> dict[str, Any]:
    """Sampling settings by the names that records may use; `ValueError` for a setting that is not supported."""
    settings = {key: value for key, value in body.items() if key not in _NO_EFFECT and value is not None}
    if settings.pop("stream", False):
        raise ValueError("stream=true is not supported in a batch")
    if "response_format" in settings:
        settings |= _constraint(settings.pop("response_format"))
    if chat and "logprobs" in settings:
        has_logprobs, top = settings.pop("logprobs"), settings.pop("top_logprobs", 0)
        if has_logprobs is True:
            settings["logprobs"] = top
    return settings


def _constraint(response_format: Any) -> dict[str, Any]:
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_schema": {"type": "object"}}
    wrapper = response_format.get("json_schema") if kind == "json_schema" else None
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    if not isinstance(schema, dict):
        raise ValueError("response_format is none of text, json_object and json_schema with a schema")
    return {"json_schema": schema}
