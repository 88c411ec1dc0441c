"""What a run's output folder says of itself: `run.json`, the saved plan, and how to read the results."""

import base64
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.dataset
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import UserError
from pipeline.storage.commit.log import CommitLog
from pipeline.storage.input.duplicates import DUPLICATES
from pipeline.storage.input.files import InputFile
from pipeline.storage.input.plan import InputPlan
from pipeline.storage.store.objects import put, read, remove
from pipeline.storage.store.redact import masked, masked_path, one_line

RUN, PLAN = "run.json", "_plan/plan.json"


class RunFolder:
    """The files of a run that are not records."""

    def __init__(self, url: str) -> None:
        self.log = CommitLog(url)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder, or None."""
        content = self.read(name)
        return None if content is None else orjson.loads(content)

    def read(self, name: str) -> bytes | None:
        """A file of the folder, or None."""
        return read(self.log.fs, f"{self.log.root}/{name}")

    def probe(self) -> None:
        """Write and remove a file, to see that the folder can be written; leaves nothing behind."""
        fs, root = self.log.fs, self.log.root
        there = fs.exists(root)
        fs.rm_file(self.write(".probe", b""))
        if not there and isinstance(fs, LocalFileSystem):
            fs.rmdir(root)

    def remove(self, name: str) -> None:
        """Remove a file of the folder, if it is there."""
        remove(self.log.fs, f"{self.log.root}/{name}")

    def write(self, name: str, content: bytes) -> str:
        """Write a file of the folder whole; returns its path."""
        path = f"{self.log.root}/{name}"
        put(self.log.fs, path, content)
        return path

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON file of the folder whole."""
        self.write(name, orjson.dumps(values, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS) + b"\n")

    def save_plan(self, plan: InputPlan) -> None:
        """Keep the plan, so that a later run need not read the input again."""
        values = asdict(plan) | {
            "files": [asdict(f) | {"path": masked_path(f.path)} for f in plan.files],
            "seek_points": [(masked_path(path), *place) for path, *place in plan.seek_points],
            "passed": _packed(plan.passed.serialize()),
            "duplicates": _packed(_ipc(plan.duplicates)),
        }
        self.write_json(PLAN, values)

    def load_plan(self, files: Iterable[InputFile]) -> InputPlan | None:
        """The plan of an earlier start of this run; ``files``: the input as listed now, whose paths are not masked."""
        values = self.read_json(PLAN)
        if values is None:
            return None
        paths = {masked_path(file.path): file.path for file in files}
        values["files"] = [InputFile(**f | {"path": paths[f["path"]]}) for f in values["files"]]
        values["seek_points"] = [(paths[path], *place) for path, *place in values["seek_points"]]
        values["passed"] = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(values["passed"])))
        values["duplicates"] = pa.ipc.open_stream(base64.b64decode(values["duplicates"])).read_all()
        return InputPlan(**values)


def run_values(url: str, key: str = "run") -> dict[str, Any] | None:
    """What `run.json` of an output says, None where there is none; `UserError` where it cannot be read or is none.

    ``key``: what gave the URL, for the message.
    """
    try:
        values = RunFolder(url).read_json(RUN)
    except Exception as error:  # stores raise kinds of their own
        raise UserError(f"{key}: cannot read {RUN} at {masked(url)}: {one_line(error)}") from None
    if values is not None and not (isinstance(values, dict) and "schemas" in values):
        raise UserError(f"{key}: {RUN} at {masked(url)} is not of a run of this program")
    return values


def read_run(url: str) -> pyarrow.dataset.Dataset:
    """The committed data rows of a run as a `pyarrow.dataset.Dataset`, finished or not.

    Only files that a marker names are in it; what a writer left half-done is not. Raises `UserError` where
    there is no run.
    """
    return _committed(url, "data")


def read_dead(url: str) -> pyarrow.dataset.Dataset:
    """The committed dead letters of a run, as `read_run` gives its data."""
    return _committed(url, "dead")


def _committed(url: str, kind: str) -> pyarrow.dataset.Dataset:
    folder, run = RunFolder(url), run_values(url)
    if run is None:
        raise UserError(f"run: there is no {RUN} at {masked(url)}; give the --output of a run")
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(run["schemas"][kind])))
    except (ValueError, KeyError, TypeError, pa.ArrowException):
        raise UserError(f"run: {RUN} at {masked(url)} is not of a run of this program") from None
    folder.log.run = run.get("run")
    files = folder.log.committed_files(kind)
    if not files:
        return pyarrow.dataset.dataset(schema.empty_table())
    return pyarrow.dataset.dataset(files, schema=schema, filesystem=folder.log.fs, format="parquet")


def packed_schema(schema: pa.Schema) -> str:
    """A schema as text for run.json."""
    return _packed(schema.serialize())


def _packed(content: Any) -> str:
    return base64.b64encode(bytes(content)).decode()


def _ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, DUPLICATES) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content
