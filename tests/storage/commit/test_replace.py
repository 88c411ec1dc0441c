"""A retry of some of a window's dead letters leaves the others, and their counts, as they are."""

from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.replace import RetryFilter, replace_dead_letters, rows_to_retry
from pipeline.storage.commit.window import finish_window
from tests.storage import memory_url
from tests.storage.commit.committing import WINDOW
from tests.storage.commit.test_interleaving_retry import seen, write


def test_letters_of_other_errors_stay() -> None:
    store = MarkerStore(memory_url(), "today")
    write(store, "a", [0, 4], [1, 2, 3])
    write(store, "b", [], [5, 6])
    finish_window(store, WINDOW, 7)
    marker, files = store.newest_marker(WINDOW)
    retried = rows_to_retry(store, files, RetryFilter(errors=["Error1"]))
    assert retried.tolist() == [1, 3, 5]
    retry = store.with_session()
    write(retry, "c", [1, 5], [3])
    counts = replace_dead_letters(retry, WINDOW, marker, 0, retried).counts
    assert (sorted(seen(store, "data")), sorted(seen(store, "dead"))) == ([0, 1, 4, 5], [2, 3, 6])
    assert (counts.data, counts.dead, counts.errors) == (4, 3, {"Error0": 2, "Error1": 1})
