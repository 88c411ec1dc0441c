"""Try the dead letters of a finished run again."""

import sys
from collections.abc import Sequence
from dataclasses import asdict

import click

from conf import saved_settings
from conf.schema import GenerateConfig
from jobs._cli import INCOMPLETE, OK, Job, config_words, run_job
from jobs._options import progress_option
from jobs._progress import view_of
from pipeline.artifacts import write_copies
from pipeline.errors import UserError
from pipeline.from_config import job_settings
from pipeline.job.retry_dead import RetryJob
from pipeline.job.stop import stop_on_store_errors
from pipeline.pools import start_pools
from pipeline.report import flatten_config, write_report
from pipeline.storage.commit.replace import RETRYABLE_STAGES, RetryFilter
from pipeline.storage.output.run import RUN, run_values
from pipeline.storage.store.redact import masked

_FREE = ("engine.", "cluster.", "shuffle.", "errors.", "cost.")


@click.command("retry-dead", cls=Job)
@click.option("--run", required=True, metavar="URL", help="Output of the run.")
@click.option("--input", "input_url", metavar="URL", help="Input of the run, if its URL was not kept whole.")
@click.option("--stage", "stages", multiple=True, type=click.Choice(RETRYABLE_STAGES), help="Only this stage.")
@click.option("--error", "errors", multiple=True, metavar="TYPE", help="Only this error type; may be repeated.")
@progress_option
@config_words
def main(
    run: str,
    input_url: str | None,
    stages: tuple[str, ...],
    errors: tuple[str, ...],
    progress: str,
    overrides: tuple[str, ...],
) -> int:
    """Try the dead letters of a finished run again.

    \b
    loraloom retry-dead --run URL [--stage STAGE] [--error TYPE] [key=value ...]

    Uses the run's own config; key=value may change what does not decide the output (engine, cluster, shuffle, errors,
    cost). Records that are answered now move from dead to data, the others get a new dead letter. Records that were
    refused when they were read keep theirs: the input has not changed.

    Exit 0: done, and the run is within its error budget. Exit 1: over it. Exit 2: there is no finished run, or model,
    bank, router or input have changed.
    """
    config, source, limit = saved_config(run, input_url, overrides)
    view = view_of(progress)
    wanted = RetryFilter(stages or RETRYABLE_STAGES, errors or None)
    job = RetryJob(job_settings(config, source, run, limit), wanted, view.log, listener=view.update)
    with view:
        result = job.run(lambda: start_pools(config, view.log))
    with stop_on_store_errors():  # even if nothing was tried: an earlier command may have been killed before this point
        write_report(run)
        write_copies(run, config)
    summary = f"retried    {result.retried} dead letters: {result.answered} answered, {result.dead} dead letters left"
    view.result([summary], asdict(result))
    if result.over_budget:
        print(f"over budget: {result.over_budget}", file=sys.stderr)
    return INCOMPLETE if result.over_budget else OK


def saved_config(
    run_url: str, input_url: str | None, overrides: Sequence[str]
) -> tuple[GenerateConfig, str, int | None]:
    """Return the config of the run, its input, and the limit of its records."""
    run = run_values(run_url)
    if run is None or "config" not in run:
        raise UserError(f"run: there is no {RUN} at {masked(run_url)}; give the --output of a run")
    other = [word for word in overrides if not word.startswith(_FREE)]
    if other:
        free = ", ".join(f"{prefix}*" for prefix in _FREE)
        raise UserError(f"config: {other[0]} would change the output; only {free} may be given here")
    values = dict(run["config"])
    command = values.pop("command", {})
    source = input_url or command.get("input", "")
    if "***" in source:
        raise UserError("input: the URL of the run's input holds a password, which is not kept; give --input")
    config = saved_settings(values, overrides, GenerateConfig)
    lost = _masked_key(config)
    if lost:
        advice = f"give it again, as {lost}=..." if lost.startswith(_FREE) else "its dead letters cannot be retried"
        raise UserError(f"run: {lost} of the run holds a password, which is not kept; {advice}")
    return config, source, command.get("limit")


def _masked_key(config: GenerateConfig) -> str | None:
    """The first key whose URL was stored masked; a retry does not use the URL of the tracking server."""
    values = flatten_config(config.model_dump(mode="json", exclude={"tracking"}))
    return next((key for key, value in values.items() if "://" in str(value) and "***" in str(value)), None)


if __name__ == "__main__":
    run_job(main)
