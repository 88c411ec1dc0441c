"""Find repeated ids in bounded memory."""

import hashlib
import tempfile
from array import array
from pathlib import Path

import numpy as np
import pyarrow as pa

_ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8")])
_PARTS = 64

DUPLICATES = pa.schema([("row", pa.int64()), ("first", pa.int64()), ("rank", pa.int64())])


class DuplicateFinder:
    """Collects a 128-bit hash of every id, and finds the rows that repeat an earlier id.

    Every ``memory_entries`` hashes are written to a temporary folder (24 bytes per row), in 64 parts by their first
    bits; `find` reads one part at a time.
    """

    def __init__(self, memory_entries: int = 500_000) -> None:
        self._memory_entries = memory_entries
        self._digests, self._rows = bytearray(), array("q")  # 16 and 8 bytes a row
        self._folder: tempfile.TemporaryDirectory[str] | None = None  # created by the first spill

    def add(self, identity: str, row: int) -> None:
        """Add the id of a row (counted over the whole input)."""
        self._digests += hashlib.blake2b(identity.encode(), digest_size=16).digest()
        self._rows.append(row)
        if len(self._rows) >= self._memory_entries:
            self._spill()

    def find(self) -> pa.Table:
        """Rows that repeat an id: ``row``, the ``first`` row with that id, and ``rank`` (1 for its second row)."""
        if self._folder is None:
            return _repeated(self._take()).sort_by("row")
        self._spill()
        with self._folder as folder:
            found = [_repeated(np.fromfile(part, _ENTRY)) for part in sorted(Path(folder).iterdir())]
        return pa.concat_tables(found).sort_by("row")

    def _spill(self) -> None:
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="loraloom-ids-")
        entries = self._take()
        part_of = entries["high"] >> np.uint64(58)
        for part in range(_PARTS):
            with (Path(self._folder.name) / f"{part:02d}").open("ab") as f:
                entries[part_of == part].tofile(f)

    def _take(self) -> np.ndarray:
        """The entries in memory, which is then empty."""
        entries = np.empty(len(self._rows), _ENTRY)
        digests = np.frombuffer(self._digests, "<u8").reshape(-1, 2)
        entries["high"], entries["low"] = digests[:, 0], digests[:, 1]
        entries["row"] = np.frombuffer(self._rows, np.int64)
        self._digests, self._rows = bytearray(), array("q")
        return entries


def _repeated(entries: np.ndarray) -> pa.Table:
    ordered = np.sort(entries, order=["high", "low", "row"])
    is_first = np.ones(len(ordered), bool)
    is_first[1:] = (ordered["high"][1:] != ordered["high"][:-1]) | (ordered["low"][1:] != ordered["low"][:-1])
    indices = np.arange(len(ordered))
    first = np.maximum.accumulate(np.where(is_first, indices, 0))
    columns = [ordered["row"], ordered["row"][first], indices - first]
    return pa.Table.from_arrays([pa.array(c[~is_first]) for c in columns], schema=DUPLICATES)
