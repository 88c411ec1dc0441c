"""What the stages need, and whether a cluster has it."""

from dataclasses import replace
from typing import Any

import pytest

from conf import load_settings
from conf.schema import GenerateConfig
from pipeline.cluster import sizing
from pipeline.cluster.resources import Pools, StageResources
from pipeline.cluster.sizing import size_pools
from pipeline.errors import UserError
from pipeline.pools import pools_of
from tests.stages import tiny_pools

A100, T4 = {"accelerator_type:A100": 1.0}, {"accelerator_type:T4": 1.0}


def node(cpus: float = 8, gpus: float = 0, labels: dict[str, str] | None = None, **more: float) -> dict[str, Any]:
    return {"Resources": {"CPU": cpus, "GPU": gpus, "memory": 2.0**34, **more}, "Labels": labels or {}}


def generating(**resources: Any) -> Pools:
    return tiny_pools(generate=replace(StageResources(0.25), **resources))


@pytest.mark.parametrize(
    ("pools", "nodes", "said"),
    [
        (generating(gpus=1), [node()], "no node has what the generate stage needs: cpus 0.25, gpus 1"),
        (generating(accelerator="H100"), [node(**A100)], "accelerator H100 (cluster.stages.generate)"),
        (generating(labels={"zone": "a"}), [node(labels={"zone": "b"}), node()], "labels {'zone': 'a'}"),
        (generating(memory=2**40), [node()], "no node has what the generate stage needs"),
        (
            generating(cpus=4, min_actors=2, max_actors=2),
            [node(8)],
            "need 8.5 CPUs and the tasks between them 0.75 more",
        ),
        (
            generating(gpus=1, min_actors=3, max_actors=3),
            [node(gpus=2)],
            "only 2 of the 3 generating actors that must start fit the cluster; each needs cpus 0.25, gpus 1 (engine",
        ),
        (
            generating(gpus=1, accelerator="A100", min_actors=8, max_actors=8),
            [node(gpus=4, **A100), node(gpus=4, **T4)],
            "only 4 of the 8 generating actors",
        ),
        (generating(gpus=0.6, min_actors=3, max_actors=3), [node(gpus=2)], "only 2 of the 3 generating actors"),
        (generating(memory=2**33, min_actors=3, max_actors=3), [node()], "only 2 of the 3 generating actors"),
        (
            tiny_pools(route=StageResources(labels={"zone": "a"}, cpus=2, min_actors=5, max_actors=5)),
            [node(labels={"zone": "a"}), node()],
            "only 4 of the 5 routing actors that must start",
        ),
    ],
)
def test_what_no_node_has_is_refused_with_what_there_is(
    pools: Pools, nodes: list[dict[str, Any]], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizing, "alive_nodes", lambda: nodes)
    with pytest.raises(UserError) as caught:
        size_pools(pools)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pools", "nodes"),
    [
        (tiny_pools(), [node(2)]),
        (generating(gpus=0.5, min_actors=4, max_actors=4), [node(gpus=1), node(gpus=1)]),
        (generating(accelerator="A100", gpus=1), [node(), node(gpus=1, **A100)]),
        (generating(gpus=0.1, cpus=0.1, min_actors=10, max_actors=10), [node(gpus=1)]),
        (generating(labels={"zone": "in(a, b)", "spot": "!true"}), [node(labels={"zone": "b"})]),
    ],
)
def test_what_fits_the_nodes_passes(pools: Pools, nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "alive_nodes", lambda: nodes)
    size_pools(pools)


def composed(*overrides: str) -> Pools:
    return pools_of(load_settings("generate", ["engine=native", *overrides], GenerateConfig))


def test_pools_come_from_the_config() -> None:
    kuberay = composed(
        "cluster=kuberay", "cluster.stages.generate.accelerator=A100", "+cluster.stages.route.labels.a=b"
    )
    assert kuberay.generate == StageResources(4, 1, 16 * 2**30, "A100", {}, 1, 64)
    assert kuberay.route == StageResources(1, None, 0, None, {"ray.io/node-group": "!generators", "a": "b"}, 1, 0)
    assert kuberay.generate.ray_options == {
        "num_cpus": 4,
        "num_gpus": 1,
        "memory": 16 * 2**30,
        "accelerator_type": "A100",
    }
    exact = composed("engine.actors=3").generate
    assert (exact.min_actors, exact.max_actors) == (3, 3)


@pytest.mark.parametrize("word", ["cluster.stages.generate.tensor_parallel=2", "cluster.stages.generate.gpus=2"])
def test_one_model_on_several_gpus_is_refused(word: str) -> None:
    with pytest.raises(UserError, match="the native engine runs a model on one GPU"):
        composed(word)


def test_fewer_actors_at_most_than_at_least_are_refused() -> None:
    with pytest.raises(UserError, match="max_actors must not be less than min_actors"):
        composed("cluster.stages.generate.min_actors=3", "cluster.stages.generate.max_actors=2")


ROUTERS, GENERATORS = {"ray.io/node-group": "routers"}, {"ray.io/node-group": "generators"}
GROWS = ["cluster.stages.generate.min_actors=1", "cluster.stages.generate.max_actors=6"]


@pytest.mark.parametrize(
    ("words", "nodes", "routers"),
    [
        ([], [node(2)], 1),  # 0.75 CPUs beside the engine and a task of each other stage
        ([], [node(8)], 7),
        (["cluster.stages.route.max_actors=2"], [node(8)], 2),
        (["cluster.stages.route.min_actors=3"], [node(4)], 3),
        (["cluster.stages.route.cpus=2"], [node(8)], 3),
        (["cluster.stages.generate.cpus=4"], [node(4), node(8, gpus=2)], 3),
        (["+cluster.stages.route.labels.zone=a"], [node(8), node(8, labels={"zone": "a"})], 6),
        # An engine may start later, on a node where routing actors may be.
        (GROWS, [node(8)], 1),
        ([*GROWS, "+cluster.stages.route.labels.zone=a"], [node(8, labels={"zone": "a"})], 1),
        (["cluster=kuberay", *GROWS], [node(4, labels=ROUTERS)], 6),
        (["cluster=kuberay", *GROWS], [node(4, labels=ROUTERS), node(6, 1, labels=GENERATORS)], 6),
        (["cluster=kuberay", *GROWS], [node(6, 1, labels={"ray.io/node-group": "all"})], 1),
    ],
)
def test_routing_actors_leave_all_engines_their_cpus(
    words: list[str], nodes: list[dict[str, Any]], routers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizing, "alive_nodes", lambda: nodes)
    sized = size_pools(composed(*words), autoscaling=True, log=lambda line: None)
    assert sized.route.max_actors == routers


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_ray_data_takes_what_a_stage_asks_for() -> None:
    import ray

    [here] = ray.nodes()
    stage = StageResources(0.25, memory=2**20, labels={"ray.io/node-id": f"in({here['NodeID']}, other)"})
    size_pools(tiny_pools(read=stage))
    answered = ray.data.range(4).map_batches(lambda batch: batch, **stage.ray_options)
    assert answered.count() == 4


def test_no_more_engines_start_than_there_are_shards() -> None:
    pools = generating(min_actors=4, max_actors=8)
    for shards, actors in ((1, (1, 1)), (6, (4, 6)), (100, (4, 8))):
        generate = pools.for_shards(shards).generate
        assert (generate.min_actors, generate.max_actors) == actors
