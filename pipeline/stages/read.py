"""Read stage: turn splits of the input into tables of records."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from pipeline.storage.input.columns import Columns
from pipeline.storage.input.files import is_changed
from pipeline.storage.input.formats import SeekPoint
from pipeline.storage.input.plan import InputPlan, Split
from pipeline.storage.input.read import read_split, staged_tables
from pipeline.storage.store.redact import masked, masking
from pipeline.telemetry.incidents import Incidents

Missing = Mapping[int, np.ndarray | None]
"""Rows to answer by window, as sorted indices in the window; None for all rows of a window."""

_MAX_TABLE_ROWS = 512  # small, so that routing starts early
_MAX_BLOCKS = 4096  # of splits: a billion rows are half a million splits, and Ray Data's driver handles each block


def count_missing(plan: InputPlan, missing: Missing) -> int:
    """Return the number of missing rows."""
    return sum(plan.window_size(window) if rows is None else len(rows) for window, rows in missing.items())


def split_tables(plan: InputPlan, missing: Missing) -> list[pa.Table]:
    """Return the splits that hold missing rows, in the order of the input, as tables for the blocks of a dataset.

    A split is one row of JSON with all that its reader needs: its window, its rows to answer (null: all), and its
    repeated ids.
    """
    splits = pa.table({"split": [orjson.dumps(split) for split in _splits(plan, missing)]})
    rows = -(-splits.num_rows // _MAX_BLOCKS) or 1
    return [splits.slice(start, rows) for start in range(0, splits.num_rows, rows)]


def _splits(plan: InputPlan, missing: Missing) -> Iterator[dict[str, Any]]:
    for window, rows in sorted(missing.items()):
        repeated = plan.duplicates_of(window)
        repeated_rows = np.array(sorted(repeated), np.int64)
        for split in plan.splits(window):
            wanted = None if rows is None else _within(rows, split)
            if wanted is None or wanted:
                ids = [(row, *repeated[row]) for row in _within(repeated_rows, split)]
                yield {"window": window, "split": split, "rows": wanted, "repeated": ids}


def _within(rows: np.ndarray, split: Split) -> list[int]:
    found: list[int] = rows[slice(*rows.searchsorted([split.row, split.row + split.take]))].tolist()
    return found


class SplitReader:
    """Reads splits; ``max_rows``: of a table."""

    def __init__(
        self, url: str, columns: Columns, plan: InputPlan, incidents: Incidents, max_rows: int = _MAX_TABLE_ROWS
    ) -> None:
        self.url, self.columns, self.incidents = url, columns, incidents
        self.passed = plan.passed
        self.files = {file.path: file for file in plan.files}
        self.max_rows = min(max_rows, _MAX_TABLE_ROWS)

    def read(self, splits: pa.Table) -> Iterator[pa.Table]:
        """Yield the rows to answer, as `storage.input.read.staged_schema` with the column ``window``."""
        with self.incidents.recording("read"), masking():
            for text in splits["split"].to_pylist():
                yield from self._read(orjson.loads(text))

    def _read(self, values: dict[str, Any]) -> Iterator[pa.Table]:
        split = Split(**values["split"] | {"start": SeekPoint(**values["split"]["start"])})
        repeated = {row: (first, rank) for row, first, rank in values["repeated"]}
        records = read_split(self.url, split, self.columns, repeated)
        if values["rows"] is not None:
            wanted = set(values["rows"])
            records = (record for record in records if record.row in wanted)
        for part in staged_tables(records, self.passed, self.max_rows):
            # Checked after the read and before the answer: rows of another file must never be committed.
            if is_changed(self.url, self.files[split.path]):
                raise RuntimeError(f"{masked(split.path)} was changed or removed while it was read")
            yield part.append_column("window", pa.array(np.full(part.num_rows, values["window"], np.int32)))
