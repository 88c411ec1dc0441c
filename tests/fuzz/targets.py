"""What is fuzzed: each target takes the bytes of one file; only a `UserError` of one line may come out."""

import gzip
import io
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save

from pipeline.adapters import AdapterBank
from pipeline.engine import Sampling
from pipeline.errors import UserError
from pipeline.exact_json import dumps
from pipeline.records import Record
from pipeline.routing import RoutingPolicy
from pipeline.routing.centroids import CentroidHead
from pipeline.routing.loading import load_router
from pipeline.routing.mlp_router import HeldOut, MlpRouter
from pipeline.routing.network import RouterNetwork, RouterShape
from pipeline.stages.record_sampling import RecordSampling
from pipeline.storage.input.columns import Columns, record_text
from pipeline.storage.input.formats import InputRow
from pipeline.storage.input.formats.csv import Csv
from pipeline.storage.input.formats.jsonl import parse_line
from pipeline.storage.input.plan import plan_input
from pipeline.storage.input.read import read_split, staged_table, staged_tables
from pipeline.storage.input.schema import SchemaFinder
from tests.adapters.make import PLAIN, SHAPES, V, make_adapter, make_tensors
from tests.fuzz.values import check_columns, check_passed, check_values, read_ipc, read_parquet
from tests.storage import compressed
from tests.storage.types.samples import SAMPLES

COLUMNS = Columns(sampling="sampling", choices="choices")
ROWS: list[dict[str, Any]] = [
    {"id": "a1", "prompt": "What is 2 + 2?", "task": "maths", "n": 1, "x": 0.5},
    {"id": 2, "prompt": "é中😀\u0000", "tags": ["a", "b"], "nested": {"k": [1, {"l": None}]}},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}], "n": 2.5},
    {"id": "a3", "prompt": "b", "sampling": {"n": 2, "stop": ["x"]}, "choices": ["yes", "no"]},
    {"custom_id": "request-1", "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}]}},
]


BODIES: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
            "max_tokens": 5,
            "temperature": 0.5,
            "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
        },
    ),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "a"}], "stop": ["x"], "repetition_penalty": 1.5},
    ),
    ("/v1/completions", {"prompt": "a", "logprobs": 2, "json_schema": '{"type": "null"}', "seed": 7}),
]


@dataclass(frozen=True)
class Target:
    """A kind of file. ``share``: of all inputs, in thousandths."""

    name: str
    share: int
    seeds: Sequence[bytes]
    run: Callable[[bytes], None]


def targets(folder: Path) -> list[Target]:
    """All targets; ``folder``: for the files of those that read from the disk."""
    lines = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS]
    jsonl = [*lines[:-1], b"".join(lines)]  # the last line alone has no prompt
    requests = [json.dumps(_request(url, body)).encode() + b"\n" for url, body in BODIES]
    csv = [
        b'id,prompt,task\n1,"a ""b"", c",x\n2,"two\r\nlines",y\n',
        b'id,messages,choices\n1,"[{""role"": ""user"", ""content"": ""hi""}]","[""a"", ""b""]"\n',
    ]
    bank, router = _AdapterFolder(folder / "bank"), _RouterFolder(folder / "router")
    return [
        Target("lines of jsonl", 400, [*lines, *jsonl], _read_lines),
        Target("records of csv", 200, csv, _read_csv),
        Target("lines of requests", 100, [b"".join(requests), *requests], _read_requests),
        Target("jsonl", 40, jsonl, _reader("jsonl")),
        Target("csv", 30, csv, _reader("csv")),
        Target("jsonl.gz", 10, [gzip.compress(content, mtime=0) for content in jsonl], _reader("jsonl.gz")),
        Target("json.zst", 10, [compressed(content, ".zst") for content in jsonl], _reader("json.zst")),
        Target("parquet", 40, _parquet_files(), _reader("parquet", read_parquet)),
        Target("arrow", 20, _arrow_files(pa.ipc.new_stream), _reader("arrow", read_ipc)),
        Target("feather", 20, _arrow_files(pa.ipc.new_file), _reader("feather", read_ipc)),
        Target("adapter_config.json", 150, bank.configs, bank.read_config),
        Target("adapter_model.safetensors", 80, bank.weights, bank.read_weights),
        Target("router.json", 20, router.cards, router.read_card),
        Target("router.safetensors", 20, router.weights, router.read_weights),
    ]


def _read_lines(content: bytes) -> None:
    """Lines to records to tables, without files."""
    lines = content.split(b"\n")
    rows = [parse_line(line) for line in lines]
    for line, row in zip(lines, rows, strict=True):
        if row.values is not None:  # Python's own parser has whole numbers of any size
            check_values([row.values], [json.loads(line.decode("utf-8-sig"))])
    _to_table(rows)


def _request(url: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": "request-1", "method": "POST", "url": url, "body": {"model": "m", **body}}


def _read_requests(content: bytes) -> None:
    """Lines of the OpenAI batch API to records, and their settings to those of the engine; and as other layouts."""
    parsed = [parse_line(line) for line in content.split(b"\n")]
    for other in (Columns(messages="body", layout="sharegpt"), Columns(prompt="url", layout="alpaca")):
        for row in parsed:
            _check(other.record(0, other.arranged(row)))
    columns = Columns(id="custom_id", sampling="sampling", layout="openai_batch")
    rows = [columns.arranged(row) for row in parsed]
    records = [columns.record(number, row) for number, row in enumerate(rows)]
    sampling = RecordSampling(Sampling())
    for record in records:
        _check(record)
        if record.dead is None and record.sampling is not None:
            with suppress(ValueError):
                sampling(dumps(record.sampling))
    assert sum(table.num_rows for table in staged_tables(iter(records), pa.schema([]), 4)) == len(rows)


def _read_csv(content: bytes) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/fuzz/rows.csv", content)
    _to_table([row for _, row in Csv().read(memory, "/fuzz/rows.csv")])


def _to_table(rows: list[InputRow]) -> None:
    records = [COLUMNS.record(number, row) for number, row in enumerate(rows)]
    for record in records:
        _check(record)
    finder = SchemaFinder()
    finder.add([record.passed for record in records])
    check_passed(staged_table(records, finder.schema()), [record.passed for record in records])


def _reader(suffix: str, read: Callable[[bytes], pa.Table | None] | None = None) -> Callable[[bytes], None]:
    """Plans a file in memory, then reads its records as the stages do.

    ``read``: of Arrow alone, for columns that must come out the same.
    """
    memory = fsspec.filesystem("memory")

    def run(content: bytes) -> None:
        memory.pipe_file(f"/fuzz/input.{suffix}", content)
        url = f"memory://fuzz/input.{suffix}"
        plan = plan_input(url, 8, Columns())
        columns = None if read is None else read(content)
        found = 0
        for window in range(plan.windows):
            repeated = plan.duplicates_of(window)
            for split in plan.splits(window):
                records = list(read_split(url, split, Columns(), repeated))
                table = staged_table(records, plan.passed)
                assert table.num_rows == split.take
                if columns is not None:
                    check_columns(table, columns.slice(window * 8 + split.row, split.take))
                found += len(records)
                for record in records:
                    _check(record)
        assert found == plan.rows

    return run


def _check(record: Record) -> None:
    assert isinstance(record.id, str)
    if record.dead is None:
        assert record.prompt
        return
    assert record.dead.stage == "read"
    assert record.dead.message
    assert len(record.dead.message) < 2000
    record_text(record).encode()


def _tables(*unknown: str) -> list[pa.Table]:
    """Small tables, some of them with a few columns of each type but the ``unknown`` ones of a format."""
    tables = [
        pa.table({"id": [f"r{n}" for n in range(6)], "prompt": ["a", "b"] * 3, "tags": [["a"] * n for n in range(6)]}),
        pa.table({"id": [*range(4)], "messages": [[{"role": "user", "content": "hi"}]] * 4}),
    ]
    samples = [(name, sample.source) for name, sample in SAMPLES.items() if name not in unknown]
    for start in range(0, len(samples), 6):
        part = {"prompt": pa.array(["p", "q"])} | {name: source[:2] for name, source in samples[start : start + 6]}
        tables.append(pa.table(part))
    return tables


def _parquet_files() -> list[bytes]:
    options: list[dict[str, Any]] = [{}, {"compression": "zstd"}, {"use_dictionary": False, "compression": "none"}]
    files = []
    for table in _tables("run_end_encoded"):
        for option in options:
            buffer = io.BytesIO()
            pq.write_table(table, buffer, row_group_size=3, **option)
            files.append(buffer.getvalue())
    return files


def _arrow_files(new: Callable[..., Any]) -> list[bytes]:
    files = []
    for table in _tables():
        with new(buffer := io.BytesIO(), table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
        files.append(buffer.getvalue())
    return files


class _AdapterFolder:
    """A bank of one adapter, one file of which is replaced at a time."""

    def __init__(self, folder: Path) -> None:
        self.bank = folder
        self.good = make_adapter(folder / "legal")
        settings: list[dict[str, Any]] = [
            {},
            {"rank_pattern": {"q_proj": 4, ".*v_proj": 4}, "alpha_pattern": {r"layers\.0.*": 2}, "use_rslora": True},
        ]
        self.configs = [json.dumps(PLAIN | more).encode() for more in settings]
        self.weights = [save(make_tensors()), save(make_tensors(4, 1, {V: (8, 6)}))]

    def read_config(self, content: bytes) -> None:
        """The weights are good."""
        self._read("adapter_config.json", content)

    def read_weights(self, content: bytes) -> None:
        """The config is good."""
        self._read("adapter_model.safetensors", content)

    def _read(self, name: str, content: bytes) -> None:
        path = self.good / name
        good = path.read_bytes()
        path.unlink()  # what is mapped must not change
        path.write_bytes(content)
        try:
            bank = AdapterBank.load(self.bank)
            bank.check_base(SHAPES, "tiny")
            bank.check_values()
            assert len(bank.fingerprint) == 16
        finally:
            path.unlink()
            path.write_bytes(good)


class _RouterFolder:
    """A router, one file of which is replaced at a time; it routes where it is taken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        _small_router().save(folder)
        self.cards = [(folder / "router.json").read_bytes()]
        self.weights = [(folder / "router.safetensors").read_bytes()]

    def read_card(self, content: bytes) -> None:
        """The weights are good."""
        self._read("router.json", content)

    def read_weights(self, content: bytes) -> None:
        """The card is good."""
        self._read("router.safetensors", content)

    def _read(self, name: str, content: bytes) -> None:
        path = self.folder / name
        good = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        try:
            # Anyone can compute the fingerprint that fits; a mutation that does not would be all that is ever seen.
            with mock.patch.object(MlpRouter, "_hash", lambda router: router.card.get("fingerprint")):
                router = load_router(self.folder)
            router.check_bank(["art", "legal", "med"], "bank")
            router.check_prompts("tok1", "chat")
            router.route([[1, 2, 3]], RoutingPolicy())
        finally:
            path.unlink()
            path.write_bytes(good)


def _small_router() -> MlpRouter:
    """An untrained one of a few kilobytes."""
    shape = RouterShape(60, 3, embedding=4, hidden=4, features=4)
    unit, places = torch.eye(4)[:3].half(), torch.arange(3)
    card: dict[str, Any] = {
        "shape": asdict(shape),
        "labels": ["art", "legal", "med"],
        "temperature": 1.25,
        "gate_thresholds": {"0.95": 0.1, "0.99": -0.1},
        "tokenizer_fingerprint": "tok1",
        "prompt_format": "chat",
    }
    return MlpRouter(RouterNetwork(shape), HeldOut(unit, places), CentroidHead.of(unit.clone()), card)


def outcome(target: Target, content: bytes) -> str:
    """``taken``, or ``refused`` by a good message; anything else is raised."""
    try:
        target.run(content)
    except UserError as error:
        message = str(error)
        assert message, "an empty message"
        assert "\n" not in message, f"more than one line: {message!r}"
        assert len(message) < 4000, f"{len(message)} characters: {message[:200]!r}"
        return "refused"
    return "taken"
