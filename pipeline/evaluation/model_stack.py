"""Load model, bank, router and engine into this process, checked against each other."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pipeline.engine import Engine, load_bank
from pipeline.engine.settings import EngineSettings
from pipeline.models import (
    PromptFormat,
    check_quantization,
    check_weights,
    load_config,
    load_model,
    load_tokenizer,
    model_fingerprint,
    pick_device,
)
from pipeline.routing.loading import load_router_for
from pipeline.routing.router import Router
from pipeline.settings import ModelRef


@dataclass(frozen=True)
class ModelStack:
    """``identity``: everything that decides the answer to a prompt and a mixture, besides the engine's sampling."""

    engine: Engine
    prompts: PromptFormat
    router: Router
    identity: dict[str, str]


def load_model_stack(
    model: ModelRef,
    bank_path: str,
    router_path: str,
    adapters: Sequence[str] | None,
    device: str,
    engine: EngineSettings,
) -> ModelStack:
    """Check and load everything; `UserError` for the first problem, before the model's weights are read.

    ``model``: of a folder or hub id. ``adapters``: names to load from the bank, None for all.
    """
    config = load_config(model.path, model.trust_remote_code)
    check_weights(model.path)
    check_quantization(model.quantization)
    tokenizer = load_tokenizer(model.path, model.trust_remote_code)
    prompts = PromptFormat(tokenizer, model.prompts)
    bank = load_bank(bank_path, adapters, config, model.path, model.trust_remote_code)
    router = load_router_for(router_path, bank.names, bank_path, tokenizer.get_vocab(), model.prompts.prompt_format)
    device = pick_device(device)
    loaded = load_model(model.path, model.dtype, device, model.trust_remote_code, model.quantization)
    identity = {
        "model": model_fingerprint(model.path, config),
        "bank": bank.fingerprint,
        "dtype": str(loaded.dtype),
        "quantization": model.quantization,
        "device": device,
        **{name: str(value) for name, value in asdict(model.prompts).items()},
    }
    return ModelStack(Engine(loaded, tokenizer, bank, engine), prompts, router, identity)
