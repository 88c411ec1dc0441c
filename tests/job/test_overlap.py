"""Stages of a job work at the same time, also on the fewest CPUs that it runs on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.job.generate import GenerateJob
from tests import tiny
from tests.job.overlapping import AnswersAtOnce, RoutesSlowly, routed_before, routed_tables
from tests.stages import tiny_job, tiny_pools

FILES, ROWS = 30, 16


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_engines_answer_the_first_block_while_later_ones_are_routed(
    tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path
) -> None:
    settings = replace(tiny_job(tmp_path, tiny_model, tiny_bank, tiny_router), block_records=4 * ROWS)
    (tmp_path / "in").mkdir()
    for number in range(FILES):
        prompts = tiny.prompts_of(tiny.ADAPTERS[number % 8], ROWS, seed=number)
        lines = [json.dumps({"id": f"{number}-{i}", "prompt": prompt}) for i, prompt in enumerate(prompts)]
        (tmp_path / "in" / f"{number:02}.jsonl").write_text("\n".join(lines))
    job = GenerateJob(settings, log=lambda line: None, generator=AnswersAtOnce, router=RoutesSlowly)
    assert job.run(tiny_pools).ok
    assert routed_tables(settings).stat().st_size == FILES
    assert int(routed_before(settings).read_text()) <= FILES // 2
