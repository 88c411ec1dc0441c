"""Copy a run's answers as Parquet, JSON lines, or the output file of the OpenAI batch API."""

from typing import TYPE_CHECKING

import click

from jobs._cli import OK, Job, run_job
from pipeline.errors import UserError

FORMATS = ("parquet", "jsonl", "openai_batch")

if TYPE_CHECKING:
    from pipeline.storage.output.export import Kind


@click.command("export", cls=Job)
@click.option("--run", required=True, metavar="URL", help="Output of the run.")
@click.option("--to", required=True, metavar="URL", help="Folder (parquet) or file of the copy.")
@click.option("--format", "form", required=True, type=click.Choice(FORMATS), help="Format of the copy.")
@click.option("--partition-by", metavar="COLUMN", help="parquet: one folder for each value of this column.")
@click.option("--errors", metavar="URL", help="openai_batch: file of the dead letters.")
def main(run: str, to: str, form: "Kind", partition_by: str | None, errors: str | None) -> int:
    """Copy a run's answers as Parquet, JSON lines, or the output file of the OpenAI batch API.

    \b
    loraloom export --run URL --to FOLDER --format parquet [--partition-by COLUMN]
    loraloom export --run URL --to FILE --format jsonl
    loraloom export --run URL --to FILE --format openai_batch [--errors FILE]

    The run's own folder stays as it is: datasets.load_dataset and DuckDB read it directly. --partition-by makes a
    folder COLUMN=VALUE for each value; --errors writes the error file of the OpenAI batch API.
    """
    from pipeline.storage.output.export import export_errors, export_lines, export_parquet
    from pipeline.storage.store.redact import masked

    if partition_by and form != "parquet":
        raise UserError("export: --partition-by goes with --format parquet")
    if errors and form != "openai_batch":
        raise UserError("export: --errors goes with --format openai_batch")
    rows = export_parquet(run, to, partition_by) if form == "parquet" else export_lines(run, to, form)
    print(f"exported   {rows} rows -> {masked(to)}")
    if errors:
        print(f"errors     {export_errors(run, errors)} rows -> {masked(errors)}")
    return OK


if __name__ == "__main__":
    run_job(main)
