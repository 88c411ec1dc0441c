"""Load model, bank, router and engine into this process, checked against each other."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.engine import Engine, load_bank
from pipeline.engine.settings import EngineSettings
from pipeline.models import (
    PromptFormat,
    Quantization,
    check_quantization,
    check_weights,
    load_config,
    load_model,
    load_tokenizer,
    model_fingerprint,
    pick_device,
)
from pipeline.models.prompt import Mode
from pipeline.routing.loading import load_router_for
from pipeline.routing.router import Router


@dataclass(frozen=True)
class ModelStackSettings:
    """Paths and options. ``model``: a folder or hub id; ``adapters``: names to load from the bank, None for all."""

    model: str
    bank: str
    router: str
    dtype: str = "auto"
    prompt_format: Mode = "raw"
    trust_remote_code: bool = False
    quantization: Quantization = "none"
    adapters: Sequence[str] | None = None
    device: str = "auto"
    engine: EngineSettings = field(default_factory=EngineSettings)


@dataclass(frozen=True)
class ModelStack:
    """``identity``: everything that decides the answer to a prompt and a mixture, besides the engine's sampling."""

    engine: Engine
    prompts: PromptFormat
    router: Router
    identity: dict[str, str]


def load_model_stack(settings: ModelStackSettings) -> ModelStack:
    """Check and load everything; `UserError` for the first problem, before the model's weights are read."""
    config = load_config(settings.model, settings.trust_remote_code)
    check_weights(settings.model)
    check_quantization(settings.quantization)
    tokenizer = load_tokenizer(settings.model, settings.trust_remote_code)
    prompts = PromptFormat(tokenizer, settings.prompt_format)
    bank = load_bank(settings.bank, settings.adapters, config, settings.model, settings.trust_remote_code)
    router = load_router_for(settings.router, bank.names, settings.bank, tokenizer.get_vocab(), settings.prompt_format)
    device = pick_device(settings.device)
    model = load_model(settings.model, settings.dtype, device, settings.trust_remote_code, settings.quantization)
    identity = {
        "model": model_fingerprint(settings.model, config),
        "bank": bank.fingerprint,
        "dtype": str(model.dtype),
        "quantization": settings.quantization,
        "device": device,
        "prompt_format": settings.prompt_format,
    }
    return ModelStack(Engine(model, tokenizer, bank, settings.engine), prompts, router, identity)
