"""Write the least certain answers of a run as a table to look at and correct."""

import csv
import io
from typing import Any

import click
import orjson

from jobs._cli import OK, Job, run_job
from pipeline.errors import UserError


@click.command("review", cls=Job)
@click.option("--run", required=True, metavar="URL", help="Output of loraloom generate.")
@click.option("--rows", default=100, show_default=True, type=click.IntRange(min=1), metavar="N", help="Rows to choose.")
@click.option("--to", required=True, metavar="FILE", help="File to write: .csv, or .html to fill in with a browser.")
@click.option("--input", "source", metavar="URL", help="Table with the prompts by id, if the run has not kept them.")
@click.option("--random", "seed", type=int, metavar="SEED", help="Random rows instead, to estimate the accuracy.")
def main(run: str, rows: int, to: str, source: str | None, seed: int | None) -> int:
    """Write the least certain answers of a run as a table to look at and correct.

    \b
    loraloom review --run URL --to FILE [--rows N] [--input URL] [--random SEED]

    Each mixture gives rows in proportion to its size. Fill in the column answer where you know the right answer, and
    leave it empty elsewhere. The file is a --reference of loraloom evaluate, and --data of loraloom train-adapters and
    train-router. Prompts are in it if the run was made with output.keep_prompt=true, or with --input.
    """
    from pipeline.evaluation.review import choose_rows
    from pipeline.report.review_page import review_page
    from pipeline.storage.store.objects import create
    from pipeline.storage.store.redact import masked
    from pipeline.storage.store.urls import open_url

    suffix = to.rpartition(".")[2]
    if suffix not in ("csv", "html"):
        raise UserError(f"review: --to {masked(to)} ends with neither .csv nor .html")
    chosen = choose_rows(run, rows, seed)
    if not chosen.rows:
        raise UserError(f"review: there is no answer in {masked(run)}")
    table = _with_prompts(chosen.rows, source)
    text = _csv(table) if suffix == "csv" else review_page(masked(run), table, chosen.total)
    if not create(*open_url(to), text.encode()):  # it may hold corrections of hours
        raise UserError(f"review: {masked(to)} exists; give another --to")
    print(f"review     {len(table)} of {chosen.total:,} answers, {chosen.mixtures:,} mixtures -> {masked(to)}")
    if "prompt" not in table[0]:
        print("prompts    not in the run (output.keep_prompt=true keeps them); add them with --input")
    return OK


def _with_prompts(rows: list[dict[str, Any]], source: str | None) -> list[dict[str, Any]]:
    """Add the prompts of a table by id; the order of the columns stays that of a review."""
    from pipeline.evaluation.review import COLUMNS
    from pipeline.storage.input.columns import id_text
    from pipeline.storage.input.labelled import read_table

    if source:
        names = ["prompt", "messages"]
        found = {id_text(row["id"]): row for row in read_table(source, ["id"], names)}
        rows = [row | {name: found.get(row["id"], {}).get(name) for name in names} for row in rows]
    return [{name: row[name] for name in COLUMNS if name in row} for row in rows]


def _shown(prompt: Any) -> Any:
    """Return a text as it is, and messages as JSON."""
    return orjson.dumps(prompt).decode() if isinstance(prompt, (list, dict)) else prompt


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows({name: _shown(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


if __name__ == "__main__":
    run_job(main)
