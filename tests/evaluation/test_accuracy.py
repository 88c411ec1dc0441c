"""Exact match."""

from pipeline.evaluation import accuracy_by_group, normalised


def test_case_spaces_and_punctuation_at_the_ends_do_not_count() -> None:
    assert normalised("  The  Hobbit.\n") == normalised("the hobbit")
    assert normalised("U.S.") != normalised("US")


def test_accuracy_is_counted_by_group() -> None:
    rows = [("a", "Yes.", "yes"), ("a", "no", "yes"), ("b", "Yes, it is", "yes"), ("b", "", "yes"), ("b", "YES", "Yes")]
    found = accuracy_by_group(rows)
    assert {group: (a.records, a.right, round(a.accuracy, 3)) for group, a in found.items()} == {
        "a": (2, 1, 0.5),
        "b": (3, 1, 0.333),
    }
