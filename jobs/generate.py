"""Answer every record of a data set with its own mixture of adapters.

    python -m jobs.generate --input URL --output URL [--limit N] [--seed N] [--new-run] [group=option] [key=value ...]

Look before you spend: `--show-config` prints the config that these words give; `--dry-run` checks everything, routes a
sample, answers some of it and prints what the job would take (tokens, device hours, output size); nothing is written.
`--progress live | lines | json | quiet` says how progress is shown.

The same command again finishes what is missing. Exit 0: every record is committed or a dead letter within the error
budget. Exit 1: over the budget, or incomplete. Exit 2: config, input, bank or router error, before any generation.
"""

import argparse
import sys
from typing import Any

from conf import as_yaml
from conf.schema import GenerateConfig
from jobs._cli import INCOMPLETE, OK, run_job
from jobs._derived import write_derived
from jobs._dry_run import dry_run
from jobs._progress import MODES, View, view_of
from jobs._settings import add_arguments, pools_of, read_config, read_settings, shown_config
from pipeline.report import check_tracking
from pipeline.stages.cluster import connect, size_pools
from pipeline.stages.job import GenerateJob, JobResult
from pipeline.stages.settings import Pools
from pipeline.storage.plan import InputPlan
from pipeline.storage.secrets import masked


def main(argv: list[str]) -> int:
    """Run the command; see the module's docstring."""
    args = _parser().parse_intermixed_args(argv)
    if args.show_config:
        print(as_yaml(shown_config(read_config(args))), end="")
        return OK
    config, settings = read_settings(args)
    check_tracking(config.tracking.mlflow)
    view = view_of(args.progress)
    job = GenerateJob(settings, view.say, listener=view.update)
    prepared = job.prepare(args.new_run)
    _say_input(prepared.plan, view)
    if args.dry_run:
        dry_run(job, prepared, config, args.sample_seconds, args.basis)
        return OK
    with view:
        result = job.run(lambda: _start_pools(config))
    write_derived(args.output, config, result, view.say)
    view.result(_summary(result, masked(args.output)), _values(result, masked(args.output)))
    return _exit_code(result, config.errors.budget, args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jobs.generate", description="Answer records with mixtures of adapters.")
    add_arguments(parser)
    parser.add_argument("--new-run", action="store_true", help="discard what an earlier run left in the output")
    parser.add_argument(
        "--progress", choices=MODES, default="auto", help="how progress is shown (auto: live on a terminal)"
    )
    parser.add_argument("--show-config", action="store_true", help="print the composed config and end")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print an estimate and end")
    parser.add_argument("--basis", metavar="URL", help="--dry-run: take speed and lengths from this earlier run")
    parser.add_argument(
        "--sample-seconds",
        type=float,
        default=20.0,
        metavar="S",
        help="--dry-run: answer samples for so long (0: none)",
    )
    return parser


def _say_input(plan: InputPlan, view: View) -> None:
    view.say(f"{plan.rows} records in {len(plan.files)} file(s), {plan.windows} window(s)")
    if plan.duplicates.num_rows:
        view.say(f"{plan.duplicates.num_rows} of them repeat an id or, without ids, a whole row")


def _start_pools(config: GenerateConfig) -> Pools:
    connect(config.cluster.address, config.cluster.cpus)
    return size_pools(pools_of(config), config.engine.actors, config.engine.threads)


def _summary(result: JobResult, output: str) -> list[str]:
    total = result.tally
    seconds = result.seconds
    rate = result.generated_tokens / max(seconds, 1e-9)
    mixtures = sorted(total.mixtures.items(), key=lambda item: (-item[1], item[0]))[:10]
    return [
        f"records    {result.records} in, {total.data} committed, {total.dead} dead, {result.incomplete} missing",
        f"tokens     {result.generated_tokens} generated, {rate:.1f} tokens/s over {seconds:.1f} s with start-up",
        f"fallback   {total.fallback} answered by the base model alone",
        *(f"dead       {count} {error}" for error, count in sorted(total.errors.items(), key=lambda item: -item[1])),
        f"mixtures   {len(total.mixtures)} distinct; the most frequent:",
        *(f"  {count:6d}  {mixture}" for mixture, count in mixtures),
        f"output     {output} (report.html, README.md, data/*.parquet, dead/*.parquet)",
    ]


def _values(result: JobResult, output: str) -> dict[str, Any]:
    total = result.tally
    return {
        "records": result.records,
        "committed": total.data,
        "dead": total.dead,
        "missing": result.incomplete,
        "fallback": total.fallback,
        "generated_tokens": result.generated_tokens,
        "seconds": round(result.seconds, 2),
        "errors": total.errors,
        "distinct_mixtures": len(total.mixtures),
        "output": output,
        "ok": result.ok,
    }


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
