"""How many generating actors a cluster gets, where they come to be, and how many threads each has there."""

import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conf import load_settings
from conf.schema import GenerateConfig
from pipeline.cluster import connect as connect_module
from pipeline.cluster import sizing
from pipeline.cluster.connect import LOCAL
from pipeline.cluster.resources import Pools, StageResources
from pipeline.cluster.sizing import size_pools, threads_here
from pipeline.errors import UserError
from pipeline.pools import pools_of
from tests.cluster.test_capacity import A100, T4, node
from tests.stages import tiny_pools

HEAD = {"Resources": {"memory": 2.0**32}, "Labels": {}}  # of `ray start --num-cpus=0`: Ray drops what there is none of


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets Ray have these nodes, and one that is dead."""

    def have(*nodes: dict[str, Any]) -> None:
        dead = {**node(64, 8), "Alive": False}
        monkeypatch.setattr(sizing.ray, "nodes", lambda: [dead, *({**one, "Alive": True} for one in nodes)])

    return have


def asked(*words: str) -> Pools:
    return pools_of(load_settings("generate", list(words), GenerateConfig))


def sized(*words: str) -> tuple[int, int, list[int]]:
    """Actors at least and at most, and the threads of one on each node that it fits."""
    pools = size_pools(asked(*words))
    fitting = [one for one in sizing.alive_nodes() if pools.generate.max_actors_on(one)]
    return pools.generate.min_actors, pools.generate.max_actors, [pools.threads_on(one) for one in fitting]


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "actors", "threads"),
    [([], 1, 8), (["engine.actors=3"], 3, 2), (["engine.threads=5"], 1, 5), (["engine.actors=8"], 8, 1)],
)
def test_one_machine_without_gpus(there: Callable[..., None], words: list[str], actors: int, threads: int) -> None:
    there(node(8))
    assert sized(*words) == (actors, actors, [threads])
    assert size_pools(asked(*words)).generate.cpus == 0.25


def test_a_pool_that_may_grow_has_the_threads_of_its_largest_size(there: Callable[..., None]) -> None:
    there(node(8))
    assert sized("cluster.stages.generate.min_actors=1", "cluster.stages.generate.max_actors=4") == (1, 4, [2])


@pytest.mark.parametrize(
    ("words", "actors", "threads"),
    [
        ([], 8, 8),
        (["engine.actors=8"], 8, 8),
        (["engine.actors=3"], 3, 8),
        (["engine.actors=9"], 9, 4),
        (["engine.actors=16"], 16, 4),
        (["cluster.stages.generate.cpus=7"], 8, 8),
    ],
)
def test_equal_nodes_without_gpus(there: Callable[..., None], words: list[str], actors: int, threads: int) -> None:
    there(HEAD, *[node(8)] * 8)
    assert sized(*words) == (actors, actors, [threads] * 8)


def test_by_default_actors_leave_cpus_to_routing_and_tasks(there: Callable[..., None]) -> None:
    there(*[node(4)] * 3)
    assert sized("cluster.stages.generate.cpus=4") == (2, 2, [4] * 3)
    there(node(4))
    with pytest.raises(UserError, match=r"need 4\.5 CPUs and the tasks between them 0\.75 more"):
        sized("cluster.stages.generate.cpus=4")


@pytest.mark.parametrize(
    ("sizes", "words", "actors", "threads"),
    [
        ([2, *[16] * 8], [], 9, [2, *[16] * 8]),
        ([2, *[16] * 8], ["engine.actors=10"], 10, [1, *[8] * 8]),
        ([2, *[16] * 8], ["engine.threads=4"], 9, [4] * 9),
        ([2, 16], ["cluster.stages.generate.cpus=6", "engine.actors=2"], 2, [8]),
        ([16, 15], ["engine.actors=1"], 1, [16, 15]),
    ],
)
def test_each_actor_has_the_threads_of_its_own_node(
    there: Callable[..., None], sizes: list[int], words: list[str], actors: int, threads: list[int]
) -> None:
    there(*map(node, sizes))
    assert sized(*words) == (actors, actors, threads)


@pytest.mark.long
def test_gpus_are_counted_on_nodes_that_fit(there: Callable[..., None]) -> None:
    there(HEAD, node(4), node(64, 4, **A100), node(32, 4, **T4))
    assert sized() == (8, 8, [16, 8])
    assert sized("cluster.stages.generate.accelerator=A100") == (4, 4, [16])
    assert sized("cluster.stages.generate.gpus=0.6") == (8, 8, [16, 8])
    assert sized("cluster.stages.generate.gpus=0.5") == (16, 16, [8, 4])
    assert size_pools(asked()).generate.gpus == 1
    # Those that do not fit a node's CPUs are not left idle without a word.
    with pytest.raises(UserError, match="8 generating actor"):
        sized("cluster.stages.generate.cpus=16")


def test_a_cluster_that_grows_says_what_it_waits_for(
    there: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    kuberay, said = asked("cluster=kuberay", "cluster.stages.generate.memory_gb=64"), list[str]()
    logged: list[str] = []
    routers, generators = node(4), node(6, 1)
    there(HEAD, routers, generators)
    monkeypatch.setattr(sizing, "log_event", lambda event, **values: logged.append(event))
    placed = size_pools(kuberay, True, said.append)
    assert (placed.generate.min_actors, placed.generate.max_actors) == (1, 64)
    [line] = said
    assert line.startswith("cluster: no node has what the generate stage needs: cpus 4.0, gpus 1.0, memory 68719476736")
    assert line.endswith("; waiting for nodes of the autoscaler")
    assert logged == ["waiting for nodes"]
    fits = replace(kuberay, generate=replace(kuberay.generate, memory=2**33))
    late = size_pools(fits, True, said.append)
    assert [late.threads_on(one) for one in (generators, node(32, 8, memory=2.0**40), node(20, 2))] == [6, 4, 10], (
        "as many as fit"
    )
    assert said == [line]
    with pytest.raises(UserError, match="no node has what the generate stage needs"):
        size_pools(kuberay)


@pytest.mark.parametrize("address", [None, "auto"])
def test_ray_is_told_the_command_without_its_credentials(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    utils, told = connect_module.ray._private.utils, list[str]()
    own = utils.get_entrypoint_name

    def init(**asked: Any) -> None:
        told.append(utils.get_entrypoint_name())
        raise ConnectionError("none here")

    words = ["python", "-m", "jobs.generate", "cluster=ray", "--input", "https://h/x?sig=a b", "bank.path=s3://k:p@b/c"]
    monkeypatch.setattr(sys, "orig_argv", words)
    monkeypatch.setattr(connect_module.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connect_module.ray, "init", init)
    with pytest.raises(UserError, match="cluster: no Ray at"):
        connect_module.connect(address, 1)
    assert told == ["python -m jobs.generate cluster=ray --input 'https://h/x?***' 'bank.path=s3://***@b/c'"]
    assert utils.get_entrypoint_name is own


def test_gpus_are_those_of_the_ray_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect_module.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(connect_module.ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 3.0})
    assert connect_module.count_gpus("auto", 0, print) == connect_module.count_gpus(None, 0, print) == 3


def test_without_ray_gpus_are_those_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect_module.ray, "is_initialized", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert connect_module.count_gpus(None, 0, print) == 0


def test_ray_takes_the_command_from_where_it_is_masked() -> None:
    worker = Path(connect_module.ray._private.worker.__file__).read_text()
    assert worker.count("entrypoint=ray._private.utils.get_entrypoint_name()") == worker.count("entrypoint=ray") == 1


@contextmanager
def three_nodes() -> Iterator[None]:
    """A head of two CPUs and two nodes of four, each with its own raylet."""
    import ray
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 * 2**20}
    head = {"num_cpus": 2, "include_dashboard": False, "_system_config": LOCAL, **small}
    started = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        started.add_node(num_cpus=4, **small)
    ray.init(address=started.address, logging_level=logging.ERROR, log_to_driver=False)
    yield
    ray.shutdown()
    started.shutdown()


def on_three_nodes() -> None:
    import ray
    from ray.data import DataContext

    class Where:
        def place(self, pools: Pools) -> tuple[str, int]:
            return str(ray.get_runtime_context().get_node_id()), threads_here(pools)

    def seen(actors: int) -> Counter[tuple[float, int]]:
        pools = tiny_pools(generate=StageResources(0.25, min_actors=actors, max_actors=actors), threads=0)
        pools = size_pools(pools)
        options = {**pools.generate.ray_options, "scheduling_strategy": DataContext.get_current().scheduling_strategy}
        started = [ray.remote(Where).options(**options).remote() for _ in range(pools.generate.min_actors)]
        placed = ray.get([actor.place.remote(pools) for actor in started])
        return Counter((cpus[place], threads) for place, threads in placed)

    with three_nodes():
        cpus = {one["NodeID"]: one["Resources"]["CPU"] for one in ray.nodes()}
        assert seen(0) == seen(3) == {(2, 2): 1, (4, 4): 2}
        assert seen(6) == {(2, 1): 2, (4, 2): 4}


@pytest.mark.ray
@pytest.mark.slow
def test_ray_puts_an_actor_on_each_node_that_was_counted() -> None:
    """In a process of its own: that of the tests has a Ray already."""
    words = [sys.executable, "-c", f"from {__name__} import on_three_nodes; on_three_nodes()"]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
