"""Measure the router: accuracy by form of the prompts, calibration, gate, added adapters, and speed.

    python -m benchmarks.router_quality [--router demo/router] [--splits 3] [--repeats 5]

The prompts come from the 26-task suite in `demo/data`, as they are and in the forms of
`benchmarks/router_forms.py`. The leave-out test trains on 20 tasks and measures the gate
on the other 6. Each of these is then added to the router of 20, from 8 and from 64 example prompts. It trains
``--splits`` routers, about two minutes each.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.router_forms import FORMS, TestForm
from conf import load_settings
from conf.schema_training import TrainRouterConfig
from jobs.train_adapters import rows_by_task
from pipeline.evaluation.results import write_results
from pipeline.models import PromptFormat, load_token_embeddings, load_tokenizer, resolve_model
from pipeline.routing import RoutingPolicy
from pipeline.routing.calibration import Reliability
from pipeline.routing.centroid_router import CentroidSettings, fit_centroids
from pipeline.routing.extension import add_class
from pipeline.routing.loading import load_router
from pipeline.routing.mlp_router import MlpRouter
from pipeline.routing.network import flatten_prompts
from pipeline.routing.router import tokenizer_fingerprint
from pipeline.routing.training import Encode, RouterSettings, train_router

DATA = Path("demo/data")
UNSEEN = 6
SHOTS = (8, 16, 32, 64)  # examples of a task from which centroids are made
CARD = {"tokenizer_fingerprint": "", "prompt_format": "chat"}
Prompts = list[list[int]]
Texts = dict[str, list[str]]  # by task
Maker = Callable[[Texts, int], MlpRouter]  # prompts and a seed -> a router for their tasks


def main() -> None:
    """Measure and write `benchmarks/results/router-quality.json`."""
    parser = argparse.ArgumentParser(prog="benchmarks.router_quality")
    parser.add_argument("--router", default="demo/router")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)  # as in a route actor; tokenising uses all cores
    config = load_settings("train_router", [], TrainRouterConfig)
    folder = resolve_model(config.model.path)
    tokenizer = load_tokenizer(folder)
    encode = PromptFormat(tokenizer, config.model.prompts).encode
    vocabulary = tokenizer.get_vocab()
    router = load_router(args.router)
    assert isinstance(router, MlpRouter)
    router.check_prompts(tokenizer_fingerprint(vocabulary), config.model.prompt_format)
    texts = {name: _texts(DATA / f"suite-{name}.parquet") for name in ("train", "test")}
    embeddings = load_token_embeddings(folder)[: max(vocabulary.values()) + 1]
    makers = {"mlp": _train_mlp(encode, len(embeddings), config)}
    makers |= {f"centroids_{shots}": _fit_centroids(encode, embeddings, config, shots) for shots in SHOTS}
    known = {task: prompts for task, prompts in texts["test"].items() if task in router.labels}
    routers = {"mlp": router} | {name: make(texts["train"], 0) for name, make in makers.items() if name != "mlp"}
    figures: dict[str, Any] = {
        "config": vars(args),
        "training": {name: r.card["metrics"] | {"temperature": r.card["temperature"]} for name, r in routers.items()},
        "forms": {form.name: _form(form, routers, known, encode) for form in FORMS},
        "throughput": _throughput(router, [p for prompts in texts["test"].values() for p in prompts], encode, args),
        "left_out": {
            name: [_left_out(seed, texts, encode, makers[name]) for seed in range(args.splits)]
            for name in ("mlp", "centroids_32")
        },
    }
    write_results(Path("benchmarks/results/router-quality.json"), figures)
    _print(figures)


def _texts(path: Path) -> Texts:
    return {
        task: [r["prompt"] for r in rows] for task, rows in rows_by_task([str(path)], (), ["task", "prompt"]).items()
    }


def _train_mlp(encode: Encode, size: int, config: TrainRouterConfig) -> Maker:
    def make(texts: Texts, seed: int) -> MlpRouter:
        settings = RouterSettings(**config.training.model_dump() | {"seed": seed})
        return train_router(*_flat(texts), encode, size, settings, dict(CARD), lambda line: None)

    return make


def _fit_centroids(encode: Encode, embeddings: torch.Tensor, config: TrainRouterConfig, shots: int) -> Maker:
    def make(texts: Texts, seed: int) -> MlpRouter:
        settings = CentroidSettings(**config.centroids.model_dump() | {"seed": seed, "examples": shots})
        return fit_centroids(*_flat(texts), encode, embeddings, settings, dict(CARD))

    return make


def _flat(texts: Texts) -> tuple[list[str], list[str]]:
    """Return all prompts and their tasks."""
    return [p for prompts in texts.values() for p in prompts], [task for task, ps in texts.items() for _ in ps]


def _form(form: TestForm, routers: dict[str, MlpRouter], texts: Texts, encode: Encode) -> dict[str, Any]:
    """Measure routers on prompts in one form."""
    prompts = {task: encode(_in_form(form, prompts)) for task, prompts in texts.items()}
    return {"group": form.group, "in_training": form.relative} | {n: _quality(r, prompts) for n, r in routers.items()}


def _in_form(form: TestForm, prompts: list[str]) -> list[str]:
    rng = random.Random(0)
    return [form.apply(prompt, rng) for prompt in prompts]


def _in_some_form(prompts: list[str]) -> list[str]:
    """Write each prompt in a form drawn at random."""
    rng = random.Random(0)
    return [rng.choice(FORMS).apply(prompt, rng) for prompt in prompts]


def _quality(router: MlpRouter, prompts: dict[str, Prompts]) -> dict[str, Any]:
    """Return top-1 accuracy, calibration with and without the temperature, and the share that passes the gate."""
    embedded = router.embed([p for task in prompts.values() for p in task])
    targets = torch.tensor([router.labels.index(task) for task, ps in prompts.items() for _ in ps])
    scaled = router.probabilities(embedded)
    right = scaled.argmax(1) == targets
    plain = (scaled.log() * router.temperature).softmax(1)
    accepted = {str(a): float(router.check_domain(embedded, a)[1].double().mean()) for a in (0.95, 0.99)}
    by_task = {t: float(right[targets == router.labels.index(t)].double().mean()) for t in prompts}
    return {
        "prompts": len(targets),
        "top_1": float(right.double().mean()),
        "top_1_tasks": statistics.mean(by_task.values()),
        "top_1_by_task": by_task,
        "ece": Reliability.of(plain, targets).error,
        "ece_scaled": Reliability.of(scaled, targets).error,
        "reliability": {name: values.tolist() for name, values in vars(Reliability.of(scaled, targets, 10)).items()},
        "accepted": accepted,
    }


def _left_out(seed: int, texts: dict[str, Texts], encode: Encode, make: Maker) -> dict[str, Any]:
    """Make a router for all but six tasks; measure the gate on the six, and the effect of adding them."""
    unseen = sorted(random.Random(seed).sample(sorted(texts["train"]), UNSEEN))
    seen = [task for task in texts["train"] if task not in unseen]
    router = make({task: texts["train"][task] for task in seen}, seed)
    test = {
        name: [p for task in tasks for p in texts["test"][task]] for name, tasks in (("seen", seen), ("unseen", unseen))
    }
    embedded = {name: router.embed(encode(prompts)) for name, prompts in test.items()}
    embedded |= {f"{name}_in_forms": router.embed(encode(_in_some_form(prompts))) for name, prompts in test.items()}
    targets = torch.tensor([router.labels.index(task) for task in seen for _ in texts["test"][task]])
    gate = {
        str(a): {name: float(router.check_domain(e, a)[1].double().mean()) for name, e in embedded.items()}
        for a in (0.9, 0.95, 0.98, 0.99)
    }
    added = {
        str(shots): {
            task: _added(
                router,
                task,
                encode(texts["train"][task][:shots]),
                encode(texts["test"][task]),
                embedded["seen"],
                targets,
            )
            for task in unseen
        }
        for shots in (8, 64)
    }
    return {"unseen": unseen, "accepted": gate, "added": added}


def _added(
    router: MlpRouter,
    task: str,
    examples: Prompts,
    test: Prompts,
    inside: torch.Tensor,
    targets: torch.Tensor,
) -> dict[str, float]:
    extended, _ = add_class(router, task, examples, 0.005)
    new = extended.embed(test)
    return {
        "top_1": float((extended.probabilities(new).argmax(1) == len(router.labels)).double().mean()),
        "accepted": float(extended.check_domain(new, 0.99)[1].double().mean()),
        "others_before": float((router.probabilities(inside).argmax(1) == targets).double().mean()),
        "others_after": float((extended.probabilities(inside).argmax(1) == targets).double().mean()),
    }


def _throughput(router: MlpRouter, texts: list[str], encode: Encode, args: Any) -> dict[str, Any]:
    """Measure records per second of tokenising, routing and both, and rows per second of the network."""
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
    rates: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for _ in range(args.repeats):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                rates[name].append(len(texts) / (time.perf_counter() - start))
    return {name: {"median": statistics.median(values), "all": values} for name, values in rates.items()}


def _print(figures: dict[str, Any]) -> None:
    for name, form in figures["forms"].items():
        top = ", ".join(f"{n} {form[n]['top_1']:.1%}" for n in figures["training"])
        mlp = form["mlp"]
        print(
            f"{form['group']:<15}{name:<37}{form['in_training']:<5}{top}, ECE {mlp['ece_scaled']:.3f},"
            f" accepted {mlp['accepted']}"
        )
    for name, rate in figures["throughput"].items():
        print(f"{name}: {rate['median']:,.0f} records/s")
    for router, splits in figures["left_out"].items():
        for split in splits:
            print(f"{router}, unseen {', '.join(split['unseen'])}\n  accepted {split['accepted']}")
            for shots, tasks in split["added"].items():
                means = {k: statistics.mean(t[k] for t in tasks.values()) for k in next(iter(tasks.values()))}
                print(f"  added from {shots}: " + ", ".join(f"{k} {v:.2%}" for k, v in means.items()))


if __name__ == "__main__":
    main()
