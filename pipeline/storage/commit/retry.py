"""Dead letters of a finished window that are tried again: which rows, and what the window holds afterwards."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.storage.store.objects import StoreError

from .log import CommitLog
from .markers import Rows, WindowFiles, files_of

STAGES = ("route", "generate")  # what was refused as it was read would be so again


@dataclass(frozen=True)
class RetryFilter:
    """Dead letters of some stages, and of some error types (None: all)."""

    stages: Collection[str] = STAGES
    errors: Collection[str] | None = None

    def rows(self, letters: pa.Table) -> Rows:
        """Their rows in the input."""
        columns = (letters[name].to_pylist() for name in ("row", "stage", "error_type"))
        wanted = [
            row
            for row, stage, error in zip(*columns, strict=True)
            if stage in self.stages and (self.errors is None or error in self.errors)
        ]
        return np.array(sorted(wanted), np.int64)


def rows_to_retry(log: CommitLog, files: WindowFiles, wanted: RetryFilter) -> Rows:
    """Rows of the input whose dead letters in a window are wanted, sorted."""
    return np.concatenate([np.empty(0, np.int64), *(wanted.rows(log.read_table(path)) for path in files.dead)])


def amend_window(log: CommitLog, window: int, marker: str, first_row: int, retried: Rows) -> WindowFiles:
    """Give a finished window what came of the rows (of the window) ``retried``, in place of their dead letters.

    ``marker``: of the window, when it was begun; ``first_row``: of the window, in the input. Until the new marker is
    there, readers see the window as it was: its shard markers mean nothing to them. `StoreError` where a row that was
    answered has no letter any more, or the window another marker.
    """
    (files,) = log.marked([marker])
    shards = [shard for shard in log.cut_shards(window) if np.isin(shard.rows, retried).all()]
    answered = np.concatenate([np.empty(0, np.int64), *(shard.rows for shard in shards)]) + first_row
    kept, errors = _without(log, files.dead, answered, f"{log.prefix(window)}retry")
    if sum(errors.values()) != len(answered):
        raise StoreError(f"window {window}: its dead letters changed while they were tried again")
    new = files_of(shards)
    counts = files.counts.without_dead(errors) + new.counts
    return log.replace_window(window, marker, WindowFiles(files.data + new.data, kept + new.dead, counts))


def _without(log: CommitLog, paths: Sequence[str], rows: Rows, name: str) -> tuple[list[str], Counter[str]]:
    """Dead files without the letters of some rows, rewritten where they hold any; and the error types of those."""
    kept: list[str] = []
    errors: Counter[str] = Counter()
    for path in paths:
        letters = log.read_table(path)
        gone = np.isin(letters["row"].to_numpy(), rows)
        errors.update(letters.filter(pa.array(gone))["error_type"].to_pylist())
        left = log.write_table("dead", name, letters.filter(pa.array(~gone))) if gone.any() else path
        kept += [left] if left else []
    return kept, errors
