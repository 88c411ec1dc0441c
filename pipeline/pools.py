"""Ray as the config asks for it, for every command that runs a job."""

from collections.abc import Callable
from dataclasses import replace

from conf.schema import GenerateConfig, StageSettings
from pipeline.cluster.resources import StageResources
from pipeline.errors import UserError

from .cluster.connect import connect, size_pools
from .cluster.resources import Pools


def start_pools(config: GenerateConfig, say: Callable[[str], None] = print) -> Pools:
    """Connect to Ray or start it; what the stages may take of it.

    ``say``: told where its dashboard is, and what is waited for. `UserError` where there is no Ray, or a stage asks for
    what no node has.
    """
    dashboard = connect(config.cluster.address, config.cluster.cpus)
    if dashboard:
        say(f"dashboard  {dashboard}")
    return size_pools(pools_of(config), config.cluster.autoscaling, say)


def pools_of(config: GenerateConfig) -> Pools:
    """What the stages ask of Ray, before the cluster is known; `UserError` for what no engine can do."""
    stages, count = config.cluster.stages, config.engine.actors
    generate = stages.generate
    parallel, gpus = generate.tensor_parallel, generate.gpus
    if config.engine.backend == "native" and (parallel > 1 or (gpus or 0) > 1):
        raise UserError(
            f"config: cluster.stages.generate: tensor_parallel={parallel}, gpus={gpus}: the"
            " native engine runs a model on one GPU; take a model that fits one, model.quantization=8bit or 4bit, or"
            " engine=vllm"
        )
    if config.engine.backend == "vllm" and config.engine.over_rank == "native" and (parallel > 1 or (gpus or 0) > 1):
        raise UserError(
            f"config: engine.over_rank=native with cluster.stages.generate.tensor_parallel={parallel}, gpus={gpus}: the"
            " native engine, which would answer, runs a model on one GPU; take engine.over_rank=refuse and a lower"
            " routing.max_adapters, or one GPU for each actor"
        )
    if parallel > 1 and gpus != parallel:
        raise UserError(
            f"config: cluster.stages.generate: tensor_parallel={parallel} needs as many GPUs for each actor:"
            f" cluster.stages.generate.gpus={parallel}"
        )
    least, most = (count, count) if count else (generate.actors, generate.max_actors or generate.actors)
    if most < least or stages.route.max_actors < stages.route.actors:
        raise UserError("config: cluster.stages: max_actors must not be less than actors")
    return Pools(
        read=_share(stages.read),
        route=replace(_share(stages.route), actors=stages.route.actors, max_actors=stages.route.max_actors),
        generate=replace(_share(generate), gpus=generate.gpus, actors=least, max_actors=most),
        write=_share(stages.write),
        threads=config.engine.threads,
    )


def _share(stage: StageSettings) -> StageResources:
    return StageResources(stage.cpus, None, int(stage.memory_gb * 2**30), stage.accelerator, dict(stage.labels))
