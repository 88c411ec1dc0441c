"""A stage over a Ray Dataset of somebody's own: lazily, and without the commit protocol."""

from typing import Any

from ray.data import ActorPoolStrategy

from pipeline.cluster.resources import StageResources


def map_stage(dataset: Any, stage: type, arguments: tuple[Any, ...], share: StageResources, rows: int) -> Any:
    """A Ray Dataset with a callable class over its batches of so many rows, in the actors that ``share`` says."""
    return dataset.map_batches(
        stage,
        fn_constructor_args=arguments,
        batch_format="pyarrow",
        batch_size=rows,
        compute=ActorPoolStrategy(min_size=share.actors, max_size=share.max_actors),
        **share.asked,
    )
