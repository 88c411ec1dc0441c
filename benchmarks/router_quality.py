"""Measure the router: accuracy, calibration, gate, added adapters, and speed.

    python -m benchmarks.router_quality [--router demo/router] [--splits 3] [--repeats 5]

The prompts come from the 26-task suite in `demo/data`. The leave-out test trains on 20 tasks and measures the gate
on the other 6. Each of these is then added to the router of 20, from 8 and from 64 example prompts. It trains
``--splits`` routers, about a minute each.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from conf import load_settings
from conf.schema_training import TrainRouterConfig
from jobs.train_adapters import rows_by_task
from pipeline.evaluation.results import write_results
from pipeline.models import PromptFormat, load_tokenizer, resolve_model
from pipeline.routing import RoutingPolicy
from pipeline.routing.calibration import expected_calibration_error
from pipeline.routing.extension import add_class
from pipeline.routing.loading import load_router
from pipeline.routing.network import flatten_prompts
from pipeline.routing.router import Router, tokenizer_fingerprint
from pipeline.routing.training import RouterSettings, train_router

DATA = Path("demo/data")
WINDOW = 14  # words of a prompt that the hard setting shows
UNSEEN = 6
Prompts = list[list[int]]


def main() -> None:
    """Measure and write `benchmarks/results/router-quality.json`."""
    parser = argparse.ArgumentParser(prog="benchmarks.router_quality")
    parser.add_argument("--router", default="demo/router")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    config = load_settings("train_router", [], TrainRouterConfig)
    tokenizer = load_tokenizer(resolve_model(config.model.path))
    encode = PromptFormat(tokenizer, config.model.prompt_format).encode
    vocabulary = tokenizer.get_vocab()
    router = load_router(args.router)
    router.check_prompts(tokenizer_fingerprint(vocabulary), config.model.prompt_format)
    texts = {name: _texts(DATA / f"suite-{name}.parquet") for name in ("train", "test")}
    tokens = {name: {task: encode(prompts) for task, prompts in part.items()} for name, part in texts.items()}
    known = {task: prompts for task, prompts in tokens["test"].items() if task in router.labels}
    figures: dict[str, Any] = {
        "config": vars(args),
        "training": router.card["metrics"] | {"temperature": router.card["temperature"]},
        "test": _quality(router, known),
        "hard": _quality(router, {task: encode(_windows(texts["test"][task])) for task in known}),
        "throughput": _throughput(router, [p for prompts in texts["test"].values() for p in prompts], encode, args),
        "left_out": [_left_out(seed, tokens, config, max(vocabulary.values()) + 1) for seed in range(args.splits)],
    }
    write_results(Path("benchmarks/results/router-quality.json"), figures)
    _print(figures)


def _texts(path: Path) -> dict[str, list[str]]:
    return {
        task: [r["prompt"] for r in rows] for task, rows in rows_by_task([str(path)], (), ["task", "prompt"]).items()
    }


def _windows(prompts: list[str]) -> list[str]:
    """Cut a random stretch of `WINDOW` words from each prompt."""
    rng = random.Random(0)
    words = [prompt.split() for prompt in prompts]
    starts = [rng.randint(0, max(0, len(w) - WINDOW)) for w in words]
    return [" ".join(w[start : start + WINDOW]) for w, start in zip(words, starts, strict=True)]


def _quality(router: Router, prompts: dict[str, Prompts]) -> dict[str, Any]:
    """Return top-1 accuracy, calibration with and without the temperature, and the share that passes the gate."""
    embedded = router.embed([p for task in prompts.values() for p in task])
    targets = torch.tensor([router.labels.index(task) for task, ps in prompts.items() for _ in ps])
    scaled = router.probabilities(embedded)
    right = scaled.argmax(1) == targets
    plain = (scaled.log() * router.temperature).softmax(1)
    accepted = {str(a): float(router.check_domain(embedded, a)[1].double().mean()) for a in (0.95, 0.99)}
    return {
        "prompts": len(targets),
        "top_1": float(right.double().mean()),
        "top_1_by_task": {t: float(right[targets == router.labels.index(t)].double().mean()) for t in prompts},
        "ece": expected_calibration_error(plain, targets),
        "ece_scaled": expected_calibration_error(scaled, targets),
        "accepted": accepted,
    }


def _left_out(seed: int, tokens: dict[str, dict[str, Prompts]], config: TrainRouterConfig, size: int) -> dict[str, Any]:
    """Train on all but six tasks; measure the gate on the six, and the effect of adding them."""
    unseen = sorted(random.Random(seed).sample(sorted(tokens["train"]), UNSEEN))
    seen = {task: prompts for task, prompts in tokens["train"].items() if task not in unseen}
    labels = [task for task, prompts in seen.items() for _ in prompts]
    settings = RouterSettings(**config.training.model_dump() | {"seed": seed})
    card = {"tokenizer_fingerprint": "", "prompt_format": config.model.prompt_format}
    flat = [p for prompts in seen.values() for p in prompts]
    router = train_router(flat, labels, size, settings, card, lambda line: None)
    inside = router.embed([p for task in seen for p in tokens["test"][task]])
    targets = torch.tensor([router.labels.index(task) for task in seen for _ in tokens["test"][task]])
    outside = router.embed([p for task in unseen for p in tokens["test"][task]])
    gate = {
        str(a): {
            name: float(router.check_domain(e, a)[1].double().mean())
            for name, e in (("seen", inside), ("unseen", outside))
        }
        for a in (0.9, 0.95, 0.98, 0.99)
    }
    added = {
        str(shots): {task: _added(router, task, tokens, shots, inside, targets) for task in unseen} for shots in (8, 64)
    }
    return {"unseen": unseen, "accepted": gate, "added": added}


def _added(
    router: Router,
    task: str,
    tokens: dict[str, dict[str, Prompts]],
    shots: int,
    inside: torch.Tensor,
    targets: torch.Tensor,
) -> dict[str, float]:
    extended, _ = add_class(router, task, tokens["train"][task][:shots], 0.005)
    new = extended.embed(tokens["test"][task])
    return {
        "top_1": float((extended.probabilities(new).argmax(1) == len(router.labels)).double().mean()),
        "accepted": float(extended.check_domain(new, 0.99)[1].double().mean()),
        "others_before": float((router.probabilities(inside).argmax(1) == targets).double().mean()),
        "others_after": float((extended.probabilities(inside).argmax(1) == targets).double().mean()),
    }


def _throughput(router: Router, texts: list[str], encode: Callable[[list[str]], Prompts], args: Any) -> dict[str, Any]:
    """Measure records per second of tokenising, routing and both, and rows per second of the network.

    Tokenising uses all cores; torch has one thread, as in a route actor.
    """
    tokens = encode(texts)
    flat = flatten_prompts(tokens)
    network = router.model
    calls: dict[str, Callable[[], Any]] = {
        "tokenise": lambda: encode(texts),
        "route": lambda: [router.route(tokens[i : i + 1024], RoutingPolicy()) for i in range(0, len(tokens), 1024)],
        "network_fp32": lambda: network(*flat),
        "tokenise_and_route": lambda: [
            router.route(encode(texts[i : i + 1024]), RoutingPolicy()) for i in range(0, len(texts), 1024)
        ],
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rates: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for _ in range(args.repeats):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                rates[name].append(len(texts) / (time.perf_counter() - start))
    torch.set_num_threads(threads)
    return {name: {"median": statistics.median(values), "all": values} for name, values in rates.items()}


def _print(figures: dict[str, Any]) -> None:
    for name in ("test", "hard"):
        q = figures[name]
        print(f"{name}: top-1 {q['top_1']:.2%}, ECE {q['ece']:.4f} -> {q['ece_scaled']:.4f}, accepted {q['accepted']}")
    for name, rate in figures["throughput"].items():
        print(f"{name}: {rate['median']:,.0f} records/s")
    for split in figures["left_out"]:
        print(f"unseen {', '.join(split['unseen'])}\n  accepted {split['accepted']}")
        for shots, tasks in split["added"].items():
            means = {k: statistics.mean(t[k] for t in tasks.values()) for k in next(iter(tasks.values()))}
            print(f"  added from {shots}: " + ", ".join(f"{k} {v:.2%}" for k, v in means.items()))


if __name__ == "__main__":
    main()
