"""Read stage: turn splits of the input into tables of records."""

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import ray

from pipeline.storage.input.columns import Columns
from pipeline.storage.input.files import is_changed
from pipeline.storage.input.formats import SeekPoint
from pipeline.storage.input.plan import InputPlan, Split
from pipeline.storage.input.read import read_split, staged_tables
from pipeline.storage.store.redact import masked, masking
from pipeline.telemetry.incidents import Incidents

_MAX_TABLE_ROWS = 512  # small, so that routing starts early


def split_tables(plan: InputPlan, window: int, missing: np.ndarray | None) -> list[pa.Table]:
    """Return a table of one row for each split of a window that has rows to answer. ``missing``: None for all."""
    return [
        pa.Table.from_pylist([asdict(split)])
        for split in plan.splits(window)
        if missing is None or ((missing >= split.row) & (missing < split.row + split.take)).any()
    ]


class SplitReader:
    """Reads splits, without the rows that are committed already; ``max_rows``: of a table."""

    def __init__(
        self,
        url: str,
        columns: Columns,
        plan: InputPlan,
        window: int,
        missing: np.ndarray | None,
        incidents: Incidents,
        max_rows: int = _MAX_TABLE_ROWS,
    ) -> None:
        self.url = url
        self.columns = columns
        self.passed = plan.passed
        self.incidents = incidents
        self.max_rows = min(max_rows, _MAX_TABLE_ROWS)
        paths = {split.path for split in plan.splits(window)}
        self.files = {file.path: file for file in plan.files if file.path in paths}
        # Shared by all tasks through the object store: these are arrays over a whole window.
        self.shared = ray.put((plan.duplicates_of(window), missing))

    def read(self, table: pa.Table) -> Iterator[pa.Table]:
        """Yield tables of `storage.input.read.staged_schema` for the splits in ``table``."""
        with self.incidents.recording("read"):
            yield from self._read(table)

    def _read(self, table: pa.Table) -> Iterator[pa.Table]:
        repeated, missing = ray.get(self.shared)
        with masking():
            yield from self._tables(table, repeated, missing)

    def _tables(
        self, table: pa.Table, repeated: dict[int, tuple[int, int]], missing: np.ndarray | None
    ) -> Iterator[pa.Table]:
        for row in table.to_pylist():
            split = Split(**row | {"start": SeekPoint(**row["start"])})
            records = read_split(self.url, split, self.columns, repeated)
            if missing is not None:
                wanted = set(missing[(missing >= split.row) & (missing < split.row + split.take)].tolist())
                records = (record for record in records if record.row in wanted)
            for part in staged_tables(records, self.passed, self.max_rows):
                # Checked after the read and before the answer: rows of another file must never be committed.
                if is_changed(self.url, self.files[split.path]):
                    raise RuntimeError(f"{masked(split.path)} was changed or removed while it was read")
                yield part
