"""Request files of the OpenAI batch API, as they are: what `body` says becomes the columns that records have.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": [...], ...}}

`body.messages` or `body.prompt` is the prompt. What it says of sampling becomes the record's own settings; a key that
means nothing here makes it a dead letter that names the key, but for those that cannot change an answer. `body.model`
and `url` are passed through.
"""

from collections.abc import Iterator
from typing import Any

import fsspec
import orjson
import pyarrow as pa

from pipeline.records import DeadLetter

from .base import InputRow, SeekPoint
from .jsonl import Jsonl

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ID, MODEL, URL, SAMPLING = "custom_id", "request_model", "request_url", "sampling"
_NO_EFFECT = ("model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")


class OpenAiBatch:
    """JSON lines of requests; see `Jsonl`."""

    def __init__(self) -> None:
        self._lines = Jsonl()

    def scan(self, fs: fsspec.AbstractFileSystem, path: str) -> Iterator[tuple[int, InputRow]]:
        """See `Format.scan`."""
        for offset, row in self._lines.scan(fs, path):
            yield offset, as_record(row)

    def read(self, fs: fsspec.AbstractFileSystem, path: str, start: SeekPoint) -> Iterator[InputRow]:
        """See `Format.read`."""
        return map(as_record, self._lines.read(fs, path, start))

    def schema(self, fs: fsspec.AbstractFileSystem, path: str) -> pa.Schema | None:
        """JSON states no column types."""
        return None


def as_record(row: InputRow) -> InputRow:
    """A request as a row of the columns `custom_id`, `prompt` or `messages`, `sampling` and what is passed through."""
    if row.values is None:
        return row
    body, url = row.values.get("body"), row.values.get("url")
    known = {ID: row.values.get(ID), URL: url if isinstance(url, str) else None}
    if url not in (CHAT, TEXT):
        return _refused(known, f"url is {str(url)[:100]!r}; only {CHAT} and {TEXT} are answered")
    if not isinstance(body, dict):
        return _refused(known, "body is not an object")
    prompt = "messages" if url == CHAT else "prompt"
    values = known | {MODEL: body.get("model"), prompt: _plain(body.get(prompt))}
    try:
        settings = _settings({key: value for key, value in body.items() if key != prompt}, url == CHAT)
    except ValueError as error:
        return _refused(values, str(error))
    return InputRow(values | {SAMPLING: orjson.dumps(settings).decode() if settings else None})


def _refused(values: dict[str, Any], message: str) -> InputRow:
    return InputRow(values, DeadLetter("read", "BadRequest", message))


def _plain(messages: Any) -> Any:
    """Messages with contents of text parts joined to one text, as chat templates take them."""
    if not isinstance(messages, list):
        return messages
    return [m | {"content": _text(m["content"])} if isinstance(m, dict) and "content" in m else m for m in messages]


def _text(content: Any) -> Any:
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        return "".join(str(part.get("text", "")) for part in content)
    return content


def _settings(body: dict[str, Any], chat: bool) -> dict[str, Any]:
    """Sampling settings by the names that records may use; `ValueError` for what has another meaning here."""
    settings = {key: value for key, value in body.items() if key not in _NO_EFFECT and value is not None}
    if settings.pop("stream", False):
        raise ValueError("stream=true: a batch has no streams")
    form = settings.pop("response_format", None)
    if form is not None:
        settings |= _form(form)
    if chat and "logprobs" in settings:
        wanted, top = settings.pop("logprobs"), settings.pop("top_logprobs", 0)
        if wanted is True:
            settings["logprobs"] = top
    return settings


def _form(form: Any) -> dict[str, Any]:
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_schema": {"type": "object"}}
    named = form.get("json_schema") if kind == "json_schema" else None
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        raise ValueError("response_format is none of text, json_object and json_schema with a schema")
    return {"json_schema": schema}
