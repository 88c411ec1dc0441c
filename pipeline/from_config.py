"""Translate the checked config of `loraloom generate` and `loraloom route` into the settings of a job."""

import json
from dataclasses import fields
from typing import Any, TypeVar

from conf.generate import shown_config
from conf.schema import GenerateConfig, GenerationSettings, RoutingSettings

from .engine import Constraint, Sampling, schema_text
from .engine.choice import NAMED
from .engine.registry import BACKENDS
from .engine.settings import FROM_JOB, BackendSettings
from .errors import UserError
from .routing import PartSettings, RoutingPolicy, SentenceSettings
from .settings import JobSettings, ModelRef
from .storage.input.columns import Columns
from .storage.store.redact import masked, masked_error
from .storage.store.urls import open_url

_CONSTRAINTS = ("json_schema", "regex", "grammar")
_Routing = TypeVar("_Routing", RoutingPolicy, SentenceSettings, PartSettings)


def job_settings(
    config: GenerateConfig, input_url: str, output_url: str, limit: int | None = None, engine_reason: str = NAMED
) -> JobSettings:
    """Return the settings of a job. ``engine_reason``: why it has the engine of the config."""
    model, columns, adapters, granularity = config.model, config.input, config.bank.adapters, config.routing.granularity
    return JobSettings(
        input=input_url,
        output=output_url,
        model=ModelRef(model.path, model.dtype, model.prompts, model.trust_remote_code, model.quantization),
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
            columns.tools_column,
            columns.template_column,
            is_chat=model.prompts.prompt_format == "chat",
        ),
        long_prompts=columns.long_prompts,
        keep_prompt=config.output.keep_prompt,
        sampling=sampling_of(config.generation),
        routing=_of_routing(RoutingPolicy, config.routing),
        sentences=_of_routing(SentenceSettings, config.routing) if granularity == "sentence" else None,
        parts=_of_routing(PartSettings, config.routing) if granularity == "parts" else None,
        engine=engine_settings(config),
        error_budget=config.errors.budget,
        max_errors=config.errors.max,
        window_records=config.window.records,
        limit=limit,
        shard_records=config.shuffle.shard_records,
        shard_adapters=config.shuffle.shard_adapters,
        block_records=config.shuffle.block_records,
        hang_seconds=config.engine.hang_seconds,
        file_bytes=config.output.file_mb * 2**20,
        engine_reason=engine_reason,
        config=shown_config(config)
        | {"command": {"input": masked(input_url), "output": masked(output_url), "limit": limit}},
    )


def sampling_of(generation: GenerationSettings) -> Sampling:
    """Return the settings of sampling; files that they name are read."""
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
        raise UserError(f"config: generation.{key}: cannot read {masked(url)}: {masked_error(error)}") from None


def engine_settings(config: GenerateConfig) -> BackendSettings:
    """Return the settings of the configured engine."""
    kind = BACKENDS[config.engine.backend].settings
    own = {field.name: getattr(config.engine, field.name) for field in fields(kind) if field.name not in FROM_JOB}
    settings: BackendSettings = kind(
        **own, seed=config.seed, tensor_parallel=config.cluster.stages.generate.tensor_parallel
    )
    return settings


def _of_routing(kind: type[_Routing], routing: RoutingSettings) -> _Routing:
    return kind(**routing.model_dump(include={field.name for field in fields(kind)}))
