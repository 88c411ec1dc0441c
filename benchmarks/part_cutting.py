"""Measure where prompts are cut into parts, and where each part is routed: nothing is generated.

    python -m benchmarks.part_cutting [--router demo/router] [--repeats 5]

A prompt is cut right if its parts are its questions, one for one. The prompts are those of the composite suites, of the
layouts that `demo/make_layouts.py` makes, and of the test suite, whose prompts ask one thing each. The router must know
all 26 tasks.
"""

import argparse
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from conf import load_settings
from conf.schema_training import TrainRouterConfig
from pipeline.evaluation.results import write_results
from pipeline.models import PromptFormat, load_tokenizer, resolve_model
from pipeline.routing import PartSettings, RoutingPolicy
from pipeline.routing.loading import load_router
from pipeline.routing.part_routes import PartCutter, PromptPart
from pipeline.routing.router import Router

DATA = Path("demo/data")
FILES = ("composite2-test", "composite3-test", "layouts-dev", "layouts-test", "suite-test")
POLICY = RoutingPolicy()
ROWS = 512  # prompts of a batch of the route stage
Row = dict[str, Any]


def main() -> None:
    """Measure and write `benchmarks/results/part-cutting.json`."""
    parser = argparse.ArgumentParser(prog="benchmarks.part_cutting")
    parser.add_argument("--router", default="demo/router")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/part-cutting.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = load_settings("train_router", [], TrainRouterConfig)
    form = PromptFormat(load_tokenizer(resolve_model(config.model.path)), config.model.prompts)
    router = load_router(args.router)
    cutter = PartCutter(form, router, POLICY, PartSettings())
    rows = {name: pq.read_table(DATA / f"{name}.parquet").to_pylist() for name in FILES}
    figures = {
        "repeats": args.repeats,
        "router": router.fingerprint,
        "prompts": {group: found for name in FILES for group, found in _groups(name, rows[name], cutter, form)},
        "cost": {name: _cost(rows[name], cutter, form, args.repeats) for name in ("composite2-test", "suite-test")},
    }
    write_results(args.output, figures)
    for group, found in figures["prompts"].items():
        print(f"{group:16s}", *(f"{name} {value:.4g}" for name, value in found.items() if name != "cut"), sep="  ")
    for name, spread in figures["cost"].items():
        print(f"{name:16s}", *(f"{what} {us['median']:.0f} us" for what, us in spread.items()), sep="  ")


def _groups(name: str, rows: list[Row], cutter: PartCutter, form: PromptFormat) -> list[tuple[str, dict[str, Any]]]:
    groups: dict[str, list[tuple[Row, list[PromptPart]]]] = defaultdict(list)
    for row, parts in zip(rows, _cut(rows, cutter), strict=True):
        groups[row.get("group", name)].append((row, parts))
    return [(group, _figures(found, cutter.router, form)) for group, found in groups.items()]


def _cut(rows: list[Row], cutter: PartCutter) -> list[list[PromptPart]]:
    prompts = [row["prompt"] for row in rows]
    return [parts for start in range(0, len(prompts), ROWS) for parts in cutter.cut(prompts[start : start + ROWS])]


def _figures(found: list[tuple[Row, list[PromptPart]]], router: Router, form: PromptFormat) -> dict[str, Any]:
    """Shares of the prompts of a group, and the ids of prompts of one task that were cut nevertheless."""
    asks_one = "task" in found[0][0]
    routed = [_is_routed(row, parts, router, form) for row, parts in found]
    shares = {
        "as many parts as questions": [len(parts) == len(_tasks(row)) for row, parts in found],
        "cut right": [_texts(row) == [str(part.prompt) for part in parts] for row, parts in found],
        "each part routed to its task": routed,
        "one part": [len(parts) == 1 for _, parts in found],
    }
    means: dict[str, Any] = {name: statistics.mean(map(float, right)) for name, right in shares.items()}
    cut = {"cut": [row["id"] for row, parts in found if len(parts) > 1]} if asks_one else {}
    return {"prompts": len(found)} | means | cut


def _tasks(row: Row) -> list[str]:
    return row.get("tasks") or [row["task"]]


def _is_routed(row: Row, parts: list[PromptPart], router: Router, form: PromptFormat) -> bool:
    mixtures = [route.mixture for route in router.route(form.encode([part.prompt for part in parts]), POLICY)]
    top = [max(zip(m.weights, m.adapters, strict=True))[1] if m.adapters else "" for m in mixtures]
    return top == _tasks(row)


def _texts(row: Row) -> list[str]:
    """Return the prompts that the parts should have; a text that the questions are about belongs to each."""
    prompt = row["prompt"]
    starts = row.get("starts") or [match.start(1) for match in re.finditer(r"(?:^|\n\n)(\d\. )", prompt)]
    if "task" in row:
        return [prompt]
    head = prompt[: starts[0]] if row.get("group") == "one text" else ""
    ends = [*starts[1:], len(prompt)]
    marks = (
        re.compile(r"\A(?:\d\. |- |\([abc]\) |Question \d: )") if row.get("group") not in _UNMARKED else re.compile("")
    )
    questions = (prompt[start:end].strip() for start, end in zip(starts, ends, strict=True))
    return [head + marks.sub("", question, count=1) for question in questions]


_UNMARKED = ("blank lines", "lines", "paragraph")  # layouts whose questions have no marks


def _cost(rows: list[Row], cutter: PartCutter, form: PromptFormat, repeats: int) -> dict[str, dict[str, float]]:
    """Processor time per prompt on one core: of cutting, and of what routing by record does."""
    prompts = [row["prompt"] for row in rows[: 2 * ROWS]]
    work: dict[str, Callable[[], object]] = {
        "cut": lambda: [cutter.cut(prompts[start : start + ROWS]) for start in range(0, len(prompts), ROWS)],
        "tokenise and route whole": lambda: cutter.router.route(form.encode(prompts), POLICY),
    }
    spreads = {}
    for name, run in work.items():
        times = []
        for _ in range(repeats):
            start = time.process_time()
            run()
            times.append((time.process_time() - start) / len(prompts) * 1e6)
        spreads[name] = {"median": statistics.median(times), "min": min(times), "max": max(times)}
    return spreads


if __name__ == "__main__":
    main()
