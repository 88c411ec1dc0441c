"""Route only: which mixture each record would get, without generating.

    python -m jobs.route --input URL --output URL [--limit N] [--explain N] [group=option ...] [key=value ...]
    python -m jobs.route --prompt TEXT [--prompt TEXT ...] [group=option ...] [key=value ...]

Writes one Parquet file with `id, mixture, adapters, weights, route_score, fallback, prompt_tokens, top_classes` and
prints the histogram of mixtures, and why the first records got theirs: the router's most likely classes, the in-domain
score and the gate. With `--prompt` it prints that for the given prompts and writes nothing. With
`routing.granularity=sentence` the mixture is the prompt's last sentence's, and `sentence_mixtures` holds those of all
in the place of `top_classes`.
"""

import argparse
import io
from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from conf.schema import GenerateConfig
from jobs._arguments import add_arguments, fill_date, need_files, read_config
from jobs._cli import OK, run_job
from pipeline.errors import UserError
from pipeline.from_config import job_settings
from pipeline.job.preflight import check_models
from pipeline.records import SENTENCE_MIXTURES, Mixture, Record, joined
from pipeline.routing import Explanation, explain, shown_of
from pipeline.settings import JobSettings
from pipeline.stages.route import RouteRecords
from pipeline.storage.input.plan import plan_input
from pipeline.storage.input.read import read_split, staged_table, staged_tables
from pipeline.storage.store.objects import put
from pipeline.storage.store.redact import masked
from pipeline.storage.store.urls import open_url

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("mixture", pa.string()),
        ("adapters", pa.list_(pa.string())),
        ("weights", pa.list_(pa.float32())),
        ("route_score", pa.float32()),
        ("fallback", pa.bool_()),
        ("prompt_tokens", pa.int32()),
    ]
)
_CLASSES = pa.list_(pa.struct([("adapter", pa.string()), ("probability", pa.float32())]))
_WHY = pa.schema([("top_classes", _CLASSES)])
_SHOWN = 160  # characters of a prompt


def main(argv: list[str]) -> int:
    """Run the command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="jobs.route", description="Route records without generating.")
    add_arguments(parser)
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="route this prompt; may be repeated")
    parser.add_argument("--explain", type=int, default=3, metavar="N", help="say why for the first N records")
    args = parser.parse_intermixed_args(argv)
    if args.prompt and (args.input or args.output or args.limit):
        raise UserError("command: --prompt goes without --input, --output and --limit")
    _, settings = read_settings(args, needs_files=not args.prompt)
    context, _ = check_models(settings)
    route = RouteRecords(settings, context)
    if args.prompt:
        records = [Record(place, f"prompt {place + 1}", text) for place, text in enumerate(args.prompt)]
        _explain(route, route(staged_table(records, pa.schema([]))), len(records))
    else:
        _route_all(route, settings, args)
    return OK


def read_settings(args: argparse.Namespace, needs_files: bool = True) -> tuple[GenerateConfig, JobSettings]:
    """The config and the stages' settings; `UserError` where the config is wrong. URLs in ``args`` get their date."""
    config = read_config(args)
    fill_date(args)
    if needs_files:
        need_files(args)
    return config, job_settings(config, args.input or "", args.output or "", args.limit)


def _route_all(route: RouteRecords, settings: JobSettings, args: argparse.Namespace) -> None:
    fs, root = open_url(settings.output)
    schema = joined(_SCHEMA, SENTENCE_MIXTURES if settings.sentences else _WHY)
    mixtures: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    buffer, left = io.BytesIO(), args.explain
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for table in map(route, _records(settings, root)):
            alive = table.filter(table["dead_stage"].is_null())
            mixtures.update(alive["mixture"].to_pylist())
            refused.update(table["dead_type"].drop_null().to_pylist())
            writer.write_table(_routes(alive, schema, _explanations(route, alive)))
            left -= _explain(route, table, left)
    put(fs, f"{root.rstrip('/')}/routes.parquet", buffer.getvalue())
    _print_histogram(mixtures, refused)
    print(f"output     {masked(settings.output)}/routes.parquet")


def _records(settings: JobSettings, output: str) -> Iterator[pa.Table]:
    """``output``: its path; routes of an earlier command are no input, where that is a folder above."""
    plan = plan_input(settings.input, settings.window_records, settings.columns, output, settings.limit)
    for window in range(plan.windows):
        repeated = plan.duplicates_of(window)
        for split in plan.splits(window):
            records = read_split(settings.input, split, settings.columns, repeated)
            yield from staged_tables(records, plan.passed, 512)


def _explanations(route: RouteRecords, alive: pa.Table) -> list[Explanation]:
    """None where sentences are routed one by one: the classes of a whole prompt would say nothing of its mixture."""
    if route.settings.sentences:
        return []
    return explain(route.router, alive["tokens"].to_pylist(), route.settings.routing)


def _explain(route: RouteRecords, table: pa.Table, most: int) -> int:
    """Say why the first ``most`` records of a routed table got their mixtures; returns how many there were."""
    shown = table.slice(0, max(0, most))
    alive = shown.filter(shown["dead_stage"].is_null())
    reasons = iter(_explanations(route, alive))
    for row in shown.to_pylist():
        prompt = " ".join((row["prompt"] or row["messages"] or row["raw"] or "").split())
        print(f"{row['id']}: {prompt[:_SHOWN]}{'...' if len(prompt) > _SHOWN else ''}")
        if row["dead_stage"]:
            print(f"  refused    {row['dead_type']}: {row['dead_message']}")
        elif route.settings.sentences:
            _explain_sentences(route, row)
        else:
            print("\n".join(f"  {line}" for line in next(reasons).lines(route.settings.routing)))
    return int(shown.num_rows)


def _explain_sentences(route: RouteRecords, row: dict[str, Any]) -> None:
    """The same for each sentence; where one is out of domain the mixture before it goes on."""
    settings = route.settings
    assert settings.sentences is not None
    prompt = row["prompt"] if row["messages"] is None else orjson.loads(row["messages"])
    (encoded,), _ = route.tokenise([prompt], [max(1, len(row["tokens"]))])
    shown = list(shown_of(encoded.tokens, encoded.sentences, settings.sentences.context_sentences))
    for span, reason in zip(row["spans"], explain(route.router, shown, settings.routing), strict=True):
        print(f"  from token {span['start']}: {span['mixture']}")
        print("\n".join(f"    {line}" for line in reason.lines(settings.routing)[:2]))


def _routes(table: pa.Table, schema: pa.Schema, reasons: list[Explanation]) -> pa.Table:
    mixtures = [Mixture.parse(key) for key in table["mixture"].to_pylist()]
    columns = {
        "adapters": [m.adapters for m in mixtures],
        "weights": [m.weights for m in mixtures],
        "prompt_tokens": [len(tokens) for tokens in table["tokens"].to_pylist()],
        "top_classes": [[{"adapter": a, "probability": p} for a, p in reason.classes] for reason in reasons],
    }
    source = {"sentence_mixtures": "spans"}
    arrays = [
        pa.array(columns[f.name], f.type) if f.name in columns else table[source.get(f.name, f.name)] for f in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _print_histogram(mixtures: Counter[str], refused: Counter[str]) -> None:
    total = mixtures.total()
    print(f"{total} records routed to {len(mixtures)} distinct mixtures, {refused.total()} refused")
    for mixture, count in mixtures.most_common(30):
        print(f"  {count:6d}  {count / total:6.1%}  {mixture}")
    if len(mixtures) > 30:
        print(f"  ... and {len(mixtures) - 30} more")
    for error, count in refused.most_common():
        print(f"  {count:6d}  refused: {error}")


if __name__ == "__main__":
    run_job(main)
