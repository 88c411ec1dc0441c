"""Start Ray and size the actor pools as the config asks, for every command that runs a job."""

from collections.abc import Callable
from dataclasses import replace

from conf.schema import GenerateConfig, StageSettings

from .cluster.connect import connect
from .cluster.resources import Pools, StageResources
from .cluster.sizing import size_pools
from .engine.registry import check_features
from .errors import UserError
from .from_config import engine_settings


def start_pools(config: GenerateConfig, log: Callable[[str], None] = print) -> Pools:
    """Start Ray or connect to it, and size the pools to its nodes.

    ``log`` gets the dashboard's address and what the job waits for. Raises `UserError` if there is no Ray or a stage
    does not fit any node.
    """
    dashboard = connect(config.cluster.address, config.cluster.cpus)
    if dashboard:
        log(f"dashboard  {dashboard}")
    return size_pools(pools_of(config), config.cluster.autoscaling, log)


def pools_of(config: GenerateConfig) -> Pools:
    """Return the pools of a config, not sized to a cluster yet; raises `UserError` for what no engine supports."""
    stages = config.cluster.stages
    _check_devices(config)
    generate, route, actors = stages.generate, stages.route, config.engine.actors
    minimum, maximum = (actors, actors) if actors else (generate.min_actors, generate.max_actors or generate.min_actors)
    if maximum < minimum or 0 < route.max_actors < route.min_actors:
        raise UserError("config: cluster.stages: max_actors must not be less than min_actors")
    return Pools(
        read=_resources(stages.read),
        route=replace(_resources(route), min_actors=route.min_actors, max_actors=route.max_actors),
        generate=replace(_resources(generate), gpus=generate.gpus, min_actors=minimum, max_actors=maximum),
        write=_resources(stages.write),
        threads=config.engine.threads,
    )


def _check_devices(config: GenerateConfig) -> None:
    stage = config.cluster.stages.generate
    parallel, gpus = stage.tensor_parallel, stage.gpus
    if parallel > 1 or (gpus or 0) > 1:
        keys = f"cluster.stages.generate: tensor_parallel={parallel}, gpus={gpus}"
        check_features(engine_settings(config), {"several_gpus": keys})
    if parallel > 1 and gpus != parallel:
        raise UserError(
            f"config: cluster.stages.generate: tensor_parallel={parallel} needs as many GPUs for each actor:"
            f" cluster.stages.generate.gpus={parallel}"
        )


def _resources(stage: StageSettings) -> StageResources:
    return StageResources(stage.cpus, None, int(stage.memory_gb * 2**30), stage.accelerator, dict(stage.labels))
