"""Answer every record of a data set with its own mixture of adapters."""

import click

from jobs._cli import OK, Job, run_job
from jobs._options import RecordOptions, progress_option, record_options


@click.command("generate", cls=Job)
@record_options
@click.option("--new-run", is_flag=True, help="Discard what an earlier run left in the output.")
@progress_option
@click.option("--show-config", is_flag=True, help="Print the composed config and exit.")
@click.option("--dry-run", is_flag=True, help="Check everything, print an estimate and exit.")
@click.option("--basis", metavar="URL", help="With --dry-run: take speed and lengths from this earlier run.")
@click.option(
    "--sample-seconds", default=20.0, show_default=True, metavar="S", help="--dry-run: time for samples; 0: none."
)
def main(
    options: RecordOptions,
    new_run: bool,
    progress: str,
    show_config: bool,
    dry_run: bool,
    basis: str | None,
    sample_seconds: float,
) -> int:
    """Answer every record of a data set with its own mixture of adapters.

    \b
    loraloom generate --input URL --output URL [group=option ...] [key=value ...]

    Before a long run: --show-config prints the config of the command; --dry-run checks everything, routes a sample,
    answers some of it and prints what the job would take (tokens, device hours, output size), and writes nothing.

    The same command again finishes what is missing. Exit 0: every record is committed or a dead letter within the
    error budget. Exit 1: over the budget, or incomplete. Exit 2: an error in config, input, bank or router, found
    before any generation.
    """
    config = options.config()
    if show_config:
        from conf import as_yaml
        from conf.generate import shown_config

        print(as_yaml(shown_config(config)), end="")
        return OK
    input_url, output = options.files()
    # Seconds of loading, after the errors of the command line.
    from jobs._dry_run import print_estimate
    from jobs._generation import prepare, run
    from jobs._progress import view_of

    view = view_of(progress)
    job, prepared = prepare(config, input_url, output, options.limit, new_run, view)
    if dry_run:
        print_estimate(job, prepared, config, sample_seconds, basis)
        return OK
    return run(job, config, view)


if __name__ == "__main__":
    run_job(main)
