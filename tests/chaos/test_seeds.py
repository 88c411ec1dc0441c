"""A few of the seeded runs of `benchmarks.chaos`, in its short form: kills of any kind, every line counted."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chaos.cluster import Cluster
from benchmarks.chaos.runs import SHORT, Kit, Run
from benchmarks.chaos.stores import S3, Disk

pytestmark = [pytest.mark.ray, pytest.mark.chaos]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as started:
        yield started


# The kills of seed 1830 come early and without delay: an engine's, the driver's and the node's.
@pytest.mark.parametrize("seed", [1830, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3, 4, 15, 37))])
def test_every_line_comes_out_once_whatever_is_killed(
    seed: int, cluster: Cluster, tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path
) -> None:
    record = Run(seed, cluster, Kit(tiny_model, tiny_bank, tiny_router), tmp_path / "run", SHORT, Disk()).run()
    assert record["exact"], record
    # A job may be through before its later kills, which the machine decides. `benchmarks.chaos` repeats such runs.
    assert record["kills"], record


@pytest.mark.slow
@pytest.mark.s3
def test_every_line_comes_out_once_when_the_store_is_killed_too(
    tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path
) -> None:
    with S3() as store, Cluster() as cluster:
        record = Run(1, cluster, Kit(tiny_model, tiny_bank, tiny_router), tmp_path / "run", SHORT, store).run()
    assert "store" in {kill["kind"] for kill in record["kills"]}, record
    assert record["exact"], record
