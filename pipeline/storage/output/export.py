"""Export committed rows to Parquet, JSON lines or the OpenAI batch API's files, batch by batch."""

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any, Literal
from urllib.parse import quote

import pyarrow as pa
import pyarrow.dataset
import pyarrow.types as kinds

from pipeline.conversations.openai_batch import CHAT, MODEL, URL
from pipeline.errors import UserError
from pipeline.exact_json import dumps
from pipeline.storage.input.partitions import HIVE_NULL
from pipeline.storage.store.redact import masked, user_errors
from pipeline.storage.store.urls import open_url
from pipeline.storage.types.values import python_rows, python_values

from .run import read_dead, read_run, run_values

Kind = Literal["parquet", "jsonl", "openai_batch"]
_BATCH_ROWS = 1024
_MAX_PARTITIONS = 1024
_MAX_NAME = 255  # bytes, of a folder


def export_parquet(url: str, to: str, column: str | None) -> int:
    """Write a run's data as Parquet, with a folder ``column=value`` per value; returns the number of rows."""
    dataset = read_run(url)
    if column is not None and column not in dataset.schema.names:
        raise UserError(f"export: the run has no column {column!r}; it has {', '.join(dataset.schema.names)}")
    fs, root = open_url(to)
    if fs.exists(root) and fs.ls(root):
        raise UserError(f"export: {masked(to)} is not empty; give another --to")
    partitioning = None if column is None else _partitioning(dataset, column)
    with user_errors(f"export: cannot write to {masked(to)}"):
        pyarrow.dataset.write_dataset(
            dataset,
            root,
            format="parquet",
            filesystem=fs,
            partitioning=partitioning,
            max_partitions=_MAX_PARTITIONS,
            max_rows_per_group=2**16,
        )
    return int(dataset.count_rows())


def _partitioning(dataset: pa.dataset.Dataset, column: str) -> pa.dataset.Partitioning:
    """Partition by a column; `UserError` if a value cannot name a folder, or if there are too many values."""
    field = dataset.schema.field(column)
    if kinds.is_nested(field.type) or kinds.is_binary(field.type):
        raise UserError(f"export: the column {column!r} holds lists, objects or bytes; give another column")
    if not column or "/" in column or "=" in column:
        raise UserError(f"export: no folder can be named after the column {column!r}; give another column")
    values: set[Any] = set()
    for batch in dataset.to_batches(columns=[column], batch_size=2**16):
        values.update(python_values(batch[0]))
        if len(values) > _MAX_PARTITIONS:
            raise UserError(f"export: the column {column!r} has more than {_MAX_PARTITIONS} values; choose another")
    unfit = [value for value in values if value == HIVE_NULL or len(quote(f"{column}={value}")) > _MAX_NAME]
    if unfit:
        shown = f"{unfit[0][:100]!r}, after which no folder can be named"
        raise UserError(f"export: the column {column!r} holds {shown}; give another column")
    return pyarrow.dataset.partitioning(pa.schema([field]), flavor="hive")


def export_lines(url: str, to: str, kind: Kind, replace: bool = False) -> int:
    """Write a run's data as JSON lines; returns the number of rows.

    ``replace``: a file that is there; else it raises `UserError`.
    """
    rows = _rows(read_run(url))
    if kind == "jsonl":
        return _write(to, map(dumps, rows), replace)
    model = (run_values(url) or {}).get("config", {}).get("model", {}).get("path", "")
    return _write(to, (dumps(openai_response(row, model)) for row in rows), replace)


def export_errors(url: str, to: str, replace: bool = False) -> int:
    """Write a run's dead letters as the error file of the OpenAI batch API; see `export_lines`."""
    return _write(to, map(_error_line, _rows(read_dead(url))), replace)


def _rows(dataset: pa.dataset.Dataset) -> Iterator[dict[str, Any]]:
    for batch in dataset.to_batches(batch_size=_BATCH_ROWS, batch_readahead=1, fragment_readahead=1):
        yield from python_rows(batch)


def _write(to: str, lines: Iterable[str], replace: bool) -> int:
    fs, path = open_url(to)
    if not replace and fs.exists(path):
        raise UserError(f"export: {masked(to)} exists; give another file")
    fs.makedirs(path.rpartition("/")[0] or "/", exist_ok=True)
    part, count = f"{path}.part", 0
    with fs.open(part, "wb") as f:
        for line in lines:
            f.write(line.encode() + b"\n")
            count += 1
    fs.mv(part, path)
    return count


def openai_response(row: dict[str, Any], model: str) -> dict[str, Any]:
    """A data row as a line of the OpenAI batch API's output file; the routing is in ``loraloom``."""
    chat = row.get(URL, CHAT) == CHAT
    body = {
        "id": f"loraloom-{row['id']}",
        "object": "chat.completion" if chat else "text_completion",
        "model": row.get(MODEL) or model,
        "choices": [_choice(index, answer, chat) for index, answer in enumerate(row.get("outputs") or [row])],
        "usage": {
            "prompt_tokens": row["prompt_tokens"],
            "completion_tokens": row["completion_tokens"],
            "total_tokens": row["prompt_tokens"] + row["completion_tokens"],
        },
        "loraloom": {name: row[name] for name in ("mixture", "route_score", "route_confidence", "fallback")},
    }
    return {
        "id": f"batch-{row['id']}",
        "custom_id": row["id"],
        "response": {"status_code": 200, "request_id": row["id"], "body": body},
        "error": None,
    }


def _choice(index: int, answer: dict[str, Any], chat: bool) -> dict[str, Any]:
    text = {"message": {"role": "assistant", "content": answer["output"]}} if chat else {"text": answer["output"]}
    tokens = answer.get("logprobs")
    logprobs = None if tokens is None else _chat_logprobs(tokens) if chat else _text_logprobs(tokens)
    reason = "length" if answer["finish_reason"] == "length" else "stop"
    return {"index": index, **text, "logprobs": logprobs, "finish_reason": reason}


def _chat_logprobs(tokens: list[dict[str, Any]]) -> dict[str, Any]:
    content = [_token(t) | {"top_logprobs": [_token(o) for o in t.get("top_logprobs") or []]} for t in tokens]
    return {"content": content}


def _text_logprobs(tokens: list[dict[str, Any]]) -> dict[str, Any]:
    """Return log probabilities as the API for completions has them; offsets are characters of the answer."""
    texts = [token["token"] for token in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [{o["token"]: o["logprob"] for o in token.get("top_logprobs") or []} for token in tokens],
        "text_offset": list(accumulate(map(len, texts[:-1]), initial=0)) if texts else [],
    }


def _token(token: dict[str, Any]) -> dict[str, Any]:
    return {"token": token["token"], "logprob": token["logprob"], "bytes": list(token["token"].encode())}


def _error_line(row: dict[str, Any]) -> str:
    error = {"code": row["error_type"], "message": row["message"]}
    return dumps({"id": f"batch-{row['id']}", "custom_id": row["id"], "response": None, "error": error})
