"""Answer every record of a data set with its own mixture of adapters."""

from typing import TYPE_CHECKING

import click

from jobs._cli import OK, Job, run_job
from jobs._options import RecordOptions, progress_option, record_options

if TYPE_CHECKING:
    from conf.schema import GenerateConfig


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
        return _show_config(options, config, new_run)
    input_url, output = options.files()
    # Seconds of loading, after the errors of the command line.
    from jobs._dry_run import print_estimate
    from jobs._generation import prepare, run
    from jobs._progress import view_of
    from pipeline.auto_engine import choose_engine

    view = view_of(progress)
    chosen = choose_engine(options.words, config, "" if new_run else output, log=view.log)
    job, prepared = prepare(chosen, input_url, output, options.limit, new_run, view)
    if dry_run:
        print_estimate(job, prepared, chosen.config, sample_seconds, basis)
        return OK
    return run(job, chosen.config, view)


def _show_config(options: RecordOptions, config: "GenerateConfig", new_run: bool) -> int:
    """Print the config as YAML, with the engine that the command would have and the reason as a comment."""
    from conf import as_yaml
    from conf.generate import shown_config
    from pipeline.auto_engine import choose_engine

    output = "" if new_run or None in (options.input, options.output) else options.files()[1]
    chosen = choose_engine(options.words, config, output, log=_print_comment)
    _print_comment(str(chosen.choice))
    print(as_yaml(shown_config(chosen.config)), end="")
    return OK


def _print_comment(line: str) -> None:
    print(f"# {line}")


if __name__ == "__main__":
    run_job(main)
