"""Copy a run's answers into another form.

    python -m jobs.export --run URL --to FOLDER --format parquet [--partition-by COLUMN]
    python -m jobs.export --run URL --to FILE --format jsonl
    python -m jobs.export --run URL --to FILE --format openai_batch [--errors FILE]

The run's own folder stays as it is: it is Parquet that `datasets.load_dataset` and DuckDB read directly. `parquet` with
`--partition-by` makes a folder `COLUMN=VALUE` for each value; `openai_batch` makes the output file of the OpenAI batch
API, and with `--errors` its error file.
"""

import argparse

from jobs._cli import OK, run_job
from pipeline.errors import UserError
from pipeline.storage.output.export import export_errors, export_lines, export_parquet
from pipeline.storage.store.redact import masked

_FORMATS = ("parquet", "jsonl", "openai_batch")


def main(argv: list[str]) -> int:
    """Run the command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="jobs.export", description="Copy a run's answers into another form.")
    parser.add_argument("--run", required=True, help="the output of jobs.generate")
    parser.add_argument("--to", required=True, help="folder (parquet) or file of the copy")
    parser.add_argument("--format", required=True, choices=_FORMATS)
    parser.add_argument("--partition-by", metavar="COLUMN", help="parquet: a folder for each value of this column")
    parser.add_argument("--errors", metavar="FILE", help="openai_batch: file of the dead letters")
    args = parser.parse_args(argv)
    if args.partition_by and args.format != "parquet":
        raise UserError("export: --partition-by goes with --format parquet")
    if args.errors and args.format != "openai_batch":
        raise UserError("export: --errors goes with --format openai_batch")
    if args.format == "parquet":
        rows = export_parquet(args.run, args.to, args.partition_by)
    else:
        rows = export_lines(args.run, args.to, args.format)
    print(f"exported   {rows} rows -> {masked(args.to)}")
    if args.errors:
        print(f"errors     {export_errors(args.run, args.errors)} rows -> {masked(args.errors)}")
    return OK


if __name__ == "__main__":
    run_job(main)
