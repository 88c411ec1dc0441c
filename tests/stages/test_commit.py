"""The commit stage: names of the output's columns, and what its tasks load."""

import subprocess
import sys

import pyarrow as pa
import pytest

from pipeline.records import COMPLETED, DATA, PROVENANCE, ROUTED, DeadLetter, Record
from pipeline.stages.output_schema import OutputSchema, dead_letters
from pipeline.stages.tables import with_columns, with_dead_letters
from pipeline.storage.input.read import staged_table


@pytest.mark.long
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


def test_a_dead_letter_is_the_same_from_a_record_and_from_its_row_between_the_stages() -> None:
    passed = pa.schema([("number", pa.int64()), ("stage", pa.string())])
    record = Record(3, "a", "asked", {"number": 1}, dead=DeadLetter("route", "PromptTooLong", "300 tokens"))
    table = OutputSchema(passed, False, "r", "b").dead_table(staged_table([record], passed), 100)
    assert table.equals(dead_letters([record], 100))
    [row] = table.to_pylist()
    assert row.pop("record") == '{"id":"a","number":1,"prompt":"asked"}'
    assert row == {"id": "a", "stage": "route", "error_type": "PromptTooLong", "message": "300 tokens", "row": 103}


def test_a_letter_of_a_later_stage_goes_into_its_row_alone() -> None:
    first = DeadLetter("read", "EmptyLine", "the line is empty")
    table = staged_table([Record(0, "a", dead=first), Record(1, "b", "x"), Record(2, "c", "y")], pa.schema([]))
    later = DeadLetter("generate", "OutOfMemoryError", "CUDA out of memory")
    marked = with_dead_letters(table, {2: later})
    assert marked.schema == table.schema
    assert [row and DeadLetter(**row) for row in marked["dead"].to_pylist()] == [first, None, later]
