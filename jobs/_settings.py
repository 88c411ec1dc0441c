"""From the checked config of `jobs.generate` and `jobs.route` to the settings of the stages."""

import argparse
import json
from dataclasses import fields
from typing import Any

from conf import load_settings
from conf.schema import EngineConfig, GenerateConfig, GenerationSettings, RoutingSettings
from pipeline.engine import Constraint, LoraSettings, Sampling, schema_text
from pipeline.engine.settings import EngineSettings
from pipeline.errors import UserError
from pipeline.models import resolve_model
from pipeline.routing import RoutingPolicy, SentenceSettings
from pipeline.stages.settings import JobSettings, ModelRef, Pools
from pipeline.storage.columns import Columns
from pipeline.storage.files import one_line, open_url
from pipeline.storage.secrets import masked

_CONSTRAINTS = ("json_schema", "regex", "grammar")
_OF_SENTENCES = tuple(f.name for f in fields(SentenceSettings))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that read records."""
    parser.add_argument("--input", help="file, folder or glob; any URL that fsspec knows")
    parser.add_argument("--output", help="folder or URL of the results")
    parser.add_argument("--limit", type=_at_least_one, metavar="N", help="only the first N records of the input")
    parser.add_argument("--seed", type=int, help="seed of sampling (config: seed)")
    parser.add_argument("overrides", nargs="*", help="config: group=option or key=value")


def read_config(args: argparse.Namespace) -> GenerateConfig:
    """The config of a command; `UserError` with all that is wrong in it."""
    seed = [] if args.seed is None else [f"seed={args.seed}"]
    return load_config([*args.overrides, *seed])


def load_config(words: list[str]) -> GenerateConfig:
    """The config that some words give; `UserError` with all that is wrong in it."""
    return load_settings("generate", words, GenerateConfig)


def read_settings(args: argparse.Namespace, needs_files: bool = True) -> tuple[GenerateConfig, JobSettings]:
    """The config and the stages' settings; `UserError` where the config is wrong."""
    config = read_config(args)
    missing = [f"--{name}" for name in ("input", "output") if getattr(args, name) is None]
    if missing and needs_files:
        raise UserError(f"command: {' and '.join(missing)} must be given")
    return config, job_settings(config, args.input or "", args.output or "", args.limit)


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def pools_of(config: GenerateConfig) -> Pools:
    """What the stages ask of Ray, before the cluster is known."""
    cpus = config.cluster.stage_cpus
    return Pools(
        route_actors=config.cluster.route_actors,
        read_cpus=cpus.read,
        route_cpus=cpus.route,
        generate_cpus=cpus.generate,
        write_cpus=cpus.write,
    )


def job_settings(config: GenerateConfig, input_url: str, output_url: str, limit: int | None = None) -> JobSettings:
    """The stages' settings of a config."""
    model, columns, adapters = config.model, config.input, config.bank.adapters
    return JobSettings(
        input=input_url,
        output=output_url,
        model=ModelRef(
            resolve_model(model.path), model.dtype, model.prompt_format, model.trust_remote_code, model.quantization
        ),
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
        engine=_engine(config.engine, config.seed),
        error_budget=config.errors.budget,
        error_max=config.errors.max,
        window_records=config.window.records,
        limit=limit,
        shard_records=config.shuffle.shard_records,
        hang_seconds=config.engine.hang_seconds,
        file_bytes=config.output.file_mb * 2**20,
        config=shown_config(config)
        | {"command": {"input": masked(input_url), "output": masked(output_url), "limit": limit}},
    )


def shown_config(config: GenerateConfig) -> dict[str, Any]:
    """The config for people: URLs in it (of a grammar, of a cluster) without credentials."""
    values: dict[str, Any] = _shown(config.model_dump(mode="json"))
    return values


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shown(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_shown(part) for part in value]
    return masked(value) if isinstance(value, str) and "://" in value else value


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


def _engine(config: EngineConfig, seed: int) -> EngineSettings:
    own = config.model_dump(exclude={"actors", "threads", "hang_seconds", "lora_mode", "adapter_slots"})
    return EngineSettings(seed=seed, lora=LoraSettings(config.lora_mode, config.adapter_slots), **own)


def _sentences(routing: RoutingSettings) -> SentenceSettings | None:
    if routing.granularity == "record":
        return None
    return SentenceSettings(**routing.model_dump(include=set(_OF_SENTENCES)))
