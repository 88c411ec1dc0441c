"""Write the report of a run anew, or beside an earlier one.

    python -m jobs.report --run URL [--against URL] [--device-hour PRICE] [--to FILE]

`report.html` in the run's folder is replaced, or with `--to` another file is written. `--against` adds what differs
from an earlier run over the same records: figures, settings, mixtures, answers.
"""

import argparse

from jobs._cli import OK, run_job
from pipeline.report import NAME, render, write_report
from pipeline.storage.store.objects import put
from pipeline.storage.store.redact import masked
from pipeline.storage.store.urls import open_url


def main(argv: list[str]) -> int:
    """Run the command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="jobs.report", description="Write the report of a run.")
    parser.add_argument("--run", required=True, help="the output of the run")
    parser.add_argument("--against", help="the output of an earlier run")
    parser.add_argument("--device-hour", type=float, help="price of a device hour (config: cost.device_hour)")
    parser.add_argument("--to", help="file of the report (default: report.html in the run)")
    args = parser.parse_args(argv)
    if args.to:
        fs, path = open_url(args.to)
        put(fs, path, render(args.run, args.against, args.device_hour).encode())
    else:
        write_report(args.run, args.against, args.device_hour)
    print(f"report     {masked(args.to or f'{args.run}/{NAME}')}")
    return OK


if __name__ == "__main__":
    run_job(main)
