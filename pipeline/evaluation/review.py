"""Choose the answers of a run that are most worth a look: the least certain ones, of all mixtures."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import heapify, heapreplace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.records import Mixture
from pipeline.storage import read_run
from pipeline.storage.types.values import python_rows

COLUMNS = (
    *("id", "task", "prompt", "messages", "tools", "chat_template_kwargs", "output", "answer", "certainty"),
    *("route_confidence", "answer_logprob", "choice_margin"),
    *("mixture", "fallback", "finish_reason"),
)
"""The columns of a review, as far as the run has them; the person who reviews fills in ``answer``."""

_BATCH_ROWS = 8192


@dataclass(frozen=True)
class Review:
    """Rows to look at, as dictionaries of `COLUMNS`, the least certain first. ``total``: rows of the run."""

    rows: list[dict[str, Any]]
    total: int
    mixtures: int


def choose_rows(url: str, count: int, seed: int | None = None) -> Review:
    """Choose ``count`` rows of a run, from each mixture in proportion to its rows.

    Within a mixture the least certain rows are chosen, or random ones with a ``seed``: these estimate the accuracy of
    the run. Reads the run once, and keeps ``count`` rows of each mixture at most. `UserError` if there is no run.
    """
    dataset = read_run(url)
    columns = [name for name in COLUMNS if name in dataset.schema.names]
    sizes: Counter[str] = Counter()
    kept: list[pa.Table] = []  # the rows that were chosen so far, then new ones
    for batch in dataset.to_batches(columns=columns, batch_size=_BATCH_ROWS):
        table = pa.Table.from_batches([batch])
        sizes.update(table["mixture"].to_pylist())
        certainties = certainty(table)
        order = certainties if seed is None else _shuffled(table["id"].to_pylist(), seed)
        kept.append(table.append_column("certainty", pa.array(certainties)).append_column("order", pa.array(order)))
        if sum(new.num_rows for new in kept[1:]) > kept[0].num_rows:  # sorted anew only where they have doubled
            kept = [_first_of_each(pa.concat_tables(kept), dict.fromkeys(sizes, count))]
    if not kept:
        return Review([], 0, 0)
    chosen = _first_of_each(pa.concat_tables(kept), quotas(sizes, count))
    chosen = chosen.sort_by([("order", "ascending"), ("id", "ascending")])
    return Review([_row(row) for row in python_rows(chosen)], sizes.total(), len(sizes))


def certainty(table: pa.Table) -> np.ndarray:
    """Return the certainty [rows] of rows of a run, from 0 to 1: of the route, times that of the answer.

    The certainty of an answer is the margin between the two likeliest choices, or else the geometric mean of its
    tokens' probabilities.
    """
    choice, tokens = _numbers(table, "choice_margin"), np.exp(_numbers(table, "answer_logprob"))
    answer = np.where(np.isnan(choice), tokens, choice)
    both: np.ndarray = np.nan_to_num(_numbers(table, "route_confidence"), nan=1.0) * np.nan_to_num(answer, nan=1.0)
    return both


def quotas(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Divide ``count`` rows among groups in proportion to their ``sizes`` (the method of Webster and Sainte-Laguë)."""
    found = dict.fromkeys(sizes, 0)
    heap = [(-float(size), name) for name, size in sizes.items()]
    heapify(heap)
    for _ in range(min(count, sum(sizes.values()))):
        name = heap[0][1]
        found[name] += 1
        is_full = found[name] == sizes[name]
        heapreplace(heap, (0.0 if is_full else -sizes[name] / (2 * found[name] + 1), name))
    return found


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    column = pc.cast(table[name], pa.float64())
    return np.asarray(pc.fill_null(column, np.nan).to_numpy())


def _shuffled(ids: Iterable[str], seed: int) -> list[float]:
    """Return a pseudo-random number from 0 to 1 for each id, the same wherever its row is read."""
    digests = (hashlib.blake2b(f"{seed} {name}".encode(), digest_size=6).digest() for name in ids)
    return [int.from_bytes(digest) / 2**48 for digest in digests]


def _first_of_each(table: pa.Table, counts: Mapping[str, int]) -> pa.Table:
    """Return the first rows of each mixture by ``order``, as many as ``counts`` says."""
    table = table.sort_by([("mixture", "ascending"), ("order", "ascending"), ("id", "ascending")])
    taken: Counter[str] = Counter()
    rows = []
    for row, mixture in enumerate(table["mixture"].to_pylist()):
        if taken[mixture] < counts[mixture]:
            taken[mixture] += 1
            rows.append(row)
    return table.take(pa.array(rows, pa.int64()))


def _row(row: dict[str, Any]) -> dict[str, Any]:
    mixture = Mixture.parse(row["mixture"])
    likeliest = max(zip(mixture.weights, mixture.adapters, strict=True), default=(0.0, ""))[1]
    made = {"task": row.get("task") or likeliest, "answer": row.get("answer")}
    return {name: value for name, value in (row | made).items() if name in COLUMNS}
