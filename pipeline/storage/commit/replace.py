"""Retry dead letters of a finished window: choose their rows, and replace the window's marker by a new version."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.storage.store.objects import StoreError, raises_store_error

from .marker_store import MarkerStore
from .markers import Rows, WindowFiles, merge_shards, next_marker
from .orphans import sweep_window
from .window import cut_overlap

RETRYABLE_STAGES = ("route", "generate")  # a record that could not be read would be refused again


@dataclass(frozen=True)
class RetryFilter:
    """Selects dead letters by stage and by error type (None: all types)."""

    stages: Collection[str] = RETRYABLE_STAGES
    errors: Collection[str] | None = None

    def includes(self, letter: dict[str, Any]) -> bool:
        """Whether a dead letter is selected."""
        return letter["stage"] in self.stages and (self.errors is None or letter["error_type"] in self.errors)


def rows_to_retry(store: MarkerStore, files: WindowFiles, selected: RetryFilter) -> Rows:
    """Input rows of a window's selected dead letters, sorted."""
    letters = (store.read_table(path).select(["row", "stage", "error_type"]) for path in files.dead)
    rows = (letter["row"] for table in letters for letter in table.to_pylist() if selected.includes(letter))
    return np.array(sorted(rows), np.int64)


def replace_dead_letters(store: MarkerStore, window: int, marker: str, first_row: int, retried: Rows) -> WindowFiles:
    """Replace dead letters of a finished window by the results of their retry.

    ``marker``: the window's marker when the retry started; ``first_row``: the window's first row in the input;
    ``retried``: rows of the window. Readers see the old window until the new marker is there, because the session's
    shard markers mean nothing to them. Raises `StoreError` if a retried row has no dead letter any more, or if the
    window got another marker meanwhile.
    """
    (files,) = store.read_windows([marker])
    shards = [shard for shard in cut_overlap(store, window) if np.isin(shard.rows, retried).all()]
    answered = np.concatenate([np.empty(0, np.int64), *(shard.rows for shard in shards)]) + first_row
    kept, errors = _without_letters(store, files.dead, answered, f"{store.shard_prefix(window)}retry")
    if sum(errors.values()) != len(answered):
        raise StoreError(f"window {window + 1}: its dead letters changed while they were retried; run it again")
    new = merge_shards(shards)
    counts = files.counts.without_dead(errors) + new.counts
    return replace_window(store, window, marker, WindowFiles(files.data + new.data, kept + new.dead, counts))


@raises_store_error()
def replace_window(store: MarkerStore, window: int, marker: str, files: WindowFiles) -> WindowFiles:
    """Write the version after ``marker``, and sweep what only the old version named.

    Raises `StoreError` if that version exists: another command replaced the window, and ``files`` are orphans.
    """
    listed = store.list_window(window)
    if not store.create_window(next_marker(marker), files):
        raise StoreError(f"window {window + 1} was changed meanwhile by another command; run this command again")
    return sweep_window(store, window, listed)


def _without_letters(store: MarkerStore, paths: Sequence[str], rows: Rows, name: str) -> tuple[list[str], Counter[str]]:
    """Dead-letter files without the letters of ``rows``, rewritten if they hold any; and those letters' error types."""
    kept: list[str] = []
    errors: Counter[str] = Counter()
    for path in paths:
        letters = store.read_table(path)
        is_retried = np.isin(letters["row"].to_numpy(), rows)
        errors.update(letters.filter(pa.array(is_retried))["error_type"].to_pylist())
        left = store.write_table("dead", name, letters.filter(pa.array(~is_retried))) if is_retried.any() else path
        kept += [left] if left else []
    return kept, errors
