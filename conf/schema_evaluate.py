"""The schema of `loraloom evaluate`."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from .schema import BankSettings, ModelSettings, RouterPath, Strict


class ComparedRouting(Strict):
    """Settings that all routed mixtures share; see `pipeline.routing.RoutingPolicy`."""

    max_adapters: PositiveInt
    weight_steps: Annotated[int, Field(ge=1, le=4096)]


class EvaluationEngine(Strict):
    """Sizes of batches; see `pipeline.engine`."""

    batch_size: PositiveInt
    prefill_tokens: PositiveInt
    score_tokens: PositiveInt


class BootstrapConfig(Strict):
    """Resampling for confidence intervals; see `pipeline.evaluation.bootstrap.BootstrapSettings`."""

    resamples: Annotated[int, Field(ge=100, le=100_000)]
    seed: NonNegativeInt


class EvaluateConfig(Strict):
    """The whole config of `loraloom evaluate`."""

    model: ModelSettings
    bank: BankSettings
    router: RouterPath
    max_new_tokens: PositiveInt
    routing: ComparedRouting
    engine: EvaluationEngine
    bootstrap: BootstrapConfig
    device: Literal["auto", "cpu", "cuda"]
    threads: NonNegativeInt
