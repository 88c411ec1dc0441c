"""A stage over a Ray Dataset of somebody's own: lazily, and without the commit protocol."""

from typing import Any

from ray.data import ActorPoolStrategy

from .settings import Pools


def map_stage(dataset: Any, stage: type, arguments: tuple[Any, ...], pools: Pools, rows: int) -> Any:
    """A Ray Dataset with a callable class over its batches of so many rows, in the actors that ``pools`` says."""
    return dataset.map_batches(
        stage,
        fn_constructor_args=arguments,
        batch_format="pyarrow",
        batch_size=rows,
        num_cpus=pools.generate_cpus,
        num_gpus=pools.gpus or None,
        compute=ActorPoolStrategy(size=pools.generate_actors),
    )
