"""Columns of every type through a whole job."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks.pipeline.null import AnswersAtOnce
from pipeline.job.generate import GenerateJob
from pipeline.storage import read_run
from pipeline.storage.types.values import python_values
from tests import tiny
from tests.stages import tiny_job, tiny_pools
from tests.storage.types.samples import SAMPLES, in_list, in_map, in_struct

_PLACES = {"": lambda column: column, " in a list": in_list, " in a struct": in_struct, " in a map": in_map}
_FEW, _FILES = 1000, 4


def repeated(column: pa.Array, rows: int) -> pa.Array:
    """The values of a column, one after another, in a column of ``rows``."""
    return pa.concat_arrays([column] * (rows // len(column) + 1)).slice(0, rows)


def same(found: pa.Array, expected: pa.Array) -> bool:
    """Whether arrays are equal; NaN equals NaN."""
    return found.equals(expected) or (
        found.type == expected.type and repr(python_values(found)) == repr(python_values(expected))
    )


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("rows", [_FEW, pytest.param(100_000, marks=pytest.mark.slow)])
def test_values_of_every_type_come_out_of_a_job_as_they_went_in(
    rows: int, tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path
) -> None:
    settings = tiny_job(tmp_path, tiny_model, tiny_bank, tiny_router, shard_records=rows // 10)
    samples = {
        name + where: (repeated(place(sample.source), rows // _FILES), repeated(place(sample.stored), rows // _FILES))
        for name, sample in SAMPLES.items()
        if name != "run_end_encoded"  # Parquet does not know it
        for where, place in _PLACES.items()
        if not where or "view" not in name  # Arrow cannot write many nested views
    }
    prompts = pa.array([tiny.prompts_of(tiny.ADAPTERS[n % 8], 1, seed=n)[0] for n in range(1000)])
    sources = {name: source for name, (source, _) in samples.items()}
    Path(settings.input).mkdir()
    for start in range(0, rows, rows // _FILES):
        ids = pa.array(range(start, start + rows // _FILES))
        table = pa.table(sources | {"id": ids, "prompt": repeated(prompts, len(ids))})
        pq.write_table(table, f"{settings.input}/{start:06}.parquet", row_group_size=rows // 10)
    result = GenerateJob(settings, log=lambda line: None, generator=AnswersAtOnce).run(tiny_pools)
    assert (result.counts.data, result.counts.dead) == (rows, 0)
    data = read_run(settings.output).to_table()
    data = data.take(pc.sort_indices(pc.cast(data["id"], pa.int64())))
    expected = {name: pa.concat_arrays([stored] * _FILES) for name, (_, stored) in samples.items()}
    assert [name for name, array in expected.items() if not same(data[name].combine_chunks(), array)] == []
