"""The commit stage: names of the output's columns, and what its tasks load."""

import subprocess
import sys

import pyarrow as pa

from pipeline.records import COMPLETED, DATA, PROVENANCE, ROUTED, Record
from pipeline.stages.output_schema import OutputSchema
from pipeline.stages.tables import with_columns
from pipeline.storage.input.read import staged_table


def test_read_shuffle_and_write_tasks_load_no_torch() -> None:
    code = (
        "import sys, pipeline.stages.read, pipeline.stages.shuffle, pipeline.stages.commit;"
        "print({'torch', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n", "their processes would take seconds of CPU to start"


def names(*passed: str) -> list[str]:
    schema = pa.schema([(name, pa.string()) for name in passed])
    return [n for n in OutputSchema(schema, False, "r", "b").data.names if n not in {*DATA.names, *PROVENANCE.names}]


def test_passed_through_columns_keep_their_names_and_order() -> None:
    assert names("b", "a", "prompt") == ["b", "a", "prompt"]


def test_a_passed_through_prompt_column_is_not_overwritten_by_the_prompt() -> None:
    passed = pa.schema([("prompt", pa.string())])
    table = staged_table([Record(0, "a", "asked", {"prompt": "passed"})], passed)
    table = with_columns(
        table, ROUTED, {"tokens": [[1]], "mixture": ["base"], "route_score": [0.5], "fallback": [False]}
    )
    done = {"output": ["o"], "finish_reason": ["stop"], "prompt_tokens": [1], "completion_tokens": [1]}
    table = with_columns(table, COMPLETED, done)
    assert OutputSchema(passed, False, "r", "b").data_table(table)["prompt"].to_pylist() == ["passed"]
    both = OutputSchema(passed, True, "r", "b").data_table(table)
    assert (both["prompt"].to_pylist(), both["input_prompt"].to_pylist()) == (["asked"], ["passed"])


def test_a_name_that_the_output_uses_gets_another_that_nobody_has() -> None:
    assert names("output", "input_output", "id") == ["input_input_output", "input_output", "input_id"]
