"""`loraloom generate --dry-run`: route and answer a sample, and print what the job would take."""

import os

import torch
from transformers.utils.logging import disable_progress_bar

from conf.schema import CostSettings, GenerateConfig
from jobs._generation import last_assistant_lines
from pipeline.estimate.cost import Estimate, Range, cost_of_run, cost_of_sample, estimate
from pipeline.estimate.sample import RoutedSample, answer_sample, route_sample
from pipeline.job.generate import GenerateJob
from pipeline.job.preflight import Prepared
from pipeline.routing import RoutingPolicy


def print_estimate(
    job: GenerateJob, prepared: Prepared, config: GenerateConfig, seconds: float, basis: str | None
) -> None:
    """Print the mixtures of a sample, and what the whole job would take.

    The speed is measured for ``seconds`` on the sample, or that of ``basis``, the output of an earlier run.
    """
    routed = route_sample(job.settings, prepared)
    _print_routes(routed, job.settings.routing)
    for line in last_assistant_lines(routed.last_assistant, job.settings.model.prompts):
        print(line)
    plan, sampling = prepared.plan, job.settings.sampling
    cost = None
    if basis:
        cost = cost_of_run(basis, prepared.guard)
    elif seconds > 0:
        disable_progress_bar()
        threads = config.engine.threads or os.cpu_count() or 1
        answered = answer_sample(job.settings, prepared.schema, routed, seconds, threads)
        cost = cost_of_sample(answered) if answered else None
    if cost is None:
        print("estimate   none: nothing was answered (--sample-seconds, --basis)")
        return
    duplicates = plan.duplicates.num_rows
    found = estimate(plan.rows, duplicates, routed, sampling.max_new_tokens * sampling.n, cost)
    _print_estimate(found, config.cost, _actors(config))


def _actors(config: GenerateConfig) -> int:
    """The number of generating actors, as far as it is known before there is a cluster."""
    return config.engine.actors or config.cluster.stages.generate.min_actors or max(1, torch.cuda.device_count())


def _print_routes(routed: RoutedSample, routing: RoutingPolicy) -> None:
    total = routed.records
    alive = total - routed.dead.total()
    print(
        f"sample     {total} records routed: {alive} to {len(routed.mixtures)} mixtures, {routed.dead.total()} refused"
    )
    print(f"fallback   {routed.fallback} of them to {routing.fallback_name}")
    for kind, count in routed.dead.most_common():
        print(f"  {count:6d}  {count / total:6.1%}  dead: {kind}")
    for mixture, count in routed.mixtures.most_common(10):
        print(f"  {count:6d}  {count / total:6.1%}  {mixture}")


def _print_estimate(found: Estimate, prices: CostSettings, devices: int) -> None:
    together = found.device_hours.times(1 / devices)
    print(f"records    {_range(found.records)} would be answered")
    print(f"prompts    {_range(found.prompt_tokens)} tokens")
    print(f"answers    {_range(found.completion_tokens)} tokens; {found.max_tokens:,} at most (max_new_tokens)")
    print(f"time       {_hours(found.device_hours)} of one device; {_hours(together)} on {devices}")
    if prices.device_hour:
        print(f"cost       {_range(found.device_hours.times(prices.device_hour), 2)} {prices.currency}")
    print(f"output     {_bytes(found.size)}")
    print(f"basis      {found.cost.basis}")
    for caveat in found.cost.caveats:
        print(f"           {caveat}")


def _range(value: Range, digits: int = 0) -> str:
    low, high = f"{value.low:,.{digits}f}", f"{value.high:,.{digits}f}"
    return low if low == high else f"{low} to {high}"


def _hours(value: Range) -> str:
    if value.high >= 1:
        return f"{_range(value, 1)} h"
    return f"{_range(value.times(60), 1)} min" if value.high * 60 >= 1 else f"{_range(value.times(3600), 1)} s"


def _bytes(value: Range) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value.high >= size:
            return f"{_range(value.times(1 / size), 1)} {unit}"
    return f"{_range(value)} bytes"
