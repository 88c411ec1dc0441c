"""Measure the time to load a bank of many adapters, compared with PEFT.

    python -m benchmarks.bank_load [--adapters 100] [--repeats 5] [--peft 10]

The adapters have the demo's shape (r = 8 on q_proj and v_proj of SmolLM2-135M) and random weights. Both loaders run in
turn in one process. PEFT loads the first ``--peft`` adapters of the same folder; its result is per adapter, since the
time for each grows with their number. Memory is the growth of the process during the bank's first load: anonymous
pages, which the bank owns, and pages of its files, which the system shares and frees as needed.
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from conf import load_settings
from conf.schema import GenerateConfig
from pipeline.adapters import AdapterBank
from pipeline.engine import FusedLora
from pipeline.evaluation.results import write_results
from pipeline.models import load_model, resolve_model


def main() -> None:
    """Measure and write `benchmarks/results/bank-load.json`."""
    parser = argparse.ArgumentParser(prog="benchmarks.bank_load")
    parser.add_argument("--adapters", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peft", type=int, default=10)
    args = parser.parse_args()
    config = load_settings("generate", [], GenerateConfig)
    folder = resolve_model(config.model.path)
    model = load_model(folder, "bf16")
    with tempfile.TemporaryDirectory() as bank:
        names = make_bank(Path(bank), load_model(folder, "bf16"), args.adapters)
        files = sum(path.stat().st_size for path in Path(bank).rglob("*.safetensors"))
        ours, peft = [], []
        before = _memory()
        loaded = _load_bank(bank, model)
        memory = {kind: size - before[kind] for kind, size in _memory().items()}
        del loaded
        for _ in range(args.repeats):
            ours.append(_timed(lambda: _load_bank(bank, model)))
            peft.append(_timed(partial(_load_peft, load_model(folder, "bf16"), bank, names[: args.peft])))
    figures = {
        "config": vars(args),
        "bank_files_bytes": files,
        "bank_memory_bytes": memory,
        "bank_seconds": ours,
        "bank_seconds_median": statistics.median(ours),
        "peft_seconds": peft,
        "peft_seconds_per_adapter_median": statistics.median(peft) / args.peft,
        "bank_seconds_per_adapter_median": statistics.median(ours) / args.adapters,
    }
    write_results(Path("benchmarks/results/bank-load.json"), figures)
    print(f"{args.adapters} adapters: {figures['bank_seconds_median']:.2f} s (median of {args.repeats})")
    print(f"{files / 1e6:.0f} MB of files; memory: {', '.join(f'{k} {v / 1e6:.0f} MB' for k, v in memory.items())}")
    print(f"{args.peft} adapters through PEFT: {statistics.median(peft):.2f} s")


def make_bank(bank: Path, model: Any, count: int) -> list[str]:
    """Save adapters of the demo's shape with random weights, written by PEFT; return their names."""
    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft = get_peft_model(model, config)
    names = [f"adapter-{index:04d}" for index in range(count)]
    for name in names:
        peft.save_pretrained(bank / name)
    return names


def _load_bank(bank: str, model: Any) -> FusedLora:
    """Load, check and attach a bank: all steps before the first token."""
    loaded = AdapterBank.load(bank)
    loaded.check_values()
    fused = FusedLora(model, loaded)
    fused.detach()
    return fused


def _memory() -> dict[str, int]:
    """Return the resident bytes of this process: anonymous pages and pages of files."""
    gc.collect()
    text = Path("/proc/self/smaps_rollup").read_text()
    fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in text.splitlines() if line.endswith("kB")}
    return {"anonymous": fields["Anonymous"], "files": fields["Rss"] - fields["Anonymous"]}


def _load_peft(model: Any, bank: str, names: list[str]) -> None:
    peft = PeftModel.from_pretrained(model, Path(bank) / names[0], adapter_name=names[0])
    for name in names[1:]:
        peft.load_adapter(Path(bank) / name, adapter_name=name)


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
