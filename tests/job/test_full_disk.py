"""A job whose disk is full: it stops with the reason, blames no record, and goes on when there is room."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.job.generate import GenerateJob
from pipeline.job.result import JobResult
from pipeline.job.stop import StopKind, StoppedError
from pipeline.settings import JobSettings
from pipeline.storage import read_dead, read_run
from tests import tiny
from tests.stages import tiny_job, tiny_pools

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
FULL = "size=64k"  # room for the plan, run.json and the lease, and for a few of ten shards at 8 KiB each


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few pages."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", FULL, "tmpfs", folder], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def run(settings: JobSettings) -> JobResult:
    return GenerateJob(settings, lambda line: None).run(tiny_pools)


def test_a_full_disk_stops_the_job_and_nothing_is_lost_or_blamed(
    disk: Path, tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path
) -> None:
    changes = {"output": str(disk / "out"), "shard_records": 4}
    settings = tiny_job(tmp_path, tiny_model, tiny_bank, tiny_router, **changes)
    rows = [{"id": f"r{i}", "prompt": tiny.prompts_of(tiny.ADAPTERS[i % 8], 1, seed=i)[0]} for i in range(40)]
    Path(settings.input).mkdir()
    (Path(settings.input) / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(StoppedError, match="No space left on device") as caught:
        run(settings)
    assert caught.value.reason.kind is StopKind.STORE
    seen = read_run(settings.output).to_table()["id"].to_pylist()
    assert len(seen) == len(set(seen)) < 40
    assert read_dead(settings.output).count_rows() == 0
    subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
    result = run(settings)
    assert (result.ok, result.counts.data, result.counts.dead) == (True, 40, 0)
    assert sorted(read_run(settings.output).to_table()["id"].to_pylist()) == sorted(row["id"] for row in rows)
