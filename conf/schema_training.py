"""What `jobs.train_adapters`, `jobs.train_router` and `jobs.add_adapter` accept."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from .schema import ModelSettings, Share, Strict

OpenShare = Annotated[float, Field(gt=0, lt=1)]


class AdapterTraining(Strict):
    """Settings of one adapter's training; see `pipeline.training.TrainingSettings`."""

    r: PositiveInt
    alpha: PositiveInt
    target_modules: tuple[str, ...]
    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    warmup_steps: int
    max_tokens: PositiveInt
    validation_share: OpenShare
    validation_examples: PositiveInt
    evaluate_every: PositiveInt
    seed: int


class TrainAdaptersConfig(Strict):
    """The whole config of `jobs.train_adapters`."""

    model: ModelSettings
    training: AdapterTraining
    device: Literal["auto", "cpu", "cuda"]
    threads: int


class RouterTraining(Strict):
    """Settings of the router's training; see `pipeline.routing.training.RouterSettings`."""

    epochs: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    held_out: OpenShare
    crop_share: Share
    references: PositiveInt
    seed: int


class TrainRouterConfig(Strict):
    """The whole config of `jobs.train_router`."""

    model: ModelSettings
    training: RouterTraining
    threads: int


class AddAdapterConfig(Strict):
    """The whole config of `jobs.add_adapter`."""

    model: ModelSettings
    false_claim: Share
