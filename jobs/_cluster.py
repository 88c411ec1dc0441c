"""Ray as the config asks for it, for every command that runs a job."""

from collections.abc import Callable

from conf.schema import GenerateConfig
from jobs._settings import pools_of
from pipeline.stages.cluster import connect, size_pools
from pipeline.stages.settings import Pools


def start_pools(config: GenerateConfig, say: Callable[[str], None] = print) -> Pools:
    """Connect to Ray or start it; what the stages may take of it.

    ``say``: told where its dashboard is, and what is waited for. `UserError` where there is no Ray, or a stage asks for
    what no node has.
    """
    dashboard = connect(config.cluster.address, config.cluster.cpus)
    if dashboard:
        say(f"dashboard  {dashboard}")
    return size_pools(pools_of(config), config.cluster.autoscaling, say)
