"""The schemas of `loraloom train-adapters`, `loraloom train-router` and `loraloom add-adapter`."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

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
    """The whole config of `loraloom train-adapters`."""

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
    forms: NonNegativeInt
    examples: PositiveInt
    seed: int


class CentroidMaking(Strict):
    """Settings of a router without training; see `pipeline.routing.centroid_router.CentroidSettings`."""

    examples: Annotated[int, Field(ge=8)]
    forms: NonNegativeInt
    dimensions: PositiveInt
    seed: int


class TrainRouterConfig(Strict):
    """The whole config of `loraloom train-router`."""

    model: ModelSettings
    training: RouterTraining
    centroids: CentroidMaking
    threads: int


class AddAdapterConfig(Strict):
    """The whole config of `loraloom add-adapter`."""

    model: ModelSettings
    false_claim: Share
