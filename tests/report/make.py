"""Runs as the commit protocol leaves them, of any size, without generating: shards, markers and `run.json` are real."""

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.records import DATA, DEAD, PROVENANCE, Mixture, concat_schemas
from pipeline.storage.commit.counts import Counts, count_rows
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import Shard, shard_prefix
from pipeline.storage.commit.window import commit_shard, finish_window
from pipeline.storage.output.run import RUN, RunFolder, encode_schema
from pipeline.telemetry.incident_actor import Incident

ADAPTERS = ("legal", "medical", "sql", "poems", "<b>odd & name</b>")
SCHEMA = concat_schemas(DATA, pa.schema([("prompt", pa.string())]), PROVENANCE)
SHARD = 500


def make_run(
    url: str, records: int = 1000, seed: int = 0, dead_share: float = 0.02, config: dict[str, Any] | None = None
) -> None:
    """Write a finished run: mixtures of one to three adapters, lengths of some spread, dead letters of two kinds."""
    generator = np.random.default_rng(seed)
    folder, markers = RunFolder(url), MarkerStore(url)
    total, dead = Counts(), generator.random(records) < dead_share
    for number, start in enumerate(range(0, records, SHARD)):
        rows = np.arange(start, min(start + SHARD, records))
        data = _answers(generator, rows[~dead[rows]])
        letters = _letters(rows[dead[rows]])
        name = f"{shard_prefix(0)}made-{number:06d}"
        shard = Shard(name, None, None, rows[~dead[rows]], rows[dead[rows]], count_rows(data, letters))
        total += commit_shard(markers, shard, data, letters).counts
    finish_window(markers, 0, records)
    folder.write_json(RUN, _run(total, records, config or {}))


def _answers(generator: np.random.Generator, rows: np.ndarray) -> pa.Table:
    mixtures = [_mixture(generator) for _ in rows]
    lengths = generator.lognormal(4, 0.7, len(rows)).astype(int) + 3
    answers = np.minimum(generator.geometric(0.04, len(rows)), 64)
    scores = np.clip(generator.normal(0.96, 0.02, len(rows)), 0, 1)
    columns: dict[str, Any] = {
        "id": [f"record-{row}" for row in rows],
        "output": [f"answer {row} <script>alert({row})</script>" for row in rows],
        "finish_reason": ["length" if n == 64 else "stop" for n in answers],
        "prompt_tokens": lengths,
        "completion_tokens": answers,
        "answer_logprob": [-1 / n for n in answers],
        "adapters": [m.adapters for m in mixtures],
        "weights": [m.weights for m in mixtures],
        "mixture": [m.key for m in mixtures],
        "route_score": scores,
        "route_confidence": scores,
        "fallback": [not m.adapters for m in mixtures],
        "last_assistant": [False for _ in mixtures],
        "prompt": [f"What is {row} & more?" for row in rows],
        "router_fingerprint": ["r"] * len(rows),
        "bank_fingerprint": ["b"] * len(rows),
    }
    return pa.Table.from_arrays([pa.array(columns[f.name], f.type) for f in SCHEMA], schema=SCHEMA)


def _mixture(generator: np.random.Generator) -> Mixture:
    count = int(generator.choice([0, 1, 2, 3], p=[0.05, 0.6, 0.25, 0.1]))
    chosen = generator.choice(len(ADAPTERS), count, replace=False, p=[0.4, 0.25, 0.2, 0.1, 0.05])
    steps = [16 // max(1, count)] * count
    if steps:
        steps[0] += 16 - sum(steps)
    return Mixture.of({ADAPTERS[i]: n / 16 for i, n in zip(chosen, steps, strict=True)})


def _letters(rows: np.ndarray) -> pa.Table:
    kinds = ["PromptTooLong" if row % 3 else "InvalidJson" for row in rows]
    letters = [
        {
            "id": f"record-{row}",
            "stage": "read",
            "error_type": kind,
            "message": f"why {row}",
            "record": '{"a": "<i>"}',
            "row": row,
        }
        for row, kind in zip(rows.tolist(), kinds, strict=True)
    ]
    return pa.Table.from_pylist(letters, schema=DEAD)


def _run(total: Counts, records: int, config: dict[str, Any]) -> dict[str, Any]:
    seconds = 600
    steps = np.linspace(0, 1, 61) ** 1.1
    return {
        "state": "finished",
        "config": {
            "model": {"path": "models/tiny"},
            "generation": {"max_new_tokens": 64, "temperature": 0.0},
            "cost": {"device_hour": 2.5, "currency": "EUR"},
            "command": {"input": "s3://lake/in", "output": "s3://lake/out", "limit": None},
            **config,
        },
        "versions": {"python": "3.11.7", "ray": "2.60.0"},
        "fingerprints": {"model": "m1", "bank": "b1", "router": "r1", "tokenizer": "t1"},
        "guard": {},
        "schemas": {"data": encode_schema(SCHEMA), "dead": encode_schema(DEAD)},
        "started": "2026-11-25T20:00:00Z",
        "counts": {"records": records, "incomplete": 0, **asdict(total)},
        "incidents": [asdict(Incident("generate", "run", "RuntimeError", "told for the test")) | {"times": 2}],
        "devices": {"generate_actors": 4, "gpus_each": 1, "threads_each": [1], "device_seconds": 4.0 * seconds},
        "timeline": [
            [1.7e9 + seconds * i / 60, int(total.data * s), int(total.dead * s), int(total.completion_tokens * s)]
            for i, s in enumerate(steps)
        ],
        "timings": {
            "seconds": seconds,
            "generated_tokens": total.completion_tokens,
            "tokens_per_second": round(total.completion_tokens / seconds, 1),
        },
    }


def pairs_of(counts: dict[str, int]) -> Counter[tuple[str, str]]:
    """Records that two adapters answered together, counted the plain way."""
    found: Counter[tuple[str, str]] = Counter()
    for key, count in counts.items():
        names = Mixture.parse(key).adapters
        for a in names:
            for b in names:
                if a < b:
                    found[a, b] += count
    return found
