"""Measure the speed of the engine: `python -m benchmarks.engine [--cases decode skewed ...] [--repeats 5]`.

The model is SmolLM2-135M in bf16, another model folder, or with ``--shape`` random weights; the adapters are random,
r = 8 on q_proj and v_proj. The variants of a case run in turn in this process, as whole workloads (``--repeats``) or
decode steps (``--steps``), and ratios are taken within one turn. Medians and spread are written to
`benchmarks/results/engine-<case>.json`, on a GPU to `engine-cuda-<case>.json`. PEFT is omitted for a bank of 1,000
adapters, which it would take minutes to load.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import torch
from peft import PeftModel

from benchmarks.bank_load import make_bank
from benchmarks.engine.measure import Case, interleaved, steps_over, summary
from benchmarks.engine.shapes import SHAPES as MODELS
from benchmarks.engine.shapes import random_model
from benchmarks.engine.stepping import Step, engine_steps, in_turn, model_steps
from benchmarks.engine.ways import by_continuous_batching, by_engine, by_generate, by_released_code
from benchmarks.engine.workloads import Workload, even, mixtures, skewed, workload
from conf import load_settings
from conf.schema import GenerateConfig
from pipeline.adapters import AdapterBank
from pipeline.engine import Engine, LoraSettings
from pipeline.engine.settings import EngineSettings
from pipeline.evaluation.results import write_results
from pipeline.models import PromptFormat, load_model, load_tokenizer, resolve_model
from pipeline.records import Mixture

# Rows, adapters in the bank, adapters in a mixture.
SHAPES = [
    (8, 26, 2), (32, 26, 2), (8, 100, 2), (32, 100, 2),
    (1, 26, 2), (128, 26, 2), (8, 1, 1), (8, 8, 2), (8, 1000, 2), (8, 26, 1), (8, 26, 4),
]  # fmt: skip
COMPARED = [(8, 26), (32, 26), (8, 100), (32, 100)]  # with PEFT and transformers


class Bench:
    """Models, banks and engines, created when a case needs them."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        config = load_settings("generate", [], GenerateConfig)
        self.model_folder = resolve_model(args.model or config.model.path)
        self.tokenizer = load_tokenizer(self.model_folder)
        self.prompts = PromptFormat(self.tokenizer, config.model.prompts)
        self._drawn: Any = None

    def model(self) -> Any:
        """Return a new copy of the base model."""
        if self.args.shape:
            self._drawn = self._drawn or random_model(self.args.shape, self.args.dtype, self.args.device)
            return copy.deepcopy(self._drawn)
        return load_model(self.model_folder, self.args.dtype, self.args.device)

    def bank(self, count: int) -> tuple[Path, list[str]]:
        """Return the folder and the names of a bank of ``count`` adapters."""
        folder = self.folder / f"bank-{count}"
        names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        return folder, names or make_bank(folder, self.model(), count)

    def engine(self, bank: Path, rows: int, lora: LoraSettings | None = None, **changes: Any) -> Engine:
        """Return an engine with its own copy of the model; ``changes``: further settings."""
        settings = EngineSettings(batch_size=rows, lora=lora or LoraSettings(), **changes)
        return Engine(self.model(), self.tokenizer, AdapterBank.load(bank), settings)

    def peft(self, bank: Path, names: Sequence[str]) -> PeftModel:
        """Return PEFT's model with some adapters; the first is active."""
        model = PeftModel.from_pretrained(self.model(), bank / names[0], adapter_name=names[0])
        for name in names[1:]:
            model.load_adapter(bank / name, adapter_name=name)
        return model.eval()


Figures = Iterator[dict[str, Any]]
"""The growing figures of a case, so that a benchmark that is stopped keeps what it has measured."""


def decode(bench: Bench) -> Figures:
    """Measure milliseconds of a decode step over rows, size of the bank and adapters in a mixture."""
    figures = {}
    for rows, count, adapters in SHAPES:
        if count > bench.args.max_adapters:
            continue
        bank, names = bench.bank(count)
        variants = _own_steps(bench, bank, rows, mixtures(names, adapters, rows))
        if (rows, count) in COMPARED and adapters == 2:
            variants |= _other_steps(bench, bank, rows, names[:26])
        figures[f"rows={rows} bank={count} mixed={adapters}"] = steps_over(in_turn(variants, bench.args.steps), "base")
        yield figures


def _own_steps(bench: Bench, bank: Path, rows: int, mixed: list[Mixture]) -> dict[str, Step]:
    """Return steps of this engine: base, mixtures, and one merged mixture."""
    requests = even(rows, 64, bench.args.steps + 8)
    merged = bench.engine(bank, rows, LoraSettings(mode="merged"))
    variants = {
        "base": engine_steps(bench.engine(bank, rows), requests, [Mixture()]),
        "fused": engine_steps(bench.engine(bank, rows), requests, mixed),
        "merged": engine_steps(merged, requests, mixed[:1]),
    }
    if bench.args.device != "cpu":
        variants["fused_without_graphs"] = engine_steps(bench.engine(bank, rows, cuda_graphs=False), requests, mixed)
    return variants


def _other_steps(bench: Bench, bank: Path, rows: int, names: list[str]) -> dict[str, Step]:
    """Return steps of PEFT with at most 26 adapters, and of plain transformers."""
    requests, peft = even(rows, 64, 1), bench.peft(bank, names)
    one_each = [mixture.adapters[0] for mixture in mixtures(names, 1, rows)]
    return {
        "peft_one_adapter": model_steps(bench.peft(bank, names[:1]), requests),
        "peft_adapter_names": model_steps(peft, requests, one_each),
        "transformers_base": model_steps(bench.model(), requests),
    }


def all_active(bench: Bench) -> Figures:
    """Compare base and fused with PEFT, all adapters active, and the released code: 8 rows, banks of 8 and 26."""
    figures = {}
    for count in (8, 26):
        bank, names = bench.bank(count)
        engine, requests = bench.engine(bank, 8), even(8, 64, 9)
        peft = bench.peft(bank, names)
        peft.base_model.set_adapter(names)
        mixed = requests.with_mixtures([Mixture.of(dict.fromkeys(names, 1 / count))])
        cases: dict[str, Case] = {
            "base": (by_engine(engine), requests),
            "fused": (by_engine(engine), mixed),
            "peft_all_active": (by_generate(peft, 8), requests),
            "released_code": (by_released_code(peft), requests),
        }
        figures[f"bank={count}"] = summary(cases, interleaved(cases, bench.args.repeats), "base")
        yield figures


def skewed_lengths(bench: Bench) -> Figures:
    """Measure 64 requests of skewed lengths, 32 rows at a time."""
    yield _whole(bench, skewed(64), 32)


def prefill(bench: Bench) -> Figures:
    """Measure 32 long prompts with few new tokens, also with four times as many prompt tokens in a pass."""
    yield _whole(bench, even(32, 384, 4), 32, [2048, 8192])


def large(bench: Bench) -> Figures:
    """Measure 128 requests of skewed lengths, 128 rows at a time."""
    yield _whole(bench, skewed(128), 128)


def _whole(bench: Bench, requests: Workload, rows: int, prefill_tokens: Sequence[int] = (2048,)) -> dict[str, Any]:
    bank, names = bench.bank(26)
    cases: dict[str, Case] = {}
    for tokens in prefill_tokens:
        engine, ending = bench.engine(bank, rows, prefill_tokens=tokens), "" if tokens == 2048 else f"_{tokens}"
        cases[f"fused{ending}"] = by_engine(engine), requests.with_mixtures(mixtures(names, 2, 16))
        cases[f"base{ending}"] = by_engine(engine), requests
    cases |= {
        "peft_generate": (by_generate(bench.peft(bank, names[:1]), 32), requests),
        "transformers_continuous_batching": (by_continuous_batching(bench.model(), rows), requests),
    }
    return summary(cases, interleaved(cases, bench.args.repeats), "fused")


def real(bench: Bench) -> Figures:
    """Measure 32 prompts of the demo with 48 new tokens each and 8 adapters in the batch."""
    bank, names = bench.bank(26)
    rows = [orjson.loads(line) for line in Path("demo/records.jsonl").read_bytes().splitlines()[:32]]
    requests = workload(bench.prompts.encode([row["prompt"] for row in rows]), [48] * 32)
    engine, base = bench.engine(bank, 32), bench.model()
    cases: dict[str, Case] = {
        "transformers_base": (by_generate(base, 32), requests),
        "fused": (by_engine(engine), requests.with_mixtures(mixtures(names[:8], 1, 8))),
        "fused_two_each": (by_engine(engine), requests.with_mixtures(mixtures(names[:8], 2, 8))),
        "base": (by_engine(engine), requests),
    }
    yield summary(cases, interleaved(cases, bench.args.repeats), "transformers_base")


def thousand(bench: Bench) -> Figures:
    """Measure a bank of 1,000 adapters, 32 of them on the device, with 32 distinct mixtures of one in the batch."""
    bank, names = bench.bank(1000)
    requests = even(32, 64, bench.args.steps + 8)
    variants = {
        name: engine_steps(bench.engine(bank, 32, LoraSettings(adapter_slots=32)), requests, given)
        for name, given in (("base", [Mixture()]), ("fused", mixtures(names, 1, 32)))
    }
    yield steps_over(in_turn(variants, bench.args.steps), "base")


CASES: dict[str, Callable[[Bench], Figures]] = {
    "decode": decode,
    "all-active": all_active,
    "skewed": skewed_lengths,
    "prefill": prefill,
    "large": large,
    "real": real,
    "thousand": thousand,
}


def main() -> None:
    """Measure the chosen cases; write a result file for each."""
    parser = argparse.ArgumentParser(prog="benchmarks.engine")
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="decode steps of each variant (decode, thousand)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", help="a model folder (default: the demo's)")
    parser.add_argument("--shape", choices=MODELS, help="random weights of this shape; the tokenizer is --model's")
    parser.add_argument("--max-adapters", type=int, default=1000, help="omit cases with larger banks")
    parser.add_argument("--dtype", default="bf16", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = {
        key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items() if key != "output"
    }
    prefix = "" if args.device == "cpu" else f"{args.device}-"
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        for name in args.cases:
            for figures in CASES[name](bench):
                result = {"case": name, "config": config, "figures": figures}
                write_results(args.output / f"engine-{prefix}{name}.json", result)
            _print(name, figures)


def _print(title: str, figures: dict[str, Any], indent: str = "") -> None:
    print(f"{indent}{title}", flush=True)
    for name, value in figures.items():
        if isinstance(value, dict) and "median" in value:
            print(f"{indent}  {name:32} {value['median']:8.3f}  ({value['least']:.3f} to {value['most']:.3f})")
        elif isinstance(value, dict) and name != "seconds":
            _print(name, value, indent + "  ")
        elif isinstance(value, float):
            print(f"{indent}  {name:32} {value:8.1f}")


if __name__ == "__main__":
    main()
