"""Actors that sleep for the measured time of real ones instead of computing."""

import json
import os
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from pipeline.records import COMPLETED, ROUTED, Mixture
from pipeline.settings import JobSettings
from pipeline.stages.tables import with_columns
from pipeline.telemetry.incidents import Incidents

_RESULTS = Path(__file__).parents[1] / "results"
_ROWS = 32  # of the engine that was measured


class Latency:
    """Seconds of a shard on the engine, from measured decode steps of 32 rows and measured loads of adapters."""

    def __init__(self) -> None:
        decode = json.loads((_RESULTS / "engine-decode.json").read_text())["figures"]
        cases = {bank: decode[f"rows={_ROWS} bank={bank} mixed=2"] for bank in (26, 100)}
        # Only ratios are comparable: they come from one turn, while the machine's speed changes between two cases.
        base: float = cases[26]["base"]["step_ms"]["median"] / 1000
        self.pure: float = base * cases[26]["merged"]["step_over_base"]["median"]
        self.mixed: dict[int, float] = {
            bank: base * figures["fused"]["step_over_base"]["median"] for bank, figures in cases.items()
        }
        loads = json.loads((_RESULTS / "bank-load.json").read_text())
        self.load = float(loads["bank_seconds_per_adapter_median"])

    def step(self, mixtures: int, adapters: int) -> float:
        """Return the seconds of one decode step of a full batch."""
        return self.pure if mixtures == 1 else self.mixed[26 if adapters <= 26 else 100]


def tokens_of(row: int) -> int:
    """Return the length of a row's answer: 16 to 80 tokens, 48 on average, the same in every run."""
    return 16 + row * 37 % 65


class AssignsMixtures:
    """Replaces the router: a share of ``hot`` rows get one mixture, each other row one of the rest.

    ``settings.config["scale"]`` holds ``mixtures``, ``hot`` and what `Sleeps` needs.
    """

    def __init__(self, settings: JobSettings, context: int, incidents: Any) -> None:
        self._scale = settings.config["scale"]

    def __call__(self, table: pa.Table) -> pa.Table:
        """Append the columns of `records.ROUTED`."""
        rows = table["row"].to_pylist()
        columns: dict[str, list[Any]] = {
            "tokens": [[row % 600] for row in rows],
            "mixture": [self._mixture(row).key for row in rows],
            "route_score": [1.0] * len(rows),
            "route_confidence": [1.0] * len(rows),
            "fallback": [False] * len(rows),
            "last_assistant": [False] * len(rows),
        }
        return with_columns(table, ROUTED, columns)

    def _mixture(self, row: int) -> Mixture:
        count, hot = self._scale["mixtures"], self._scale["hot"]
        chance = zlib.crc32(str(row).encode())
        cold = 1 + chance // 1000 % max(1, count - 1)
        number = (0 if chance % 1000 < hot * 1000 else cold) if hot else row % count
        adapters = min(count, self._scale["adapters"])
        first, second = number % adapters, (number // adapters + number + 1) % adapters
        return Mixture.of({f"a{first}": 1.0}) if first == second else Mixture.of({f"a{first}": 0.5, f"a{second}": 0.5})


class Sleeps:
    """Replaces the engine: sleeps for a shard's decode steps and for the loads of new adapters.

    Writes a line for each shard into the folder ``trace``. An engine takes one shard at a time: two that share its rows
    would take the same time together. ``slow``: factor by which the first engine to start is slower.
    """

    def __init__(self, settings: JobSettings, device: str, threads: int, incidents: Any) -> None:
        scale = settings.config["scale"]
        self._incidents = incidents or Incidents()
        self._latency, self._loaded = Latency(), set[str]()
        self._turn = threading.Lock()
        folder = Path(scale["trace"])
        self._factor = scale["slow"] if _is_first(folder) else 1.0
        self._trace = (folder / f"{os.getpid()}.jsonl").open("a", buffering=1)
        self._note(ready=time.time(), factor=self._factor)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Append the columns of `records.COMPLETED`."""
        keys = set(table["mixture"].to_pylist())
        adapters = {name for key in keys for name in Mixture.parse(key).adapters}
        lengths = [tokens_of(row) for row in table["row"].to_pylist()]
        with self._incidents.recording("generate", records=table.num_rows), self._turn:
            new = adapters - self._loaded
            self._loaded |= new
            seconds = (
                sum(lengths) / _ROWS * self._latency.step(len(keys), len(adapters)) + len(new) * self._latency.load
            )
            start = time.time()
            time.sleep(seconds * self._factor)
            shape = {"rows": table.num_rows, "mixtures": len(keys), "adapters": len(adapters)}
            self._note(start=start, end=time.time(), **shape)
        values = {"output": "", "finish_reason": "stop", "prompt_tokens": 1}
        columns = {name: [value] * table.num_rows for name, value in values.items()}
        return with_columns(
            table, COMPLETED, columns | {"completion_tokens": lengths, "answer_logprob": [0.0] * table.num_rows}
        )

    def _note(self, **values: Any) -> None:
        self._trace.write(json.dumps(values) + "\n")


class SleepsByRow:
    """Replaces the engine: sleeps while it starts, and the same time for each row; some rows kill its process.

    Writes its start, when it is ready, and begin and end of each shard into a file of its own in the folder ``trace``.
    """

    def __init__(self, settings: JobSettings, device: str, threads: int, incidents: Incidents) -> None:
        self._incidents, self._scale = incidents, settings.config["scale"]
        self._turn = threading.Lock()
        context = ray.get_runtime_context()
        node, actor = context.get_node_id(), context.get_actor_id()
        self._trace = (Path(self._scale["trace"]) / f"{node}-{os.getpid()}.jsonl").open("a", buffering=1)
        with incidents.recording_start("generate"):
            self._note(start=time.time(), node=node, actor=actor)
            time.sleep(self._scale["engine_start"])
            self._note(ready=time.time())

    def __call__(self, table: pa.Table) -> pa.Table:
        """Append the columns of `records.COMPLETED`; every ``poison_every``-th row of a window kills the process."""
        rows, every = table["row"].to_pylist(), self._scale["poison_every"]
        deadly = next((place for place, row in enumerate(rows) if every and row % every == every // 2), None)
        with self._incidents.recording("generate", records=len(rows)), self._turn:
            self._note(begin=time.time())
            time.sleep((len(rows) if deadly is None else deadly + 1) / self._scale["speed"])
            self._note(end=time.time())
            if deadly is not None:
                self._note(died=time.time())
                os._exit(1)
        values = {"output": "", "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1}
        values["answer_logprob"] = 0.0
        return with_columns(table, COMPLETED, {name: [value] * len(rows) for name, value in values.items()})

    def _note(self, **values: Any) -> None:
        self._trace.write(json.dumps(values) + "\n")


def _is_first(folder: Path) -> bool:
    try:
        (folder / "first").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
