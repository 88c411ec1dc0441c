"""Measure the routing of sentences: prompts of one task, prompts that join two or three tasks, and answers.

    python -m benchmarks.sentence_routing [--router demo/router] [--repeats 5]

A token is right if the largest weight of its mixture is its own task's adapter. The prompts are test prompts of the
26-task suite, and the router must know all 26 tasks. The answers are the suite's own: nothing is generated. Prompts of
the suite have no blank lines; joined questions are separated by one.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from conf import load_settings
from conf.schema_training import TrainRouterConfig
from pipeline.engine import Request
from pipeline.evaluation.results import write_results
from pipeline.models import PromptFormat, load_tokenizer, resolve_model
from pipeline.models.prompt import TokensWithOffsets
from pipeline.records import Mixture, Spans
from pipeline.routing import RoutingPolicy, SentenceSettings
from pipeline.routing.loading import load_router
from pipeline.routing.rerouting import SentenceRouter
from pipeline.routing.router import Router
from pipeline.routing.sentence_routes import SentenceRoute, route_sentences
from pipeline.routing.sentences import Sentences, prompt_sentences, split_sentences

DATA = Path("demo/data")
POLICY = RoutingPolicy()
SETTINGS = SentenceSettings()
CONTEXTS = (0, 1, 2, 3, 1000)
ANSWER_CHARACTERS = 60  # longer answers may have several sentences


@dataclass(frozen=True)
class Prompt:
    """The tokens of a prompt, its sentences, the task of each token, and the answer to the last task."""

    tokens: list[int]
    sentences: Sentences
    tasks: list[str]
    answer: str


def main() -> None:
    """Measure and write `benchmarks/results/sentence-routing.json`."""
    parser = argparse.ArgumentParser(prog="benchmarks.sentence_routing")
    parser.add_argument("--router", default="demo/router")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = load_settings("train_router", [], TrainRouterConfig)
    form = PromptFormat(load_tokenizer(resolve_model(config.model.path)), config.model.prompts)
    router = load_router(args.router)
    names = {"suite": "suite-test", "composite2": "composite2-test", "composite3": "composite3-test"}
    prompts = {name: [_prompt(row, form) for row in _rows(file)] for name, file in names.items()}
    figures: dict[str, Any] = {
        "repeats": args.repeats,
        "router": router.fingerprint,
        "prompts": {name: _prompt_figures(router, part) for name, part in prompts.items()},
        "answers": {
            "suite": _answers(router, form, prompts["suite"]),
            "composite": _answers(router, form, prompts["composite2"] + prompts["composite3"]),
        },
        "cost": _cost(router, form, prompts["composite2"], args.repeats),
    }
    write_results(Path("benchmarks/results/sentence-routing.json"), figures)
    _print(figures)


def _rows(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(DATA / f"{name}.parquet").to_pylist()
    return rows


def _prompt(row: dict[str, Any], form: PromptFormat) -> Prompt:
    tasks, answers = row.get("tasks") or [row["task"]], row.get("answers") or [row["answer"]]
    [placed] = form.encode_with_offsets([row["prompt"]])
    first = placed.text.index(row["prompt"])
    parts, at = [], 0
    for number in range(2, len(tasks) + 1):  # each question after the first starts with its number
        at = row["prompt"].index(f"\n\n{number}. ", at) + 2
        parts.append(first + at)
    of_token = [tasks[sum(end > part for part in parts)] for end in placed.ends]
    return Prompt(placed.tokens, _sentences(placed, form), of_token, answers[-1])


def _sentences(placed: TokensWithOffsets, form: PromptFormat) -> Sentences:
    head, tail = map(len, form.template_tokens(""))
    return prompt_sentences(placed.text, placed.ends, head, tail, SETTINGS)


def _routed(router: Router, prompts: list[Prompt]) -> list[SentenceRoute]:
    divided = [p.sentences for p in prompts]
    return route_sentences(router, POLICY, [p.tokens for p in prompts], divided, SETTINGS.context_sentences)


def _prompt_figures(router: Router, prompts: list[Prompt]) -> dict[str, Any]:
    tokens = [p.tokens for p in prompts]
    whole: list[Spans] = [((0, r.mixture),) for r in router.route(tokens, POLICY)]
    figures: dict[str, Any] = {"prompts": len(prompts), "by record": _right(prompts, whole)}
    for bounded in (True, False):
        divided = [p.sentences if bounded else tuple(replace(s, paragraph=0) for s in p.sentences) for p in prompts]
        for context in CONTEXTS:
            routes = route_sentences(router, POLICY, tokens, divided, context)
            name = f"context {context}" + ("" if bounded else ", across paragraphs")
            figures[name] = _right(prompts, [r.spans for r in routes])
    ungated = route_sentences(router, replace(POLICY, gate=False), tokens, [p.sentences for p in prompts], 2)
    figures["context 2, without gate"] = _right(prompts, [r.spans for r in ungated])
    figures["sentences"] = sum(len(p.sentences) for p in prompts) / len(prompts)
    return figures


def _right(prompts: list[Prompt], spans: list[Spans]) -> dict[str, float]:
    right, last = 0, 0
    for prompt, found in zip(prompts, spans, strict=True):
        ends = [*(start for start, _ in found[1:]), len(prompt.tokens)]
        for (start, mixture), end in zip(found, ends, strict=True):
            right += sum(task == _top(mixture) for task in prompt.tasks[start:end])
        last += _top(found[-1][1]) == prompt.tasks[-1]
    return {"tokens right": right / sum(len(p.tokens) for p in prompts), "last right": last / len(prompts)}


def _top(mixture: Mixture) -> str | None:
    return max(zip(mixture.weights, mixture.adapters, strict=True))[1] if mixture.adapters else None


def _answers(router: Router, form: PromptFormat, prompts: list[Prompt]) -> dict[str, Any]:
    """Route the sentences of answers after the first, with different parts of the prompt before them."""
    counts: dict[str, list[int]] = {}
    for prompt, start in zip(prompts, _routed(router, prompts), strict=True):
        if len(prompt.answer) <= ANSWER_CHARACTERS:
            continue
        answer, starts = _answer_sentences(prompt.answer, form)
        for index in starts:
            new = answer[: index + 1]
            shown = {
                "last paragraph": prompt.tokens[start.context :] + new,
                "whole prompt": prompt.tokens + new,
                "answer alone": new,
            }
            routes = dict(zip(shown, router.route(list(shown.values()), POLICY), strict=True))
            chosen = {name: start.mixture if r.fallback else r.mixture for name, r in routes.items()}
            for name, mixture in (chosen | {"as it started": start.mixture}).items():
                counts.setdefault(name, []).append(int(_top(mixture) == prompt.tasks[-1]))
    return {name: {"sentences": len(right), "right": statistics.mean(right)} for name, right in counts.items()}


def _answer_sentences(answer: str, form: PromptFormat) -> tuple[list[int], Iterable[int]]:
    encoded = form.tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
    divided = split_sentences(answer, [end for _, end in encoded.offset_mapping], SETTINGS)
    return encoded.input_ids, [s.start for s in divided[1:]]


def _cost(router: Router, form: PromptFormat, prompts: list[Prompt], repeats: int) -> dict[str, Any]:
    tokens = [p.tokens for p in prompts]
    texts = [form.tokenizer.decode(ids) for ids in tokens]
    reroute = SentenceRouter(router, POLICY, SETTINGS, form.tokenizer)
    request = Request("r", tokens[0], Mixture(), context=prompts[0].sentences[-1].paragraph)
    usual = form.tokenizer(" the red book on that old desk and" * 16).input_ids
    ended = form.tokenizer("The red book lies on that old desk now. Then").input_ids
    spans = [(0, Mixture())]
    assert reroute(request, usual, spans) is None
    assert reroute(request, ended, spans) is not None
    each = {
        "route a record (us)": (lambda: router.route(tokens, POLICY), len(prompts)),
        "route its sentences (us)": (lambda: _routed(router, prompts), len(prompts)),
        "encode a record (us)": (lambda: form.encode(texts), len(prompts)),
        "encode and divide a record (us)": (lambda: _encode_and_divide(texts, form), len(prompts)),
        "look at a usual new token (us)": (lambda: [reroute(request, usual, spans) for _ in range(1000)], 1000),
        "route a new sentence (us)": (lambda: [reroute(request, ended, spans) for _ in range(50)], 50),
    }
    return {name: _microseconds(run, count, repeats) for name, (run, count) in each.items()}


def _encode_and_divide(texts: list[str], form: PromptFormat) -> None:
    for placed in form.encode_with_offsets(texts):
        _sentences(placed, form)


def _microseconds(run: Callable[[], object], count: int, repeats: int) -> dict[str, float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) / count * 1e6)
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


def _print(figures: dict[str, Any]) -> None:
    for part, found in figures["prompts"].items():
        print(f"{part}: {found['prompts']} prompts, {found['sentences']:.1f} sentences each")
        for name, right in found.items():
            if isinstance(right, dict):
                print(f"  {name:40s} tokens right {right['tokens right']:.3f}  last right {right['last right']:.3f}")
    for part, found in figures["answers"].items():
        for name, right in found.items():
            print(f"answers of {part}, shown {name}: {right['right']:.3f} of {right['sentences']} sentences right")
    for name, spread in figures["cost"].items():
        print(f"{name:40s} {spread['median']:.1f} ({spread['min']:.1f} to {spread['max']:.1f})")


if __name__ == "__main__":
    main()
