"""Route only: print and write the mixture of each record, without generating."""

import io
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq

from jobs._cli import OK, Job, run_job
from jobs._generation import last_assistant_lines
from jobs._options import RecordOptions, record_options
from pipeline.auto_engine import any_engine
from pipeline.batches import ROUTES, TOP_CLASSES, top_classes
from pipeline.errors import UserError
from pipeline.from_config import job_settings
from pipeline.job.preflight import check_models
from pipeline.records import PASSED, PROMPT_PARTS, SENTENCE_MIXTURES, Mixture, Prompt, Record, concat_schemas
from pipeline.routing.explanations import Explanation, explain
from pipeline.routing.router import unnamed_line
from pipeline.routing.sentence_routes import router_inputs
from pipeline.settings import JobSettings
from pipeline.stages.part_requests import part_tokens
from pipeline.stages.route import Encoded, RouteRecords
from pipeline.stages.tables import prompt_of
from pipeline.storage.input.files import Listing
from pipeline.storage.input.plan import check_input, plan_input
from pipeline.storage.input.read import read_split, staged_table, staged_tables
from pipeline.storage.output.run import RunFolder
from pipeline.storage.store.objects import put
from pipeline.storage.store.redact import masked, user_errors
from pipeline.storage.store.urls import open_url

_SHOWN = 160  # characters of a prompt
_ROUTES, _MARK = "routes.parquet", {b"loraloom": b"routes"}


@click.command("route", cls=Job)
@record_options
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="Route this prompt; may be repeated.")
@click.option("--explain", "explained", default=3, show_default=True, metavar="N", help="Explain the first N records.")
def main(options: RecordOptions, prompts: tuple[str, ...], explained: int) -> int:
    """Route only: print and write the mixture of each record, without generating.

    \b
    loraloom route --input URL --output URL [--explain N] [group=option ...] [key=value ...]
    loraloom route --prompt TEXT [--prompt TEXT ...] [group=option ...] [key=value ...]

    Writes routes.parquet with id, mixture, adapters, weights, route_score, route_confidence, fallback, prompt_tokens
    and top_classes; prints the histogram of mixtures, and explains the first ones: the router's most likely classes,
    the in-domain score and the gate. With --prompt it explains the given prompts and writes nothing.

    With routing.granularity=sentence the mixture is that of the prompt's last sentence, and sentence_mixtures holds
    the mixtures of all sentences, in the place of top_classes. With routing.granularity=parts the parts of a prompt
    are explained one by one. prompt_parts holds their first tokens and mixtures, and mixture is the mean of these.
    """
    if prompts and (options.input or options.output or options.limit or options.date):
        raise UserError("command: --prompt goes without --input, --output, --date and --limit")
    settings = read_settings(options, with_files=not prompts)
    listing = None
    if not prompts:
        _check_output(settings.output)
        # Routes of an earlier command are no input.
        listing = check_input(settings.input, settings.columns, open_url(settings.output)[1])
    checked = check_models(settings)
    if checked.unnamed:
        print(unnamed_line(checked.unnamed))
    settings = settings.with_routing(checked.routing)
    route = RouteRecords(settings, checked.context)
    if listing is None:
        records = [Record(index, f"prompt {index + 1}", text) for index, text in enumerate(prompts)]
        _print_explanations(route, route(staged_table(records, pa.schema([]))), len(records))
    else:
        _route_all(route, settings, explained, listing)
    return OK


def read_settings(options: RecordOptions, with_files: bool = True) -> JobSettings:
    """The stages' settings of a command line; `UserError` if the config is wrong."""
    config = any_engine(options.words)
    input_url, output = options.files() if with_files else ("", "")
    return job_settings(config, input_url, output, options.limit)


def _check_output(url: str) -> None:
    """Raise `UserError` if the output cannot be written, or has such a file that no such command wrote."""
    RunFolder(url).check_writable()
    fs, root = open_url(url)
    path = f"{root.rstrip('/')}/{_ROUTES}"
    with user_errors(f"output: {masked(url)} holds another {_ROUTES}; give another --output"):
        if fs.exists(path):
            with fs.open(path, "rb") as file:
                if not _MARK.items() <= (pq.read_schema(file).metadata or {}).items():
                    raise ValueError("it was not written by loraloom route")


def _route_all(route: RouteRecords, settings: JobSettings, explained: int, listing: Listing) -> None:
    fs, root = open_url(settings.output)
    schema = concat_schemas(ROUTES, SENTENCE_MIXTURES if settings.sentences else TOP_CLASSES)
    schema = concat_schemas(schema, PROMPT_PARTS if settings.parts else pa.schema([])).with_metadata(_MARK)
    mixtures: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    buffer, left, last_assistant = io.BytesIO(), explained, 0
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for table in map(route, _records(settings, listing)):
            alive = table.filter(table["dead"].is_null())
            mixtures.update(alive["mixture"].to_pylist())
            last_assistant += sum(alive["last_assistant"].to_pylist())
            refused.update(dead["error_type"] for dead in table["dead"].drop_null().to_pylist())
            writer.write_table(_routes(alive, schema, _explanations(route, alive)))
            left -= _print_explanations(route, table, left)
    with user_errors(f"output: cannot write to {masked(settings.output)}"):
        put(fs, f"{root.rstrip('/')}/{_ROUTES}", buffer.getvalue())
    _print_histogram(mixtures, refused)
    for line in last_assistant_lines(last_assistant, settings.model.prompts):
        print(line)
    print(f"output     {masked(settings.output)}/{_ROUTES}")


def _records(settings: JobSettings, listing: Listing) -> Iterator[pa.Table]:
    """Read the files of the ``listing`` as tables of records."""
    plan = plan_input(settings.input, settings.window_records, settings.columns, limit=settings.limit, listing=listing)
    if plan.skipped_files:
        print(plan.skipped_files)
    plan.check_records()
    for window in range(plan.windows):
        repeated = plan.duplicates_of(window)
        for split in plan.splits(window):
            records = read_split(settings.input, split, settings.columns, repeated)
            yield from staged_tables(records, plan.passed, 512)


def _explanations(route: RouteRecords, alive: pa.Table) -> list[list[Explanation]]:
    """Explain each part of each record; empty if sentences are routed one by one, as a whole prompt does not decide."""
    if route.settings.sentences:
        return []
    has_parts = "prompt_parts" in alive.column_names
    rows = alive.select(["tokens", "prompt_parts"] if has_parts else ["tokens"]).to_pylist()
    parts = [part_tokens(row["tokens"], row.get("prompt_parts")) for row in rows]
    reasons = iter(explain(route.router, list(chain.from_iterable(parts)), route.settings.routing))
    return [[next(reasons) for _ in some] for some in parts]


def _print_explanations(route: RouteRecords, table: pa.Table, limit: int) -> int:
    """Print why the first ``limit`` records of a routed table got their mixtures; returns their number."""
    shown = table.slice(0, max(0, limit))
    alive = shown.filter(shown["dead"].is_null())
    reasons = iter(_explanations(route, alive))
    # Not the columns that are passed through: Python cannot hold all of their values.
    for row in shown.select([name for name in shown.column_names if not name.startswith(PASSED)]).to_pylist():
        print(f"{row['id']}: {_shown(row['prompt'] or row['messages'] or row['raw'] or '')}")
        if row["dead"]:
            print(f"  refused    {row['dead']['error_type']}: {row['dead']['message']}")
        elif route.settings.sentences:
            _print_sentences(route, row)
        else:
            _print_parts(route, row, next(reasons))
    return int(shown.num_rows)


def _print_parts(route: RouteRecords, row: dict[str, Any], reasons: list[Explanation]) -> None:
    """Print why a record got its mixture, or each part of its prompt its own."""
    indent = "  "
    head, tail = map(len, route.prompts.template_tokens(_prompt(row)))
    tokens = part_tokens(row["tokens"], row.get("prompt_parts"))
    for number, (part, reason) in enumerate(zip(tokens, reasons, strict=True), 1):
        if len(tokens) > 1:
            text = route.prompts.tokenizer.decode(part[head : len(part) - tail])
            print(f"  part {number} of {len(tokens)}: {_shown(text)}")
            indent = "    "
        print("\n".join(indent + line for line in reason.lines(route.settings.routing)))


def _prompt(row: dict[str, Any]) -> Prompt:
    return prompt_of(row["prompt"], row["messages"], row["template"])


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return f"{line[:_SHOWN]}{'...' if len(line) > _SHOWN else ''}"


def _print_sentences(route: RouteRecords, row: dict[str, Any]) -> None:
    """Print why each sentence got its mixture; an out-of-domain sentence keeps the mixture before it."""
    settings = route.settings
    assert settings.sentences is not None
    [encoded] = route.tokenise([_prompt(row)], [max(1, len(row["tokens"]))])
    assert isinstance(encoded, Encoded)  # it was routed
    shown = list(router_inputs(encoded.tokens, encoded.sentences, settings.sentences.context_sentences))
    for span, reason in zip(row["spans"], explain(route.router, shown, settings.routing), strict=True):
        print(f"  from token {span['start']}: {span['mixture']}")
        print("\n".join(f"    {line}" for line in reason.lines(settings.routing)[:2]))


def _routes(table: pa.Table, schema: pa.Schema, reasons: list[list[Explanation]]) -> pa.Table:
    mixtures = [Mixture.parse(key) for key in table["mixture"].to_pylist()]
    columns = {
        "adapters": [m.adapters for m in mixtures],
        "weights": [m.weights for m in mixtures],
        "prompt_tokens": [len(tokens) for tokens in table["tokens"].to_pylist()],
        "top_classes": [top_classes(parts) for parts in reasons],
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
