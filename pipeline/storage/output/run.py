"""The output folder of a run: `run.json`, the saved plan, and its results as a dataset."""

import base64
import os
import uuid
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.dataset
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.conversations import Layout
from pipeline.errors import UserError
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.output_files import OutputFiles
from pipeline.storage.input.duplicates import DUPLICATES
from pipeline.storage.input.files import InputFile
from pipeline.storage.input.plan import InputPlan, PlanPoint
from pipeline.storage.store.objects import put, read, remove
from pipeline.storage.store.redact import masked, masked_path, user_errors

RUN, PLAN, CARD, REPORT = "run.json", "_plan/plan.json", "README.md", "report.html"
BATCH_OUTPUT, BATCH_ERRORS = "batch_output.jsonl", "batch_errors.jsonl"


def artifacts(layout: Layout) -> tuple[str, ...]:
    """The names of the files that a run leaves beside its rows. ``layout``: of its input."""
    return (CARD, REPORT, BATCH_OUTPUT, BATCH_ERRORS) if layout == "openai_batch" else (CARD, REPORT)


class RunFolder(OutputFiles):
    """The files of a run's output folder that have fixed names: `run.json`, the plan, reports."""

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None if it does not exist."""
        return read(self.fs, self.path(name))

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The values in a JSON file, or None if it does not exist."""
        content = self.read(name)
        return None if content is None else orjson.loads(content)

    def check_writable(self) -> None:
        """Write a file and remove it; makes no folder and leaves nothing behind. `UserError` if that is not possible.

        Tasks run in other processes, so the memory of this one is no place for an output.
        """
        shown, folder = masked(self.url), self.root
        if isinstance(self.fs, MemoryFileSystem):
            raise UserError(f"output: {shown} is in the memory of one process; give a folder or an object store")
        if isinstance(self.fs, LocalFileSystem) and os.path.isfile(folder):
            raise UserError(f"output: {shown} is a file; give a folder")
        with user_errors(f"output: cannot write to {shown}"):
            at = _existing(folder) if isinstance(self.fs, LocalFileSystem) else folder
            probe = f"{at}/.probe-{uuid.uuid4().hex}"
            put(self.fs, probe, b"")
            self.fs.rm_file(probe)

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder of that name."""
        return bool(self.fs.exists(self.path(name)))

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        remove(self.fs, self.path(name))

    def write(self, name: str, content: bytes) -> str:
        """Write a file: readers see all of it or nothing. Returns its path."""
        put(self.fs, self.path(name), content)
        return self.path(name)

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON file; see `write`."""
        self.write(name, orjson.dumps(values, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS) + b"\n")

    def save_plan(self, plan: InputPlan) -> None:
        """Save the plan, so that a resumed run does not read the whole input again."""
        duplicates = pa.BufferOutputStream()
        with pa.ipc.new_stream(duplicates, DUPLICATES) as writer:
            writer.write_table(plan.duplicates)
        values = asdict(plan) | {
            "files": [asdict(f) | {"path": masked_path(f.path)} for f in plan.files],
            "seek_points": [(masked_path(path), *point) for path, *point in plan.seek_points],
            "passed": _base64(plan.passed.serialize()),
            "duplicates": _base64(duplicates.getvalue()),
        }
        self.write_json(PLAN, values)

    def load_plan(self, files: Iterable[InputFile]) -> InputPlan | None:
        """Load the plan of the run, or None. ``files``: the input as listed now, which has the paths unmasked."""
        values = self.read_json(PLAN)
        if values is None:
            return None
        paths = {masked_path(file.path): file.path for file in files}
        values["files"] = [InputFile(**f | {"path": paths[f["path"]]}) for f in values["files"]]
        values["seek_points"] = [PlanPoint(paths[path], *point) for path, *point in values["seek_points"]]
        values["passed"] = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(values["passed"])))
        values["duplicates"] = pa.ipc.open_stream(base64.b64decode(values["duplicates"])).read_all()
        return InputPlan(**values)


def _existing(path: str) -> str:
    """The path, or the nearest folder above it that exists."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return _existing(os.path.dirname(path))
    return path


def run_values(url: str, key: str = "run") -> dict[str, Any] | None:
    """The values in `run.json` of an output, or None; `UserError` if it cannot be read or is not a run's.

    ``key``: the config key or argument that gave the URL, for the message.
    """
    with user_errors(f"{key}: cannot read {RUN} at {masked(url)}"):
        values = RunFolder(url).read_json(RUN)
    if values is not None and not (isinstance(values, dict) and "schemas" in values):
        raise UserError(f"{key}: {RUN} at {masked(url)} was not written by this program")
    return values


def read_run(url: str) -> pyarrow.dataset.Dataset:
    """The committed data rows of a run, finished or not; `UserError` if there is no run."""
    return _committed(url, "data")


def read_dead(url: str) -> pyarrow.dataset.Dataset:
    """The committed dead letters of a run; see `read_run`."""
    return _committed(url, "dead")


def _committed(url: str, kind: str) -> pyarrow.dataset.Dataset:
    run = run_values(url)
    if run is None:
        raise UserError(f"run: there is no {RUN} at {masked(url)}; give the --output of a run")
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(run["schemas"][kind])))
    except (ValueError, KeyError, TypeError, pa.ArrowException):
        raise UserError(f"run: {RUN} at {masked(url)} was not written by this program") from None
    markers = MarkerStore(url, run.get("run") or "")
    files = markers.committed_files(kind)
    if not files:
        return pyarrow.dataset.dataset(schema.empty_table())
    return pyarrow.dataset.dataset(files, schema=schema, filesystem=markers.fs, format="parquet")


def encode_schema(schema: pa.Schema) -> str:
    """Encode a schema as text for run.json."""
    return _base64(schema.serialize())


def _base64(content: Any) -> str:
    return base64.b64encode(bytes(content)).decode()
