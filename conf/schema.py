"""What `jobs.generate` accepts: one frozen model for each config group, unknown keys refused."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt

from pipeline.engine.overrides import LEAST_PENALTY, MOST_ANSWERS, MOST_LOGPROBS, MOST_PENALTY

Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]


class Strict(BaseModel):
    """Frozen, and no key that is not named."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(Strict):
    """The base model (`conf/model`)."""

    path: str
    dtype: Literal["auto", "fp32", "bf16", "fp16"]
    quantization: Literal["none", "8bit", "4bit"]
    prompt_format: Literal["raw", "chat"]
    trust_remote_code: bool


class BankSettings(Strict):
    """The adapter bank (`conf/bank`)."""

    path: str
    adapters: list[str] | None


class RouterPath(Strict):
    """The router (`conf/router`)."""

    path: str


class AnyEngine(Strict):
    """What every engine and its actors have."""

    batch_size: PositiveInt
    prefill_tokens: PositiveInt
    reuse_prefixes: bool
    cuda_graphs: bool
    hang_seconds: PositiveFloat
    actors: NonNegativeInt
    threads: NonNegativeInt


class NativeEngine(AnyEngine):
    """The fused engine (`conf/engine/native.yaml`)."""

    backend: Literal["native"]
    kv_tokens: NonNegativeInt
    look_ahead: NonNegativeInt
    lora_mode: Literal["auto", "union", "gather", "merged"]
    adapter_slots: NonNegativeInt


class VllmEngine(AnyEngine):
    """vLLM (`conf/engine/vllm.yaml`)."""

    backend: Literal["vllm"]
    max_loras: PositiveInt
    over_rank: Literal["refuse", "native"]
    folder: Text | None
    kv_gb: Annotated[float, Field(ge=0)]


EngineConfig = Annotated[NativeEngine | VllmEngine, Field(discriminator="backend")]
"""One of the engines (`conf/engine`)."""


class InputSettings(Strict):
    """Columns of the input (`conf/input`)."""

    layout: Literal["columns", "openai_batch"]
    id_column: str
    prompt_column: str
    messages_column: str
    sampling_column: str | None
    choices_column: str | None
    long_prompts: Literal["truncate_left", "truncate_right", "dead_letter"]


class OutputSettings(Strict):
    """The output (`conf/output`)."""

    prompt: bool
    file_mb: NonNegativeInt


class StageSettings(Strict):
    """What one task or actor of a stage asks of Ray."""

    cpus: PositiveFloat
    memory_gb: Annotated[float, Field(ge=0)]
    accelerator: Text | None
    labels: dict[str, str]


class RouteStage(StageSettings):
    """The routing actors: between so many and so many."""

    actors: PositiveInt
    max_actors: PositiveInt


class GenerateStage(StageSettings):
    """The generating actors; 0 actors: as many as the cluster has room for."""

    actors: NonNegativeInt
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
    """Where Ray runs and what the stages take of it (`conf/cluster`)."""

    address: str | None
    cpus: NonNegativeInt
    autoscaling: bool
    log_format: Literal["text", "json"]
    stages: StageGroup


class GenerationSettings(Strict):
    """How answers are chosen; see `pipeline.engine.Sampling`, and docs/label.md for the last four."""

    max_new_tokens: PositiveInt
    min_new_tokens: NonNegativeInt
    temperature: Annotated[float, Field(ge=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    top_k: NonNegativeInt
    min_p: Share
    repetition_penalty: Annotated[float, Field(ge=LEAST_PENALTY, le=MOST_PENALTY)]
    presence_penalty: Annotated[float, Field(ge=-2, le=2)]
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)]
    stop: tuple[Text, ...]
    stop_token_ids: tuple[NonNegativeInt, ...]
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)]
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None
    choices: tuple[Text, ...]
    json_schema: dict[str, Any] | Text | None
    regex: Text | None
    grammar: Text | None


class RoutingSettings(Strict):
    """What is routed, and how probabilities become mixtures; see `RoutingPolicy`, `SentenceSettings`."""

    top_p: Annotated[float, Field(gt=0, le=1)]
    max_adapters: NonNegativeInt
    weights: Literal["renormalize", "softmax"]
    weight_steps: Annotated[int, Field(ge=1, le=4096)]
    gate: bool
    acceptance: Share
    granularity: Literal["record", "sentence"]
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[a-zA-Z]+)*$")]
    context_sentences: NonNegativeInt
    min_sentence_tokens: PositiveInt


class ErrorSettings(Strict):
    """How many dead letters are accepted."""

    budget: Share
    max: NonNegativeInt | None


class WindowSettings(Strict):
    """Windows of the input."""

    records: Annotated[int, Field(ge=1, le=2**31)]


class ShuffleSettings(Strict):
    """Shards of a window."""

    shard_records: PositiveInt
    shard_adapters: PositiveInt
    task_records: Annotated[int, Field(ge=0)]


class CostSettings(Strict):
    """Prices, for estimates and the report."""

    device_hour: PositiveFloat | None
    currency: Text


class TrackingSettings(Strict):
    """Where finished runs are logged."""

    mlflow: Text | None
    experiment: Text


class GenerateConfig(Strict):
    """The whole config of `jobs.generate`."""

    model: ModelSettings
    bank: BankSettings
    router: RouterPath
    engine: EngineConfig
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
