"""How many generating actors a cluster gets, and how many threads each of them computes with.

Ray Data asks for its actors to be spread (`DataContext.scheduling_strategy`): Ray gives one to each node that has room,
then a second one. What an actor asks for decides where there is room, not what it computes with: without a GPU it asks
for a fraction of a CPU, so that the other stages find some, and then uses all that its node has for each actor.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from pipeline.cluster.resources import StageResources

from .capacity import SHUFFLE_CPUS, Node, cpus_of, gpu_places, places
from .resources import Pools

_MORE = 0.01  # CPUs; Ray counts them to four digits


def place(pools: Pools, nodes: Sequence[Node]) -> Pools:
    """Fill in what depends on the ``nodes``: GPUs of a generating actor, how many actors there are, threads of each.

    One actor a GPU, else one for each node that has room for it, and as many threads as each has CPUs of its node. On
    nodes of different sizes these are the threads of the smallest node that may get one, as all actors have the same.
    """
    share = pools.generate
    if share.gpus is None:
        share = replace(share, gpus=1 if any(node["Resources"].get("GPU") for node in nodes) else 0)
    if not share.gpus and not pools.threads:
        share = _not_on_small_nodes(share, pools, nodes)
    least = share.actors or _as_many_as_fit(share, pools, nodes)
    share = replace(share, actors=least, max_actors=max(least, share.max_actors))
    return replace(pools, generate=share, threads=pools.threads or _threads(share, nodes))


def _as_many_as_fit(share: StageResources, pools: Pools, nodes: Sequence[Node]) -> int:
    """GPUs are all used: where CPUs or memory are too few for that, `room.check_room` says so."""
    fitting = [node for node in nodes if places(share, node)]
    if share.gpus:
        return max(1, sum(gpu_places(share.gpus, node) for node in fitting))
    free = sum(map(cpus_of, nodes)) - _others(pools)
    return max(1, min(len(fitting), int(free / share.cpus)))


def _threads(share: StageResources, nodes: Sequence[Node]) -> int:
    """CPUs of a node for each actor that comes to be on it; where none has room yet, those that an actor asks for."""
    room = [(cpus_of(node), number) for node in nodes if (number := places(share, node))]
    if not room:
        return max(1, int(share.cpus))
    actors = min(share.max_actors, sum(number for _, number in room))
    rounds = next(r for r in count(1) if sum(min(number, r) for _, number in room) >= actors)
    return max(1, min(int(cpus / min(number, rounds)) for cpus, number in room))


def _not_on_small_nodes(share: StageResources, pools: Pools, nodes: Sequence[Node]) -> StageResources:
    """Ask for more CPUs than small nodes have, where all actors together then get more threads.

    A head of two CPUs beside eight nodes of 16 would leave each of nine actors two threads. Small is at most half of
    the next node: so an actor asks for little more than half of its own, which leaves room to the other stages.
    """
    sizes = sorted(cpus_of(node) for node in nodes if places(share, node))
    actors = max(share.actors, share.max_actors)
    starts = [n for n, size in enumerate(sizes) if n == 0 or size >= 2 * sizes[n - 1]]
    left_out = max(
        (n for n in starts if len(sizes) - n >= actors),
        key=lambda n: int(sizes[n]) * (actors or len(sizes) - n),
        default=0,
    )
    if not left_out:
        return share
    asked = sizes[left_out - 1] + _MORE
    free = max(cpus_of(node) - (asked if cpus_of(node) >= asked else 0) for node in nodes)
    return replace(share, cpus=asked) if free >= _others(pools) else share


def _others(pools: Pools) -> float:
    """CPUs that stand still where they are not found: of the routing actors and of a task of the shuffle."""
    return pools.route.cpus * pools.route.actors + SHUFFLE_CPUS
