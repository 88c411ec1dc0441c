"""A few of the seeded runs of `benchmarks.chaos`, in its short form: kills of any kind, every line counted."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chaos.cluster import Cluster
from benchmarks.chaos.kills import MIN_KILLS
from benchmarks.chaos.runs import SHORT, Kit, Run
from benchmarks.chaos.stores import S3, Disk

pytestmark = [pytest.mark.ray, pytest.mark.chaos]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as started:
        yield started


@pytest.mark.parametrize("seed", [15, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3, 4, 37))])
def test_every_line_comes_out_once_whatever_is_killed(
    seed: int, cluster: Cluster, tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path
) -> None:
    kit = Kit(tiny_model, tiny_bank, tiny_router)
    for haste in (1, 4, 16):  # where the job is through before the third kill, they come sooner
        record = Run(seed, cluster, kit, tmp_path / "run", SHORT, Disk(), haste).run()
        assert record["exact"], record
        if len(record["kills"]) >= MIN_KILLS:
            return
    raise AssertionError(f"not killed often enough: {record}")


@pytest.mark.slow
@pytest.mark.s3
def test_every_line_comes_out_once_when_the_store_is_killed_too(
    tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path
) -> None:
    with S3() as store, Cluster() as cluster:
        record = Run(1, cluster, Kit(tiny_model, tiny_bank, tiny_router), tmp_path / "run", SHORT, store).run()
    assert "store" in {kill["kind"] for kill in record["kills"]}, record
    assert record["exact"], record
