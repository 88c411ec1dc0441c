"""Records made to do harm: each becomes a dead letter, or its file one clear error; time and memory stay bounded."""

import gzip
import io
import json
import resource
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.records import Record
from pipeline.stages.output_schema import OutputSchema
from pipeline.storage.commit.counts import Counts
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import Shard
from pipeline.storage.commit.window import commit_shard
from pipeline.storage.input.columns import Columns
from pipeline.storage.input.formats.jsonl import parse_line
from pipeline.storage.input.limits import MAX_COLUMNS, MAX_LINE
from pipeline.storage.input.plan import plan_input
from pipeline.storage.input.read import batch_records, read_split, staged_table, staged_tables
from tests.storage import memory_url, user_error, write_file

COLUMNS = Columns()
GOOD = b'{"id": "good", "prompt": "text"}\n'


def records_of(content: bytes, suffix: str = ".jsonl") -> list[Record]:
    """Plan a file of that content and read it as the stages do, tables included."""
    url = f"{memory_url()}/input{suffix}"
    write_file(url, content)
    plan = plan_input(url, 1000, COLUMNS)
    found = [r for split in plan.splits(0) for r in read_split(url, split, COLUMNS, plan.duplicates_of(0))]
    assert staged_table(found, plan.passed).num_rows == plan.rows
    return found


def kinds(found: list[Record]) -> list[str]:
    """Ids of good records, error types of bad ones."""
    return [r.dead.error_type if r.dead else r.id for r in found]


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


LINES = {
    "100 MB": (b'{"prompt": "' + b"x" * 100_000_000 + b'"}', "RecordTooLong"),
    "100,000 levels": (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "InvalidJson"),
    "200 levels": (b'{"prompt": "a", "x": ' + b"[" * 200 + b"]" * 200 + b"}", "TooDeep"),
    "a lone surrogate": (b'{"prompt": "\\ud800"}', "InvalidJson"),
    "a lone surrogate as bytes": (b'{"prompt": "\xed\xa0\x80"}', "InvalidUtf8"),
    "invalid UTF-8": (b'{"prompt": "\xff"}', "InvalidUtf8"),
    "a control character": (b'{"prompt": "a\x01b"}', "InvalidJson"),
    "NUL bytes": (b"\0" * 100, "InvalidJson"),
    "1e999": (b'{"prompt": "a", "x": 1e999}', "InvalidJson"),
    "NaN": (b'{"prompt": "a", "x": NaN}', "InvalidJson"),
    "an id in an object": (b'{"id": {"$ne": 1}, "prompt": "a"}', "BadId"),
    "20,000 columns": (json.dumps({f"c{n}": 1 for n in range(20_000)}).encode(), "TooManyColumns"),
    "messages as text": (b'{"messages": "hi"}', "BadMessages"),
    "no messages": (b'{"messages": []}', "BadMessages"),
    "a message as text": (b'{"messages": ["hi"]}', "BadMessages"),
    "a role in a list": (b'{"messages": [{"role": ["user"], "content": "hi"}]}', "BadMessages"),
    "a message without content": (b'{"messages": [{"role": "user"}]}', "BadMessages"),
    "a prompt in a list": (b'{"prompt": ["a"]}', "BadPrompt"),
    "a request of another program": (b'{"custom_id": "1", "body": {"messages": []}}', "MissingPrompt"),
}


@pytest.mark.long
@pytest.mark.parametrize(("line", "error"), LINES.values(), ids=LINES)
def test_a_hostile_line_is_a_dead_letter_and_spoils_no_other(line: bytes, error: str) -> None:
    before = peak_mb()
    found = records_of(line + b"\n" + GOOD)
    assert kinds(found) == [error, "good"]
    assert len(found[0].raw or "") <= MAX_LINE
    assert peak_mb() - before < 1024


IDS = ["../../x", "/etc/passwd", "a\nb", "a\0b", "\x1b[2J", "x" * 1_000_000, "con", "%2e%2e%2f", "\u202egpj", " "]


@pytest.mark.parametrize("identity", IDS, ids=lambda text: repr(text)[:20])
def test_an_id_is_kept_as_it_is_and_names_no_file(identity: str, tmp_path: Path) -> None:
    (record,) = records_of(json.dumps({"id": identity, "prompt": "a"}).encode())
    assert (record.id, record.dead) == (identity, None)
    schema = OutputSchema(pa.schema([]), False, "r", "b").data
    dead = pa.table({"id": [record.id], "stage": ["s"], "error_type": ["e"], "message": ["m"], "record": ["x"]})
    rows = schema.empty_table()["route_score"].to_numpy().astype("int64")
    log = MarkerStore(str(tmp_path / "out"))
    commit_shard(log, Shard("w000000-a-000000", None, None, rows, rows, Counts()), schema.empty_table(), dead)
    written = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(name.split("/")[1] for name in written) == ["_commits", "dead"]
    assert all(name.split("/")[2].startswith("w000000-a-000000") for name in written)


def test_columns_that_differ_from_record_to_record_are_refused_before_they_fill_the_memory() -> None:
    lines = b"".join(b'{"prompt": "a", "k%d": 1}\n' % n for n in range(MAX_COLUMNS + 500))
    with user_error("more than 1000 columns", "into one column"):
        records_of(lines)


def test_objects_with_keys_of_their_own_in_each_record_are_stored_as_json() -> None:
    lines = b"".join(
        json.dumps({"id": n, "prompt": "a", "x": [{f"k{n}-{m}": 1 for m in range(900)}]}).encode() + b"\n"
        for n in range(50)
    )
    assert len(records_of(lines)) == 50


def test_records_are_held_by_their_size_not_only_by_their_number() -> None:
    long = [Record(n, str(n), prompt="x" * 2**23) for n in range(20)]
    assert [len(part) for part in batch_records(iter(long), 512)] == [8, 8, 4]
    short = [Record(n, str(n), prompt="x") for n in range(1000)]
    assert [len(part) for part in batch_records(iter(short), 512)] == [512, 488]


@pytest.mark.parametrize("column", ["sampling", "choices"])
def test_settings_as_text_that_nest_without_end_are_a_dead_letter(column: str) -> None:
    columns = Columns(sampling="sampling", choices="choices")
    for levels in (60, 300, 100_000):
        row = {"prompt": "a", column: '{"x": ' + "[" * levels + "]" * levels + "}"}
        record = columns.record(0, parse_line(json.dumps(row).encode()))
        assert record.dead is not None
        assert record.dead.error_type in ("BadSampling", "BadChoices")
        assert staged_table([record], pa.schema([(column, pa.string())])).num_rows == 1


def test_a_value_that_its_column_cannot_hold_is_a_dead_letter_and_spoils_no_other() -> None:
    passed = pa.schema([("n", pa.int8())])
    records = [Record(n, str(n), "a", {"n": 1000 if n == 2 else n}) for n in range(5)]
    tables = list(staged_tables(iter(records), passed, 4))
    assert [table.num_rows for table in tables] == [4, 1]
    staged = pa.concat_tables(tables)
    assert pc.struct_field(staged["dead"], "error_type").to_pylist() == [None, None, "InvalidValue", None, None]
    assert json.loads(staged["raw"][2].as_py()) == {"id": "2", "prompt": "a", "n": 1000}


def test_an_open_quote_does_not_swallow_the_file_in_silence() -> None:
    with user_error("has an open quote", "in the record of lines 3 to 5"):
        records_of(b'id,prompt\n1,a\n2,"open\n3,c\n4,d\n', ".csv")


@pytest.mark.slow
def test_an_open_quote_in_a_long_file_takes_no_more_than_a_record_may_have() -> None:
    for field in (b'"open\n' + b"2,x\n" * (MAX_LINE // 4), b'"\n",' * (MAX_LINE // 4) + b"\n2,b\n"):
        with user_error(f"more than {MAX_LINE} characters", "in the record of lines 2 to "):
            records_of(b"id,prompt\n1," + field, ".csv")


@pytest.mark.long
def test_a_csv_line_of_100_mb_is_skipped_whole() -> None:
    before = peak_mb()
    assert kinds(records_of(b"id,prompt\n1," + b"x" * 100_000_000 + b"\n2,b\n", ".csv")) == ["RecordTooLong", "2"]
    assert peak_mb() - before < 1024


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".jsonl.gz", ".csv.gz"])
@pytest.mark.parametrize("unit", [b"x", b"\n"], ids=["one line", "empty lines"])
def test_a_gzip_bomb_is_refused(suffix: str, unit: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.input.compression._BOMB_BYTES", 2**16)
    with user_error("unpacks to more than 300 times its size"):
        records_of(gzip.compress(b"id,prompt\n" + unit * 400_000), suffix)


def test_a_file_that_only_shrinks_well_is_read() -> None:
    assert len(records_of(gzip.compress(GOOD * 1000), ".jsonl.gz")) == 1000


def parquet_of(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


@pytest.mark.slow
def test_a_parquet_value_that_stands_for_gigabytes_is_held_a_few_at_a_time() -> None:
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 150, pa.int32()), ["x" * (MAX_LINE + 1)])  # 2.5 GB as text
    table = pa.table({"id": [str(n) for n in range(150)], "prompt": long})
    content = parquet_of(table, compression="zstd", dictionary_pagesize_limit=2**30)
    assert len(content) < 2**20
    before = peak_mb()
    assert set(kinds(records_of(content, ".parquet"))) == {"RecordTooLong"}
    assert peak_mb() - before < 1500


def test_a_parquet_file_with_a_damaged_page_is_one_error() -> None:
    table = pa.table({"id": [str(n) for n in range(1000)], "prompt": [f"text {n}" for n in range(1000)]})
    content = parquet_of(table, compression="zstd", write_page_checksum=True)
    assert len(records_of(content, ".parquet")) == 1000
    for place in range(100, 2000, 200):
        damaged = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        with user_error("input.parquet"):
            records_of(damaged, ".parquet")


def test_a_parquet_file_with_too_many_columns_or_levels_is_refused() -> None:
    with user_error("columns; the limit is 1000"):
        records_of(parquet_of(pa.table({f"c{n}": [1] for n in range(1001)})), ".parquet")
    deep: Any = 1
    for _ in range(60):
        deep = {"x": deep}
    with user_error("deeper than 50"):
        records_of(parquet_of(pa.table({"prompt": ["a"], "x": [deep]})), ".parquet")


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_an_arrow_batch_that_unpacks_to_gigabytes_is_refused(compression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(size: int) -> bytes:
        table = pa.table({"id": ["a"], "prompt": ["x" * size]})
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_stream(buffer := io.BytesIO(), table.schema, options=options) as writer:
            writer.write_table(table)
        return buffer.getvalue()

    assert kinds(records_of(stream(1000), ".arrow")) == ["a"]
    monkeypatch.setattr("pipeline.storage.input.formats.arrow._MAX_BATCH_BYTES", 2**22)
    content = stream(2**23)
    assert len(content) < 2**18
    with user_error("has a record batch of 83", "write smaller ones"):
        records_of(content, ".arrow")


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
def test_a_name_inside_a_nested_value_that_is_not_utf_8_is_one_error(suffix: str) -> None:
    table = pa.table({"id": ["a"], "prompt": ["text"], "x": [[{"content": "b"}]]})
    buffer = io.BytesIO()
    if suffix == ".arrow":
        with pa.ipc.new_stream(buffer, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, buffer, store_schema=False)
    damaged = buffer.getvalue().replace(b"content", b"cont\xe5nt")
    with user_error("input", f"input{suffix}"):
        records_of(damaged, suffix)
