"""Write the report of a run again, or compare it with an earlier run."""

import click

from jobs._cli import OK, Job, run_job
from pipeline.errors import UserError


@click.command("report", cls=Job)
@click.option("--run", required=True, metavar="URL", help="Output of the run.")
@click.option("--against", metavar="URL", help="Output of an earlier run over the same records.")
@click.option("--device-hour", type=float, metavar="PRICE", help="Price of a device hour (config: cost.device_hour).")
@click.option("--to", metavar="URL", help="File of the report; default: report.html in the run's folder.")
def main(run: str, against: str | None, device_hour: float | None, to: str | None) -> int:
    """Write the report of a run again, or compare it with an earlier run.

    \b
    loraloom report --run URL [--against URL] [--device-hour PRICE] [--to FILE]

    Replaces report.html in the run's folder, or writes another file with --to. --against adds what differs from an
    earlier run over the same records: figures, settings, mixtures, answers.
    """
    from pipeline.report import render, write_report
    from pipeline.storage.output.run import REPORT
    from pipeline.storage.store.objects import create
    from pipeline.storage.store.redact import masked
    from pipeline.storage.store.urls import open_url

    if to:
        if not create(*open_url(to), render(run, against, device_hour).encode()):
            raise UserError(f"report: {masked(to)} exists; give another --to")
    else:
        write_report(run, against, device_hour)
    print(f"report     {masked(to or f'{run}/{REPORT}')}")
    return OK


if __name__ == "__main__":
    run_job(main)
