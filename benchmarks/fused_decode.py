"""Measure the cost of mixtures in decoding: steps of each form of the fused operator over steps of the base model.

    python -m benchmarks.fused_decode [--adapters 26 100 1000] [--rows 8 32] [--dtype bf16] [--rounds 15]

The adapters are random, in the demo's shape (r = 8 on q_proj and v_proj of SmolLM2-135M). Each row has one to three of
the bank's adapters; with the largest bank, each row has a single adapter of its own, and the device holds 32 of them.
``merged`` and ``peft`` run the first row's adapter in all rows. Steps of all variants take turns in random order on one
thread. Times are CPU times of that thread, which other work on the machine distorts less. A ratio is the median over
rounds of a variant's step over the base model's step of the same round.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import DynamicCache

from benchmarks.bank_load import make_bank
from conf import load_settings
from conf.schema import GenerateConfig
from pipeline.adapters import AdapterBank
from pipeline.engine import FusedLora, LoraSettings
from pipeline.engine.settings import LoraMode
from pipeline.evaluation.results import write_results
from pipeline.models import load_model, resolve_model
from pipeline.records import Mixture

MODES: tuple[LoraMode, ...] = ("union", "gather", "auto", "merged")
CONTEXT = 64
SLOTS = 32

Step = Callable[[], float]


def main() -> None:
    """Measure and write `benchmarks/results/fused-decode.json`."""
    parser = argparse.ArgumentParser(prog="benchmarks.fused_decode")
    parser.add_argument("--adapters", type=int, nargs="+", default=[26, 100, 1000])
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    folder = resolve_model(load_settings("generate", [], GenerateConfig).model.path)
    figures: dict[str, Any] = {"config": vars(args)}
    with tempfile.TemporaryDirectory() as path:
        names = make_bank(Path(path), load_model(folder, args.dtype), max(args.adapters))
        model = load_model(folder, args.dtype)
        peft = PeftModel.from_pretrained(load_model(folder, args.dtype), Path(path) / names[0]).eval()
        for count in args.adapters:
            bank = AdapterBank.load(path, names[:count])
            for rows in args.rows:
                distinct = count == max(args.adapters) and count >= rows
                mixtures = _mixtures(bank.names, rows, distinct)
                ratios = _ratios(_steps(model, peft, bank, mixtures), args.rounds)
                used = len({name for mixture in mixtures for name in mixture.adapters})
                figures[f"{count} adapters, {rows} rows"] = {"adapters_in_batch": used} | ratios
                print(f"{count} adapters, {rows} rows ({used} adapters in the batch): {ratios}", flush=True)
    write_results(Path("benchmarks/results/fused-decode.json"), figures)


def _mixtures(names: list[str], rows: int, distinct: bool) -> list[Mixture]:
    chosen = random.Random(0)
    if distinct:
        return [Mixture.of({name: 1.0}) for name in chosen.sample(names, rows)]
    drawn = [chosen.sample(names, chosen.randint(1, 3)) for _ in range(rows)]
    return [Mixture.of({name: 1 / len(own) for name in own}) for own in drawn]


def _steps(model: Any, peft: Any, bank: AdapterBank, mixtures: list[Mixture]) -> dict[str, Step]:
    """Return a function for each variant that runs one decode step and returns its CPU seconds."""
    ids = torch.randint(1, 1000, (len(mixtures), CONTEXT), generator=torch.Generator().manual_seed(0))
    cache = DynamicCache()
    model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def step(runs: Any) -> float:
        start = time.thread_time()
        runs(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
        taken = time.thread_time() - start
        cache.crop(-1)
        return taken

    def fused(mode: LoraMode) -> Step:
        lora = FusedLora(model, bank, LoraSettings(mode, SLOTS))

        def run() -> float:
            lora.set_mixtures(mixtures[:1] * len(mixtures) if mode == "merged" else mixtures)
            step(model)  # fills the processor's caches, as in a run
            taken = step(model)
            lora.detach()
            return taken

        return run

    def plain(runs: Any) -> Step:
        return lambda: (step(runs), step(runs))[1]

    return {"base": plain(model), "peft": plain(peft)} | {mode: fused(mode) for mode in MODES}


def _ratios(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        order = list(steps)
        random.Random(number).shuffle(order)
        for name in order:
            taken[name].append(steps[name]())
    found = {"base_ms": round(1000 * statistics.median(taken["base"]), 2)}
    for name in [n for n in steps if n != "base"]:
        pairs = zip(taken[name], taken["base"], strict=True)
        found[name] = round(statistics.median(own / base for own, base in pairs), 3)
    return found


if __name__ == "__main__":
    main()
