"""Try the dead letters of a finished run again.

    python -m jobs.retry_dead --run URL [--input URL] [--stage STAGE] [--error TYPE] [key=value ...]

`--progress live | lines | json | quiet` says how progress is shown.

The run's own config is used; ``key=value`` may change what does not decide the output (engine, cluster, shuffle,
errors). Records that are answered now move from ``dead`` to ``data``, the others get a new dead letter. Those that were
refused as they were read stay as they are: the input has not changed. Exit 0: done, and the run is within its error
budget. Exit 1: over it. Exit 2: there is no finished run, or model, bank, router or input have changed.
"""

import argparse
import sys
from dataclasses import asdict

from conf import saved_settings
from conf.schema import GenerateConfig
from jobs._arguments import add_progress
from jobs._cli import INCOMPLETE, OK, run_job
from jobs._progress import view_of
from pipeline.artifacts import write_copies
from pipeline.errors import UserError
from pipeline.from_config import job_settings
from pipeline.job.error_budget import ErrorBudget
from pipeline.job.retry_dead import RetryJob
from pipeline.job.stop import outages_stop
from pipeline.pools import start_pools
from pipeline.report import write_report
from pipeline.report.compare import flat
from pipeline.storage.commit.retry import STAGES, RetryFilter
from pipeline.storage.output.run import RUN, run_values
from pipeline.storage.store.redact import masked

_FREE = ("engine.", "cluster.", "shuffle.", "errors.", "cost.")


def main(argv: list[str]) -> int:
    """Run the command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="jobs.retry_dead", description="Try dead letters again.")
    parser.add_argument("--run", required=True, help="the output of the run")
    parser.add_argument("--input", help="the run's input, where its URL holds a password or is relative to elsewhere")
    parser.add_argument("--stage", action="append", choices=["route", "generate"], help="only of this stage")
    parser.add_argument("--error", action="append", metavar="TYPE", help="only of this error type; may be repeated")
    add_progress(parser)
    parser.add_argument("overrides", nargs="*", help="config: key=value")
    args = parser.parse_intermixed_args(argv)
    config, given, limit = _saved(args)
    view = view_of(args.progress)
    wanted = RetryFilter(args.stage or STAGES, args.error)
    job = RetryJob(job_settings(config, given, args.run, limit), wanted, view.say, listener=view.update)
    with view:
        result = job.retry(lambda: start_pools(config, view.say))
    with outages_stop():  # anew where nothing was tried, too: an earlier command may have been killed before it did
        write_report(args.run)
        write_copies(args.run, config)
    summary = f"retried    {result.retried} dead letters: {result.answered} answered, {result.dead} dead letters left"
    view.result([summary], asdict(result))
    records = job.prepare().plan.rows
    budget = ErrorBudget(config.errors.budget, config.errors.max, records)
    over = result.dead > budget.allowed
    if over:
        print(f"over budget: {result.dead} dead letters left, over {budget.rule}", file=sys.stderr)
    return INCOMPLETE if over else OK


def _saved(args: argparse.Namespace) -> tuple[GenerateConfig, str, int | None]:
    """The config of the run, its input, and how many records of it."""
    run = run_values(args.run)
    if run is None or "config" not in run:
        raise UserError(f"run: there is no {RUN} at {masked(args.run)}; give the --output of a run")
    other = [word for word in args.overrides if not word.startswith(_FREE)]
    if other:
        free = ", ".join(f"{prefix}*" for prefix in _FREE)
        raise UserError(f"config: {other[0]} would change the output; only {free} may be given here")
    values = dict(run["config"])
    command = values.pop("command", {})
    given = args.input or command.get("input", "")
    if "***" in given:
        raise UserError("input: the URL of the run's input holds a password, which is not kept; give --input")
    config = saved_settings(values, args.overrides, GenerateConfig)
    lost = _lost(config)
    if lost:
        anew = f"give it again, as {lost}=..." if lost.startswith(_FREE) else "its dead letters cannot be retried"
        raise UserError(f"run: {lost} of the run holds a password, which is not kept; {anew}")
    return config, given, command.get("limit")


def _lost(config: GenerateConfig) -> str | None:
    """The first key whose URL was stored masked. Where the run was tracked is of no use here."""
    values = flat(config.model_dump(mode="json", exclude={"tracking"}))
    return next((key for key, value in values.items() if "://" in str(value) and "***" in str(value)), None)


if __name__ == "__main__":
    run_job(main)
