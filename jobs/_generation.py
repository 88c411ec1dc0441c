"""The job of `loraloom generate`, after its command line and its config were checked."""

import sys
from typing import Any

from conf.schema import GenerateConfig
from jobs._cli import INCOMPLETE, OK
from jobs._progress import View
from pipeline.artifacts import write_artifacts
from pipeline.auto_engine import Chosen
from pipeline.conversations import PromptSettings
from pipeline.from_config import job_settings
from pipeline.job.generate import GenerateJob
from pipeline.job.preflight import Prepared
from pipeline.job.result import JobResult
from pipeline.job.stop import stop_on_store_errors
from pipeline.pools import start_pools
from pipeline.report import check_tracking
from pipeline.routing import RoutingPolicy
from pipeline.storage.commit.counts import most_frequent
from pipeline.storage.store.redact import masked
from pipeline.telemetry.logs import write_json_lines


def prepare(
    chosen: Chosen, input_url: str, output: str, limit: int | None, new_run: bool, view: View
) -> tuple[GenerateJob, Prepared]:
    """Check everything that the job needs, and plan its input. ``new_run``: discard what is in the output."""
    config = chosen.config
    check_tracking(config.tracking.mlflow)
    if config.cluster.log_format == "json":
        write_json_lines()
    settings = job_settings(config, input_url, output, limit, chosen.choice.reason)
    job = GenerateJob(settings, view.log, listener=view.update)
    prepared = job.prepare(new_run)
    plan = prepared.plan
    view.log(f"{plan.rows} records in {len(plan.files)} file(s), {plan.windows} window(s)")
    if plan.skipped_files:
        view.log(plan.skipped_files)
    if plan.duplicates.num_rows:
        view.log(f"{plan.duplicates.num_rows} of them repeat an id or, without ids, a whole row")
    return job, prepared


def run(job: GenerateJob, config: GenerateConfig, view: View) -> int:
    """Run the job and show its result; returns the exit code."""
    output = job.settings.output
    with view:
        result = job.run(lambda: start_pools(config, view.log))
    with stop_on_store_errors():
        write_artifacts(output, config, result, view.log)
    routing, prompts = job.settings.routing, job.settings.model.prompts
    view.result(_summary(result, routing, prompts, masked(output)), _values(result, routing, masked(output)))
    return _exit_code(result, masked(output))


def last_assistant_lines(count: int, prompts: PromptSettings) -> list[str]:
    """Return what became of the last turns of assistants, if there are any."""
    done = {"continue": "continued", "drop": "left out, and what is before it answered"}.get(prompts.last_assistant)
    return [f"assistant  {count} ended with a turn of the assistant, {done} (model.last_assistant)"] if count else []


def _summary(result: JobResult, routing: RoutingPolicy, prompts: PromptSettings, output: str) -> list[str]:
    total = result.counts
    seconds = result.seconds
    rate = result.generated_tokens / max(seconds, 1e-9)
    mixtures = most_frequent(total.mixtures, 10)
    return [
        f"records    {result.records} in, {total.data} committed, {total.dead} dead, {result.incomplete} missing",
        f"tokens     {result.generated_tokens} generated, {rate:.1f} tokens/s over {seconds:.1f} s with start-up",
        f"fallback   {total.fallback} answered by {routing.fallback_name}",
        *last_assistant_lines(total.last_assistant, prompts),
        *(f"dead       {count} {error}" for error, count in sorted(total.errors.items(), key=lambda item: -item[1])),
        f"mixtures   {'over ' if total.rare else ''}{len(total.mixtures)} distinct; the most frequent:",
        *(f"  {count:6d}  {mixture}" for mixture, count in mixtures),
        f"output     {output} (report.html, README.md, data/*.parquet, dead/*.parquet)",
    ]


def _values(result: JobResult, routing: RoutingPolicy, output: str) -> dict[str, Any]:
    total = result.counts
    return {
        "records": result.records,
        "committed": total.data,
        "dead": total.dead,
        "missing": result.incomplete,
        "fallback": total.fallback,
        "fallback_kind": routing.fallback,
        "last_assistant": total.last_assistant,
        "generated_tokens": result.generated_tokens,
        "seconds": round(result.seconds, 2),
        "errors": total.errors,
        "distinct_mixtures": len(total.mixtures),  # a lower bound if `rare`
        "rare": total.rare,
        "output": output,
        "ok": result.ok,
    }


def _exit_code(result: JobResult, output: str) -> int:
    if result.incomplete:
        print(
            f"incomplete: {result.incomplete} of {result.records} records have no answer: their shards failed and no"
            f" smaller shard went through; see the logs of Ray, then run the same command again",
            file=sys.stderr,
        )
        for incident, times in result.incidents[:5]:
            print(f"  {times} x {incident}", file=sys.stderr)
    if result.over_budget:
        print(f"over budget: {result.over_budget}; see {output}/dead", file=sys.stderr)
    return OK if result.ok else INCOMPLETE
