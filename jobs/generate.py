"""Answer every record of a data set with its own mixture of adapters.

    python -m jobs.generate --input URL --output URL [--seed N] [--new-run] [group=option ...] [key=value ...]

The same command again finishes what is missing. Exit 0: every record is committed or a dead letter within the error
budget. Exit 1: over the budget, or incomplete. Exit 2: config, input, bank or router error, before any generation.
"""

import argparse
import sys

from conf.schema import GenerateConfig
from jobs._cli import INCOMPLETE, OK, run_job
from jobs._settings import add_arguments, pools_of, read_settings
from pipeline.report import write_report
from pipeline.stages.cluster import connect, size_pools
from pipeline.stages.job import GenerateJob, JobResult
from pipeline.stages.logs import write_json_lines
from pipeline.stages.settings import Pools
from pipeline.storage.secrets import masked


def main(argv: list[str]) -> int:
    """Run the command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="jobs.generate", description="Answer records with mixtures of adapters.")
    add_arguments(parser)
    parser.add_argument("--new-run", action="store_true", help="discard what an earlier run left in the output")
    args = parser.parse_intermixed_args(argv)
    config, settings = read_settings(args)
    if config.cluster.log_format == "json":
        write_json_lines()
    job = GenerateJob(settings)
    prepared = job.prepare(args.new_run)
    print(f"{prepared.plan.rows} records in {len(prepared.plan.files)} file(s), {prepared.plan.windows} window(s)")
    if prepared.plan.duplicates.num_rows:
        print(f"{prepared.plan.duplicates.num_rows} of them repeat an id or, without ids, a whole row")
    result = job.run(lambda: _start_pools(config))
    write_report(args.output)
    _summarise(result, masked(args.output))
    return _exit_code(result, config.errors.budget, args)


def _start_pools(config: GenerateConfig) -> Pools:
    dashboard = connect(config.cluster.address, config.cluster.cpus)
    if dashboard:
        print(f"dashboard  {dashboard}", flush=True)
    return size_pools(pools_of(config), config.cluster.autoscaling)


def _summarise(result: JobResult, output: str) -> None:
    total = result.tally
    rate = result.generated_tokens / max(result.seconds, 1e-9)
    print(f"records    {result.records} in, {total.data} committed, {total.dead} dead, {result.incomplete} missing")
    print(
        f"tokens     {result.generated_tokens} generated, {rate:.1f} tokens/s over {result.seconds:.1f} s with start-up"
    )
    print(f"fallback   {total.fallback} answered by the base model alone")
    for error, count in sorted(total.errors.items(), key=lambda item: -item[1]):
        print(f"dead       {count} {error}")
    print(f"mixtures   {len(total.mixtures)} distinct; the most frequent:")
    for mixture, count in sorted(total.mixtures.items(), key=lambda item: (-item[1], item[0]))[:10]:
        print(f"  {count:6d}  {mixture}")
    print(f"output     {output} (report.html, data/*.parquet, dead/*.parquet)")


def _exit_code(result: JobResult, budget: float, args: argparse.Namespace) -> int:
    if result.incomplete:
        print(
            f"incomplete: {result.incomplete} of {result.records} records have no answer: their shards failed and no"
            f" smaller shard went through; see the logs of Ray, then run the same command again",
            file=sys.stderr,
        )
        for what, times in result.incidents[:5]:
            print(f"  {times} x {what}", file=sys.stderr)
    if result.over_budget:
        share = result.tally.dead / result.records
        print(
            f"over budget: {result.tally.dead} of {result.records} records are dead letters ({share:.1%}, errors.budget"
            f" is {budget:.1%}); see {masked(args.output)}/dead",
            file=sys.stderr,
        )
    return OK if result.ok else INCOMPLETE


if __name__ == "__main__":
    run_job(main)
