"""What `jobs.generate` does once its command line and its config are right."""

import argparse
import sys
from typing import Any

from conf.schema import GenerateConfig
from jobs._cli import INCOMPLETE, OK
from jobs._dry_run import dry_run
from jobs._progress import View, view_of
from pipeline.artifacts import write_derived
from pipeline.from_config import job_settings
from pipeline.job.generate import GenerateJob
from pipeline.job.result import JobResult
from pipeline.job.stop import outages_stop
from pipeline.pools import start_pools
from pipeline.report import check_tracking
from pipeline.storage.commit.counts import most_frequent
from pipeline.storage.input.plan import InputPlan
from pipeline.storage.store.redact import masked
from pipeline.telemetry.logs import write_json_lines


def generate(args: argparse.Namespace, config: GenerateConfig) -> int:
    """Run the job, or look what it would take; returns the exit code."""
    settings = job_settings(config, args.input, args.output, args.limit)
    check_tracking(config.tracking.mlflow)
    if config.cluster.log_format == "json":
        write_json_lines()
    view = view_of(args.progress)
    job = GenerateJob(settings, view.say, listener=view.update)
    prepared = job.prepare(args.new_run)
    _say_input(prepared.plan, view)
    if args.dry_run:
        dry_run(job, prepared, config, args.sample_seconds, args.basis)
        return OK
    with view:
        result = job.run(lambda: start_pools(config, view.say))
    with outages_stop():
        write_derived(args.output, config, result, view.say)
    view.result(_summary(result, masked(args.output)), _values(result, masked(args.output)))
    return _exit_code(result, args)


def _say_input(plan: InputPlan, view: View) -> None:
    view.say(f"{plan.rows} records in {len(plan.files)} file(s), {plan.windows} window(s)")
    if plan.duplicates.num_rows:
        view.say(f"{plan.duplicates.num_rows} of them repeat an id or, without ids, a whole row")


def _summary(result: JobResult, output: str) -> list[str]:
    total = result.counts
    seconds = result.seconds
    rate = result.generated_tokens / max(seconds, 1e-9)
    mixtures = most_frequent(total.mixtures, 10)
    return [
        f"records    {result.records} in, {total.data} committed, {total.dead} dead, {result.incomplete} missing",
        f"tokens     {result.generated_tokens} generated, {rate:.1f} tokens/s over {seconds:.1f} s with start-up",
        f"fallback   {total.fallback} answered by the base model alone",
        *(f"dead       {count} {error}" for error, count in sorted(total.errors.items(), key=lambda item: -item[1])),
        f"mixtures   {'over ' if total.rare else ''}{len(total.mixtures)} distinct; the most frequent:",
        *(f"  {count:6d}  {mixture}" for mixture, count in mixtures),
        f"output     {output} (report.html, README.md, data/*.parquet, dead/*.parquet)",
    ]


def _values(result: JobResult, output: str) -> dict[str, Any]:
    total = result.counts
    return {
        "records": result.records,
        "committed": total.data,
        "dead": total.dead,
        "missing": result.incomplete,
        "fallback": total.fallback,
        "generated_tokens": result.generated_tokens,
        "seconds": round(result.seconds, 2),
        "errors": total.errors,
        "distinct_mixtures": len(total.mixtures),  # where there are rare ones, at least
        "rare": total.rare,
        "output": output,
        "ok": result.ok,
    }


def _exit_code(result: JobResult, args: argparse.Namespace) -> int:
    if result.incomplete:
        print(
            f"incomplete: {result.incomplete} of {result.records} records have no answer: their shards failed and no"
            f" smaller shard went through; see the logs of Ray, then run the same command again",
            file=sys.stderr,
        )
        for what, times in result.incidents[:5]:
            print(f"  {times} x {what}", file=sys.stderr)
    if result.over_budget:
        print(f"over budget: {result.over_budget}; see {masked(args.output)}/dead", file=sys.stderr)
    return OK if result.ok else INCOMPLETE
