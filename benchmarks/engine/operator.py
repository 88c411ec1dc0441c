"""Measure the products of mixtures in vLLM alone: `python -m benchmarks.engine.operator`, on a GPU; needs no vLLM.

The base is the matrix products of decoder layers as vLLM runs them, with q, k and v joined, and gate and up. ``dense``
adds `SlotProducts` with R = slots * 8 rows of A, ``triton`` vLLM's own kernels, for which each distinct mixture is
folded into an adapter of its joined rank; it is omitted where vLLM cannot be imported. Each row has a mixture of three
adapters; there are at most 64 distinct mixtures. Every way is recorded as a CUDA graph of two layers, whose weights
exceed the L2 cache, five times over: a step is ten layers. The graphs are replayed in turn; ratios are taken within a
turn. Medians and spread are written to `benchmarks/results/engine-cuda-operator.json`.
"""

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

from benchmarks.engine.measure import steps_over, synchronise
from benchmarks.engine.shapes import SHAPES, config_of
from benchmarks.engine.stepping import Step, in_turn
from pipeline.engine.vllm.mixing.products import SlotProducts, TokenWeights
from pipeline.evaluation.results import write_results

LAYERS, RANK, MIXED, DISTINCT = 2, 8, 3, 64
FOLDED = 32  # the least rank of vLLM's slots that holds MIXED * RANK
REPEATS = 5  # of the layers in one step


class Layers:
    """Random weights of the linear layers of two decoder layers, and inputs [rows x in] for each."""

    def __init__(self, shape: str, rows: int, targets: str, device: str) -> None:
        config = config_of(shape)
        hidden, inner = config.hidden_size, config.intermediate_size
        query, key = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        everything = targets == "all"
        # Inputs, widths of the slices, and which of these the adapters change.
        kinds: list[tuple[int, tuple[int, ...], tuple[bool, ...]]] = [
            (hidden, (query, key, key), (True, everything, True)),
            (query, (hidden,), (everything,)),
            (hidden, (inner, inner), (everything, everything)),
            (inner, (hidden,), (everything,)),
        ]
        self.rows, self.device = rows, device
        self.sites = [
            (self.random(rows, inputs), self.random(sum(widths), inputs), inputs, widths, used)
            for _ in range(LAYERS)
            for inputs, widths, used in kinds
        ]

    def random(self, *shape: int) -> torch.Tensor:
        """Return a random tensor; products neither overflow nor vanish."""
        return torch.empty(*shape, device=self.device, dtype=torch.bfloat16).normal_(std=shape[-1] ** -0.5)

    def base(self) -> Step:
        """Return the products of the base model."""

        def run() -> None:
            for x, weight, *_ in self.sites:
                linear(x, weight)

        return run

    def dense(self, slots: int) -> Step:
        """Return the products of the base model with those of the adapters in all slots."""
        weights = TokenWeights(self.rows, slots, torch.device(self.device), is_eager=False)
        mixtures = torch.zeros(min(self.rows, DISTINCT), slots)
        for row in mixtures:
            row[torch.randperm(slots)[:MIXED]] = 1 / MIXED
        weights.set_rows(mixtures[torch.arange(self.rows) % len(mixtures)])
        products = []
        for _, weight, inputs, widths, used in self.sites:
            made = SlotProducts(weights, RANK, inputs, widths, used, weight)
            for part in (*made.slot_a, *made.slot_b):
                part.normal_(std=inputs**-0.5)
            products.append(made)

        def run() -> None:
            for (x, weight, *_), each in zip(self.sites, products, strict=True):
                each.add_lora_linear(linear(x, weight), x)

        return run

    def triton(self, ops: Any) -> Step:
        """Return the products of the base model with vLLM's kernels, for one folded adapter per distinct mixture."""
        distinct = min(self.rows, DISTINCT)
        meta = ops.LoRAKernelMeta.make(distinct, self.rows, self.device)
        meta.prepare_tensors(torch.arange(self.rows, device=self.device, dtype=torch.int32) % distinct)
        adapters = []
        for _, _, inputs, widths, used in self.sites:
            a = [self.random(distinct, 1, FOLDED, inputs) for _ in widths] if any(used) else []
            adapters.append((a, [self.random(distinct, 1, width, FOLDED) for width in widths[: len(a)]]))

        def run() -> None:
            for (x, weight, *_), (a, b) in zip(self.sites, adapters, strict=True):
                y = linear(x, weight)
                if a:
                    inner = torch.empty(len(a), self.rows, FOLDED, device=self.device)
                    arguments = meta.meta_args(self.rows, False)
                    ops.lora_shrink(x, a, inner, *arguments, 1.0)
                    ops.lora_expand(inner, b, y, *arguments, add_inputs=True)

        return run


def recorded(layers: Step) -> Step:
    """Return a step of all layers, `REPEATS` times, as a CUDA graph; as it is where there is no GPU."""

    def step() -> None:
        for _ in range(REPEATS):
            layers()

    step()
    synchronise()
    if not torch.cuda.is_available():
        return step
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    replay: Step = graph.replay
    return replay


def figures(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the growing figures, so that a benchmark that is stopped keeps what it has measured."""
    try:
        from vllm.lora.ops import triton_ops
    except Exception as error:  # vLLM without its compiled part fails in several ways
        print(f"without vLLM's kernels: {type(error).__name__}: {error}", flush=True)
        triton_ops = None
    found: dict[str, Any] = {}
    for shape, targets, rows in product(args.shapes, ("q_v", "all"), args.rows):
        layers = Layers(shape, rows, targets, args.device)
        steps = {"base": recorded(layers.base())}
        steps |= {f"dense_{ranks}": recorded(layers.dense(ranks // RANK)) for ranks in args.ranks}
        if triton_ops is not None:
            steps["triton"] = recorded(layers.triton(triton_ops))
        name = f"{shape} {targets} rows={rows}"
        found[name] = steps_over(in_turn(steps, args.rounds), "base")
        told = (f"{way} {figure['step_over_base']['median']:.3f}" for way, figure in found[name].items())
        print(f"{name}: {found[name]['base']['step_ms']['median']:.3f} ms for ten layers;", *told, flush=True)
        yield found


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(prog="benchmarks.engine.operator")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["llama-3.2-3b", "llama-3.1-8b"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32, 64, 128, 256, 2048])
    parser.add_argument("--ranks", nargs="+", type=int, default=[64, 128, 256, 512])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    config = {key: value for key, value in vars(args).items() if key != "output"}
    for measured in figures(args):
        result = {"case": "operator", "config": config, "figures": measured}
        write_results(args.output / f"engine-{args.device}-operator.json", result)


if __name__ == "__main__":
    main()
