"""Shards of rows whose kind is their number, writers that are killed at a write, and what a reader then sees."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.records import DATA, DEAD
from pipeline.storage.commit import marker_store as markers_module
from pipeline.storage.commit import output_files as outputs_module
from pipeline.storage.commit.counts import Counts, count_rows
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import Shard
from pipeline.storage.commit.window import commit_shard
from pipeline.storage.store import bulk as many_module
from pipeline.storage.store.objects import create, put, remove

WINDOW = 3


class KilledError(Exception):
    """The process is killed here."""


@contextmanager
def crash_at(write: int | None) -> Iterator[None]:
    """Kill the writer at the ``write``-th object (from 0) that it writes or removes; None: it lives."""
    written = 0

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def write_or_die(fs: fsspec.AbstractFileSystem, path: str, *content: bytes) -> Any:
            nonlocal written
            if written == write:
                raise KilledError
            written += 1
            return call(fs, path, *content)

        return write_or_die

    with (
        mock.patch.object(outputs_module, "put", dying(put)),
        mock.patch.object(markers_module, "create", dying(create)),
        mock.patch.object(many_module, "remove", dying(remove)),
    ):
        yield


def is_dead(row: int) -> bool:
    return row % 4 == 3


def data_table(rows: list[int], by: str = "") -> pa.Table:
    values = {
        "id": [str(r) for r in rows],
        "output": [f"{by}:{r}" for r in rows],
        "finish_reason": ["stop" if r % 2 else "length" for r in rows],
        "prompt_tokens": rows,
        "completion_tokens": [2 * r for r in rows],
        "mixture": [f"m{r % 3}:1.0" for r in rows],
        "fallback": [r % 5 == 0 for r in rows],
        "last_assistant": [r % 4 == 0 for r in rows],
    }
    return pa.table([pa.array(values.get(f.name, [None] * len(rows)), f.type) for f in DATA], schema=DATA)


def dead_table(rows: list[int]) -> pa.Table:
    values = {"id": [str(r) for r in rows], "error_type": [f"Error{r % 2}" for r in rows]}
    return pa.table([pa.array(values.get(f.name, [None] * len(rows)), f.type) for f in DEAD], schema=DEAD)


def write_shard(store: MarkerStore, name: str, rows: list[int], window: int = WINDOW) -> Shard:
    """What a write task does with the rows it got."""
    answered, dead = [r for r in rows if not is_dead(r)], [r for r in rows if is_dead(r)]
    tables = data_table(answered, name), dead_table(dead)
    places = np.array(answered, np.int64), np.array(dead, np.int64)
    shard = Shard(f"{store.shard_prefix(window)}{name}", None, None, *places, count_rows(*tables))
    return commit_shard(store, shard, *tables)


def visible(store: MarkerStore, kind: str, column: str = "id") -> list[str]:
    """Values of a column over all files that a reader takes."""
    files = [io.BytesIO(store.fs.cat_file(path)) for path in store.committed_files(kind)]
    return [value for file in files for value in pq.read_table(file)[column].to_pylist()]


def visible_rows(store: MarkerStore) -> list[int]:
    rows = {kind: [int(identity) for identity in visible(store, kind)] for kind in ("data", "dead")}
    assert [r for r in rows["data"] if is_dead(r)] + [r for r in rows["dead"] if not is_dead(r)] == []
    return sorted(rows["data"] + rows["dead"])


def tally_of(rows: list[int]) -> Counts:
    return count_rows(data_table([r for r in rows if not is_dead(r)]), dead_table([r for r in rows if is_dead(r)]))
