"""The schema of `loraloom generate`: one frozen model for each config group, which refuses unknown keys."""

import os
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    ValidationInfo,
    create_model,
    field_validator,
)
from pydantic_core import PydanticCustomError

from pipeline.conversations import LastAssistant, Layout, PromptMode, PromptSettings, SpecialTokens
from pipeline.conversations.openai_batch import ID, SAMPLING
from pipeline.engine.choice import AUTO
from pipeline.engine.overrides import parse_setting
from pipeline.engine.registry import BACKENDS
from pipeline.engine.settings import FROM_JOB, BackendSettings

from .words import json_object

Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Object = Annotated[dict[str, Any], BeforeValidator(json_object)]
PathOrUrl = Annotated[Text, AfterValidator(os.path.expanduser)]


_LISTS = ("stop", "stop_token_ids", "choices")  # null is none of them


class Strict(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(Strict):
    """The base model (`conf/model`)."""

    path: PathOrUrl
    dtype: Literal["auto", "fp32", "bf16", "fp16"]
    quantization: Literal["none", "8bit", "4bit"]
    prompt_format: PromptMode
    last_assistant: LastAssistant
    special_tokens: SpecialTokens
    chat_template_kwargs: Object | None
    trust_remote_code: bool

    @property
    def prompts(self) -> PromptSettings:
        """The settings of prompts among these."""
        return PromptSettings(
            self.prompt_format, self.last_assistant, self.special_tokens, self.chat_template_kwargs or {}
        )


class BankSettings(Strict):
    """The adapter bank (`conf/bank`)."""

    path: PathOrUrl
    adapters: list[str] | None


class RouterPath(Strict):
    """The router (`conf/router`)."""

    path: PathOrUrl


class EngineConfig(Strict):
    """Keys of every engine (`conf/engine`), besides the fields of the engine's own settings."""

    backend: str
    hang_seconds: PositiveFloat
    actors: NonNegativeInt
    threads: NonNegativeInt


@cache
def _engine_model(backend: str) -> type[EngineConfig]:
    """Return the model of an engine's config: the fields of its settings, all required.

    ``engine=auto`` has the fields that all engines share, which may be null: then the chosen engine's default counts.
    """
    is_open = backend == AUTO
    settings: type[BackendSettings] = BackendSettings if is_open else BACKENDS[backend].settings
    types = get_type_hints(settings, include_extras=True)
    names = [field.name for field in fields(settings) if field.name not in FROM_JOB]
    own: dict[str, Any] = {name: (types[name] | None if is_open else types[name], ...) for name in names}
    return create_model(f"{settings.__name__}Config", __base__=EngineConfig, **own)


def _by_backend(values: Any) -> EngineConfig:
    """Check the values of an engine's config with the model of that engine."""
    backend = values.get("backend") if isinstance(values, dict) else values
    if backend not in (AUTO, *BACKENDS):
        raise PydanticCustomError(
            "engine", f"no engine {backend!r}; the engines are {', '.join(BACKENDS)} (engine=NAME)"
        )
    return _engine_model(backend).model_validate(values)


AnyEngine = Annotated[SerializeAsAny[EngineConfig], BeforeValidator(_by_backend)]
"""The config of one of the engines of `pipeline.engine.registry`, or of ``engine=auto``."""


class InputSettings(Strict):
    """Columns of the input (`conf/input`)."""

    layout: Layout
    id_column: str
    prompt_column: str
    messages_column: str
    sampling_column: str | None
    choices_column: str | None
    tools_column: str | None
    template_column: str | None
    long_prompts: Literal["truncate_left", "truncate_right", "dead_letter"]

    @field_validator("id_column", "sampling_column")
    @classmethod
    def _of_requests(cls, value: str | None, info: ValidationInfo) -> str | None:
        """With other columns, a request would lose its id or its sampling."""
        needed = {"id_column": ID, "sampling_column": SAMPLING}[str(info.field_name)]
        if info.data.get("layout") == "openai_batch" and value != needed:
            raise PydanticCustomError("setting", "must be {needed}: give input=openai_batch", {"needed": needed})
        return value


class OutputSettings(Strict):
    """The output (`conf/output`)."""

    keep_prompt: bool
    file_mb: NonNegativeInt


class StageSettings(Strict):
    """The Ray resources of one task or actor of a stage."""

    cpus: PositiveFloat
    memory_gb: Annotated[float, Field(ge=0)]
    accelerator: Text | None
    labels: Annotated[dict[str, str], BeforeValidator(json_object)]


class RouteStage(StageSettings):
    """The routing actors; ``max_actors``: 0 for as many as there are CPUs beside all engines."""

    min_actors: PositiveInt
    max_actors: NonNegativeInt


class GenerateStage(StageSettings):
    """The generating actors; 0: as many as fit the cluster."""

    min_actors: NonNegativeInt
    max_actors: NonNegativeInt
    gpus: Annotated[float, Field(ge=0)] | None
    tensor_parallel: PositiveInt


class StageGroup(Strict):
    """All stages."""

    read: StageSettings
    route: RouteStage
    generate: GenerateStage
    write: StageSettings


class ClusterSettings(Strict):
    """The Ray cluster, and the resources of the stages (`conf/cluster`)."""

    address: str | None
    cpus: NonNegativeInt
    autoscaling: bool
    log_format: Literal["text", "json"]
    stages: StageGroup


class GenerationSettings(Strict):
    """Settings of sampling; see `pipeline.engine.Sampling`, and docs/label.md for the last four."""

    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    n: int
    logprobs: int | None
    choices: tuple[str, ...]
    json_schema: dict[str, Any] | Text | None
    regex: str | None
    grammar: str | None

    @field_validator("*", mode="before")
    @classmethod
    def _check(cls, value: Any, info: ValidationInfo) -> Any:
        """Check a value as that of a record is checked. In the config, ``json_schema`` may name a file."""
        if value is None and info.field_name in _LISTS:
            return ()
        if value is None or value == [] or info.field_name == "json_schema":
            return json_object(value)
        try:
            return parse_setting(str(info.field_name), value)
        except ValueError as error:
            raise PydanticCustomError("setting", "{problem}", {"problem": str(error)}) from None


class RoutingSettings(Strict):
    """From the router's probabilities to mixtures; see `RoutingPolicy`, `SentenceSettings` and `PartSettings`."""

    top_p: Annotated[float, Field(gt=0, le=1)]
    max_adapters: NonNegativeInt
    weights: Literal["renormalize", "softmax"]
    weight_steps: Annotated[int, Field(ge=1, le=4096)]
    gate: bool
    fallback: Literal["base", "all", "nearest"] | None
    acceptance: Share
    granularity: Literal["record", "sentence", "parts"]
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[a-zA-Z]+)*$")]
    context_sentences: NonNegativeInt
    min_sentence_tokens: PositiveInt


class ErrorSettings(Strict):
    """The error budget: how many dead letters a run may have."""

    budget: Share
    max: NonNegativeInt | None


class WindowSettings(Strict):
    """Windows of the input."""

    records: Annotated[int, Field(ge=1, le=2**31)]


class ShuffleSettings(Strict):
    """Shards, and the blocks of routed records that are cut into them."""

    shard_records: PositiveInt
    shard_adapters: PositiveInt
    block_records: PositiveInt


class CostSettings(Strict):
    """Prices, for estimates and the report."""

    device_hour: PositiveFloat | None
    currency: Text


class TrackingSettings(Strict):
    """The MLflow server that finished runs are logged to."""

    mlflow: Text | None
    experiment: Text


class GenerateConfig(Strict):
    """The whole config of `loraloom generate`."""

    model: ModelSettings
    bank: BankSettings
    router: RouterPath
    engine: AnyEngine
    input: InputSettings
    output: OutputSettings
    cluster: ClusterSettings
    seed: int
    generation: GenerationSettings
    routing: RoutingSettings
    errors: ErrorSettings
    window: WindowSettings
    shuffle: ShuffleSettings
    cost: CostSettings
    tracking: TrackingSettings
