"""From the checked config of `jobs.generate` and `jobs.route` to the settings of the stages."""

import argparse
from dataclasses import fields

from conf import load_settings
from conf.schema import GenerateConfig, RoutingSettings
from pipeline.engine import LoraSettings, Sampling
from pipeline.engine.engine import EngineSettings
from pipeline.models import resolve_model
from pipeline.routing import RoutingPolicy, SentenceSettings
from pipeline.stages.settings import JobSettings, ModelRef, Pools
from pipeline.storage.columns import Columns
from pipeline.storage.files import masked

_OF_SENTENCES = tuple(f.name for f in fields(SentenceSettings))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that read records."""
    parser.add_argument("--input", required=True, help="file, folder or glob; any URL that fsspec knows")
    parser.add_argument("--output", required=True, help="folder or URL of the results")
    parser.add_argument("--seed", type=int, help="seed of sampling (config: seed)")
    parser.add_argument("overrides", nargs="*", help="config: group=option or key=value")


def read_settings(args: argparse.Namespace) -> tuple[GenerateConfig, JobSettings]:
    """The config and the stages' settings; `UserError` where the config is wrong."""
    seed = [] if args.seed is None else [f"seed={args.seed}"]
    config = load_settings("generate", [*args.overrides, *seed], GenerateConfig)
    return config, _job_settings(config, args.input, args.output)


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


def _job_settings(config: GenerateConfig, input_url: str, output_url: str) -> JobSettings:
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
        columns=Columns(columns.id_column, columns.prompt_column, columns.messages_column),
        long_prompts=columns.long_prompts,
        keep_prompt=config.output.prompt,
        sampling=Sampling(**config.generation.model_dump()),
        routing=RoutingPolicy(**config.routing.model_dump(exclude={"granularity", *_OF_SENTENCES})),
        sentences=_sentences(config.routing),
        engine=EngineSettings(
            config.engine.batch_size,
            config.engine.prefill_tokens,
            config.seed,
            LoraSettings(config.engine.lora_mode, config.engine.adapter_slots),
        ),
        error_budget=config.errors.budget,
        window_records=config.window.records,
        shard_records=config.shuffle.shard_records,
        config=config.model_dump(mode="json") | {"command": {"input": masked(input_url), "output": masked(output_url)}},
    )


def _sentences(routing: RoutingSettings) -> SentenceSettings | None:
    if routing.granularity == "record":
        return None
    return SentenceSettings(**routing.model_dump(include=set(_OF_SENTENCES)))
