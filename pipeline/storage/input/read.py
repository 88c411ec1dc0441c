"""Read a split of the input into records, and turn records into the tables that the stages exchange."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pyarrow as pa

from pipeline.exact_json import dumps
from pipeline.records import PASSED, STAGED, Conversation, DeadLetter, Record, concat_schemas
from pipeline.storage.store.redact import masked_error
from pipeline.storage.store.urls import open_url

from .columns import Columns, record_text
from .formats import format_of
from .limits import MAX_BATCH_CHARS, text_size
from .partitions import arranged
from .plan import Split
from .schema import record_table


def read_split(url: str, split: Split, columns: Columns, repeated: dict[int, tuple[int, int]]) -> Iterator[Record]:
    """The records of a split. ``repeated``: see `InputPlan.duplicates_of`."""
    fs, _ = open_url(url)
    rows = arranged(format_of(split.path).read(fs, split.path, split.start), split.path, split.partition, columns)
    for index, (_, row) in enumerate(islice(rows, split.skip, split.skip + split.take), start=split.row):
        record = columns.record(index, row)
        yield _repeated(record, columns.given_id(row), *repeated[index]) if index in repeated else record


def _repeated(record: Record, given_id: str | None, first: int, rank: int) -> Record:
    """Make a repeated id a dead letter; a copy of a row without a given id gets a numbered one."""
    if given_id is None:
        return replace(record, id=f"{record.id}-{rank + 1}")
    if record.dead:
        return record
    message = f"the id {given_id[:100]!r} is already used by row {first} of the input, counted from 0"
    return replace(record, dead=DeadLetter("read", "DuplicateId", message))


def batch_records(records: Iterator[Record], rows: int) -> Iterator[list[Record]]:
    """Split records into lists of at most ``rows`` rows and about 64 MiB of text; a record has up to 16 MiB."""
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        prompt = record.prompt.messages if isinstance(record.prompt, Conversation) else record.prompt
        size += text_size((prompt, record.raw))
        size += record.cells.size if record.cells else text_size(record.passed)
        if len(batch) == rows or size > MAX_BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def staged_tables(records: Iterator[Record], passed: pa.Schema, rows: int) -> Iterator[pa.Table]:
    """Records as tables of at most ``rows`` rows; a record with a value that Arrow cannot hold gets a dead letter."""
    for batch in batch_records(records, rows):
        try:
            table = staged_table(batch, passed)
        except Exception:  # some record has a value that its column cannot hold; Arrow raises errors of many types
            table = pa.concat_tables([_single_table(record, passed) for record in batch])
        yield table


def _single_table(record: Record, passed: pa.Schema) -> pa.Table:
    try:
        return staged_table([record], passed)
    except Exception as error:
        dead = DeadLetter("read", "InvalidValue", f"{type(error).__name__}: {masked_error(error)[:300]}")
        return staged_table([Record(record.row, record.id, raw=record_text(record), dead=record.dead or dead)], passed)


def staged_schema(passed: pa.Schema) -> pa.Schema:
    """The schema of `staged_table`."""
    return concat_schemas(STAGED, pa.schema([f.with_name(PASSED + f.name) for f in passed]))


def staged_table(records: list[Record], passed: pa.Schema) -> pa.Table:
    """Records as one table of `staged_schema`."""
    conversations = [r.prompt if isinstance(r.prompt, Conversation) else None for r in records]
    columns = [
        [r.row for r in records],
        [r.id for r in records],
        [r.prompt if isinstance(r.prompt, str) else None for r in records],
        [None if c is None else dumps(c.messages) for c in conversations],
        [None if c is None or not c.template else dumps(c.template) for c in conversations],
        [None if r.sampling is None else dumps(r.sampling) for r in records],
        [r.raw for r in records],
        [None if r.dead is None else vars(r.dead) for r in records],
    ]
    arrays = [pa.array(values, f.type) for values, f in zip(columns, STAGED, strict=True)]
    extra = record_table(records, passed)
    return pa.Table.from_arrays(arrays + extra.columns, schema=staged_schema(passed))
