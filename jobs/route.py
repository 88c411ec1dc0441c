"""Route only: which mixture each record would get, without generating.

    python -m jobs.route --input URL --output URL [group=option ...] [key=value ...]

Writes one Parquet file with `id, mixture, adapters, weights, route_score, fallback, prompt_tokens` and prints the
histogram of mixtures. With `routing.granularity=sentence` the mixture is the prompt's last sentence's, and
`sentence_mixtures` holds those of all.
"""

import argparse
import io
from collections import Counter
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from jobs._cli import OK, run_job
from jobs._settings import add_arguments, read_settings
from pipeline.records import SENTENCE_MIXTURES, Mixture, joined
from pipeline.stages.prepare import check_models
from pipeline.stages.route import RouteRecords
from pipeline.stages.settings import JobSettings
from pipeline.storage.files import open_url
from pipeline.storage.objects import put
from pipeline.storage.plan import plan_input
from pipeline.storage.read import portions, read_split, staged_table
from pipeline.storage.secrets import masked

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


def main(argv: list[str]) -> int:
    """Run the command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="jobs.route", description="Route records without generating.")
    add_arguments(parser)
    args = parser.parse_intermixed_args(argv)
    _, settings = read_settings(args)
    context, _ = check_models(settings)
    route = RouteRecords(settings, context)
    fs, root = open_url(args.output)
    schema = joined(_SCHEMA, SENTENCE_MIXTURES) if settings.sentences else _SCHEMA
    mixtures: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for table in map(route, _records(settings)):
            alive = table.filter(table["dead_stage"].is_null())
            mixtures.update(alive["mixture"].to_pylist())
            refused.update(table["dead_type"].drop_null().to_pylist())
            writer.write_table(_routes(alive, schema))
    put(fs, f"{root.rstrip('/')}/routes.parquet", buffer.getvalue())
    _print_histogram(mixtures, refused)
    print(f"output     {masked(args.output)}/routes.parquet")
    return OK


def _records(settings: JobSettings) -> Iterator[pa.Table]:
    plan = plan_input(settings.input, settings.window_records, settings.columns)
    for window in range(plan.windows):
        repeated = plan.duplicates_of(window)
        for split in plan.splits(window):
            records = read_split(settings.input, split, settings.columns, repeated)
            for part in portions(records, 512):
                yield staged_table(part, plan.passed)


def _routes(table: pa.Table, schema: pa.Schema) -> pa.Table:
    mixtures = [Mixture.parse(key) for key in table["mixture"].to_pylist()]
    columns = {
        "adapters": [m.adapters for m in mixtures],
        "weights": [m.weights for m in mixtures],
        "prompt_tokens": [len(tokens) for tokens in table["tokens"].to_pylist()],
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
