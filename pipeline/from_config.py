"""From the checked config of `jobs.generate` and `jobs.route` to the settings of the stages."""

import json
from dataclasses import fields, replace
from typing import Any

from conf.generate import shown_config
from conf.schema import GenerateConfig, GenerationSettings, NativeEngine, RoutingSettings, VllmEngine

from .engine import Constraint, LoraSettings, Sampling, schema_text
from .engine.settings import EngineSettings
from .engine.vllm.settings import VllmSettings
from .errors import UserError
from .routing import RoutingPolicy, SentenceSettings
from .settings import JobSettings, ModelRef
from .storage.input.columns import Columns
from .storage.store.redact import masked, one_line
from .storage.store.urls import open_url

_CONSTRAINTS = ("json_schema", "regex", "grammar")
_OF_SENTENCES = tuple(f.name for f in fields(SentenceSettings))


def job_settings(config: GenerateConfig, input_url: str, output_url: str, limit: int | None = None) -> JobSettings:
    """The stages' settings of a config."""
    model, columns, adapters = config.model, config.input, config.bank.adapters
    return JobSettings(
        input=input_url,
        output=output_url,
        model=ModelRef(model.path, model.dtype, model.prompt_format, model.trust_remote_code, model.quantization),
        bank=config.bank.path,
        adapters=None if adapters is None else tuple(adapters),
        router=config.router.path,
        columns=Columns(
            columns.id_column,
            columns.prompt_column,
            columns.messages_column,
            columns.sampling_column,
            columns.choices_column,
            columns.layout,
        ),
        long_prompts=columns.long_prompts,
        keep_prompt=config.output.prompt,
        sampling=sampling_of(config.generation),
        routing=RoutingPolicy(**config.routing.model_dump(exclude={"granularity", *_OF_SENTENCES})),
        sentences=_sentences(config.routing),
        engine=_engine(config),
        error_budget=config.errors.budget,
        error_max=config.errors.max,
        window_records=config.window.records,
        limit=limit,
        shard_records=config.shuffle.shard_records,
        shard_adapters=config.shuffle.shard_adapters,
        shuffle_task_records=config.shuffle.task_records,
        hang_seconds=config.engine.hang_seconds,
        file_bytes=config.output.file_mb * 2**20,
        config=shown_config(config)
        | {"command": {"input": masked(input_url), "output": masked(output_url), "limit": limit}},
    )


def sampling_of(generation: GenerationSettings) -> Sampling:
    """The settings of the engine, with what files they name."""
    return Sampling(**generation.model_dump(exclude=set(_CONSTRAINTS)), constraint=_constraint(generation))


def _constraint(generation: GenerationSettings) -> Constraint | None:
    named = [name for name in _CONSTRAINTS if getattr(generation, name) is not None]
    if len(named) > 1:
        raise UserError(f"config: generation: {' and '.join(named)} do not go together: give one of them")
    if "regex" in named:
        return Constraint("regex", str(generation.regex))
    if generation.grammar is not None:
        return Constraint("grammar", _file("grammar", generation.grammar))
    return None if generation.json_schema is None else Constraint("json_schema", _schema(generation.json_schema))


def _schema(given: dict[str, Any] | str) -> str:
    if isinstance(given, dict):
        return schema_text(given)
    try:
        return schema_text(json.loads(_file("json_schema", given)))
    except ValueError as error:
        raise UserError(f"config: generation.json_schema: {masked(given)} is not JSON: {error}") from None


def _file(key: str, url: str) -> str:
    fs, path = open_url(url)
    try:
        return bytes(fs.cat_file(path)).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config: generation.{key}: cannot read {masked(url)}: {one_line(error)}") from None


def _engine(config: GenerateConfig) -> EngineSettings:
    engine, parallel = config.engine, config.cluster.stages.generate.tensor_parallel
    shared = EngineSettings(
        batch_size=engine.batch_size,
        prefill_tokens=engine.prefill_tokens,
        seed=config.seed,
        reuse_prefixes=engine.reuse_prefixes,
        cuda_graphs=engine.cuda_graphs,
    )
    return _native(shared, engine) if engine.backend == "native" else _vllm(shared, engine, parallel)


def _native(shared: EngineSettings, engine: NativeEngine) -> EngineSettings:
    lora = LoraSettings(engine.lora_mode, engine.adapter_slots)
    return replace(shared, kv_tokens=engine.kv_tokens, look_ahead=engine.look_ahead, lora=lora)


def _vllm(shared: EngineSettings, engine: VllmEngine, parallel: int) -> EngineSettings:
    own = VllmSettings(engine.max_loras, engine.over_rank, engine.folder, engine.kv_gb, parallel)
    return replace(shared, vllm=own)


def _sentences(routing: RoutingSettings) -> SentenceSettings | None:
    if routing.granularity == "record":
        return None
    return SentenceSettings(**routing.model_dump(include=set(_OF_SENTENCES)))
