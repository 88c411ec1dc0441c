"""Results that an evaluation has computed so far, so that an interrupted one continues where it stopped."""

import hashlib
import io
import time
import uuid
from collections.abc import Mapping
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.records import COMPLETED
from pipeline.storage.store.objects import list_names, put
from pipeline.storage.store.redact import masked, masked_error
from pipeline.storage.store.urls import open_url

Key = tuple[str, str]
"""Record id, and `Configuration.key`: the mixture's key, with the variant of the configuration if it has one."""

_KEY = [("id", pa.string()), ("mixture", pa.string()), ("error", pa.string())]
ANSWERS = pa.schema([*_KEY, *COMPLETED])
LIKELIHOODS = pa.schema([*_KEY, ("sums", pa.list_(pa.float64())), ("tokens", pa.list_(pa.int32()))])

_PART_ROWS, _PART_SECONDS = 256, 30  # the most that an interruption loses


def work_folder(url: str, identity: Mapping[str, Any]) -> str:
    """Create the folder below ``url`` for results of one identity: everything that decides them besides their key."""
    content = orjson.dumps(dict(identity), option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2)
    folder = f"{url.rstrip('/')}/{hashlib.sha256(content).hexdigest()[:16]}"
    fs, path = open_url(folder)
    try:
        put(fs, f"{path}/identity.json", content + b"\n")
    except OSError as error:
        raise UserError(f"evaluate: cannot write to {masked(folder)}: {masked_error(error)} (--work)") from None
    return folder


class ResultCache:
    """Rows of one schema by their `Key`, in Parquet parts that are written whole and never changed."""

    def __init__(self, folder: str, kind: str, schema: pa.Schema) -> None:
        self.fs, self.path = open_url(folder)
        self.kind = kind
        self.schema = schema
        self.rows: dict[Key, dict[str, Any]] = {}
        self._new: list[dict[str, Any]] = []
        self._flushed = time.monotonic()
        for name in list_names(self.fs, self.path):
            if name.startswith(f"{kind}-") and name.endswith(".parquet"):
                self._load(f"{self.path}/{name}")

    def add(self, key: Key, values: Mapping[str, Any]) -> None:
        """Add a row; ``values``: by column of the schema, null if absent."""
        row = {"id": key[0], "mixture": key[1], **values}
        self.rows[key] = row
        self._new.append(row)
        if len(self._new) >= _PART_ROWS or time.monotonic() - self._flushed >= _PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are in no part yet."""
        if self._new:
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(self._new, schema=self.schema), buffer, compression="zstd")
            put(self.fs, f"{self.path}/{self.kind}-{uuid.uuid4().hex[:12]}.parquet", buffer.getvalue())
        self._new = []
        self._flushed = time.monotonic()

    def __enter__(self) -> "ResultCache":
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()

    def _load(self, path: str) -> None:
        try:
            rows = pq.read_table(io.BytesIO(self.fs.cat_file(path)), schema=self.schema).to_pylist()
        except (OSError, ValueError) as error:
            raise UserError(
                f"evaluate: cannot read {masked(path)}: {masked_error(error)}; remove it (--work)"
            ) from None
        self.rows |= {(row["id"], row["mixture"]): row for row in rows}
