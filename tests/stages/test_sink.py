"""Names of the output's columns."""

import pyarrow as pa

from pipeline.records import DATA, PROVENANCE
from pipeline.stages.sink import OutputShape


def names(*passed: str) -> list[str]:
    schema = pa.schema([(name, pa.string()) for name in passed])
    return [n for n in OutputShape(schema, False, "r", "b").schema.names if n not in {*DATA.names, *PROVENANCE.names}]


def test_passed_through_columns_keep_their_names_and_order() -> None:
    assert names("b", "a", "prompt") == ["b", "a", "prompt"]


def test_a_name_that_the_output_uses_gets_another_that_nobody_has() -> None:
    assert names("output", "input_output", "id") == ["input_input_output", "input_output", "input_id"]
