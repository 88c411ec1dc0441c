import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.storage.input.duplicates import DuplicateFinder
from tests import examples


def found(ids: list[str], memory_entries: int) -> list[tuple[int, int, int]]:
    finder = DuplicateFinder(memory_entries)
    for row, identity in enumerate(ids):
        finder.add(identity, row)
    return [(d["row"], d["first"], d["rank"]) for d in finder.find().to_pylist()]


def expected(ids: list[str]) -> list[tuple[int, int, int]]:
    rows: dict[str, list[int]] = {}
    result = []
    for row, identity in enumerate(ids):
        before = rows.setdefault(identity, [])
        if before:
            result.append((row, before[0], len(before)))
        before.append(row)
    return result


@pytest.mark.long
@settings(max_examples=examples(60))
@given(st.lists(st.integers(0, 12).map(str), max_size=40), st.integers(1, 50))
def test_repeats_are_found_with_their_first_row_and_rank_however_often_it_spills(ids: list[str], entries: int) -> None:
    assert found(ids, entries) == expected(ids)


@pytest.mark.parametrize("entries", [1, 2, 3, 1000])
def test_no_id_and_no_repeat_are_an_empty_table(entries: int) -> None:
    assert found([], entries) == []
    assert found(["a", "b", "c"], entries) == []


def test_ids_of_any_text_are_told_apart() -> None:
    ids = ["", " ", "a", "A", "\u00e9", "e\u0301", "a\0", "x" * 100_000]
    assert found(ids, 1000) == []
    assert found(ids + ids[::-1], 5) == expected(ids + ids[::-1])


@pytest.mark.parametrize("entries", [700, 10_000])
def test_an_id_that_comes_thousands_of_times_is_ranked_in_the_order_of_rows(entries: int) -> None:
    ids = [str(row % 3) for row in range(3000)]
    assert found(ids, entries) == expected(ids)
