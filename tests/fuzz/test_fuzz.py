"""The short form: some inputs of each target, in this process. `make fuzz` runs a million."""

import pytest

from tests import examples
from tests.fuzz.portion import HangError, Portion, content_of, run_portion
from tests.fuzz.targets import Target, targets

INPUTS = {"lines of jsonl": 2000, "records of csv": 1000, "adapter_config.json": 500, "adapter_model.safetensors": 500}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return {target.name: target for target in targets(tmp_path_factory.mktemp("fuzz"))}


def test_unchanged_files_are_taken(kinds: dict[str, Target]) -> None:
    for target in kinds.values():
        for content in target.seeds:
            target.run(content)


@pytest.mark.long
def test_mutated_files_are_taken_or_refused_with_one_line(kinds: dict[str, Target]) -> None:
    for name, target in kinds.items():
        result = run_portion(target, Portion(name, 0, 0, examples(INPUTS.get(name, 200))))
        assert result["failures"] == []


def test_an_input_has_a_number_by_which_it_is_found_again(kinds: dict[str, Target]) -> None:
    csv = kinds["csv"]
    assert content_of(csv, 3, 7) == content_of(csv, 3, 7)
    assert len({content_of(csv, 3, number) for number in range(100)}) > 90


def test_crashes_and_hangs_are_counted_with_their_numbers(kinds: dict[str, Target]) -> None:
    def wrong(content: bytes) -> None:
        raise HangError("x") if content[:1] == b"i" else KeyError("x")

    result = run_portion(Target("csv", 0, [b"id", b"no"], wrong), Portion("csv", 0, 0, 10))
    assert result["counts"] == {"failed": 10}
    assert [failure["number"] for failure in result["failures"]] == [*range(10)]  # type: ignore[index,attr-defined]
