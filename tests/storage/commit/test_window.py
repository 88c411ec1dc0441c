import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.orphans import remove_orphans, sweep_finished_windows
from pipeline.storage.commit.window import finish_window
from pipeline.storage.store.objects import list_names
from tests import examples
from tests.storage import memory_url
from tests.storage.commit.committing import WINDOW, KilledError, crash_at, tally_of, visible_rows, write_shard

ROWS = 10
row_sets = st.lists(st.integers(0, ROWS - 1), unique=True, min_size=1)
crashes = st.none() | st.integers(0, 10)


class WindowMachine(RuleBasedStateMachine):
    """Drivers and writers of one window that are killed and tried again, late ones among them, and readers."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MarkerStore(memory_url())
        self.tasks: dict[str, list[int]] = {}  # the rows of every write task that was ever started
        self.attempt = 0
        self.finished = False
        self.opened: dict[str, list[str]] = {"data": [], "dead": []}  # files of readers that are still open

    @initialize(rows=row_sets)
    def first_task(self, rows: list[int]) -> None:
        self._write(f"{self.attempt:03d}-000000", rows, None)

    @rule(rows=row_sets, crash=crashes, late=st.booleans())
    def write(self, rows: list[int], crash: int | None, late: bool) -> None:
        """A task of this driver, or of one that was killed, with any rows: answered before, or not."""
        attempt = 0 if late else self.attempt
        task = sum(name.startswith(f"{attempt:03d}") for name in self.tasks)
        self._write(f"{attempt:03d}-{task:06d}", rows, crash)

    @rule(data=st.data(), crash=crashes)
    def retry(self, data: st.DataObject, crash: int | None) -> None:
        name = data.draw(st.sampled_from(sorted(self.tasks)))
        self._write(name, self.tasks[name], crash)

    @rule()
    def new_driver(self) -> None:
        self.attempt += 1
        self.store = MarkerStore(self.store.url)

    @precondition(lambda self: not self.finished)
    @rule(crash=crashes, join=st.sampled_from([0, 1, 10_000, 1_000_000]), is_read=st.booleans())
    def finish(self, crash: int | None, join: int, is_read: bool) -> None:
        """Answer the rows that are missing in this driver's tasks, then close the window, as the job does."""
        answered = {row for shard in self.store.shards(WINDOW) for row in shard.rows.tolist()}
        missing = sorted(set(range(ROWS)) - answered)
        if missing:
            task = sum(name.startswith(f"{self.attempt:03d}") for name in self.tasks)
            self._write(f"{self.attempt:03d}-{task:06d}", missing, None)
        if is_read:
            self.open_reader()
        try:
            with crash_at(crash):
                finish_window(self.store, WINDOW, ROWS, join)
        except KilledError:
            self.finished = WINDOW in self.store.finished_markers()
            return
        self.finished = True

    @rule()
    def read(self) -> None:
        self.open_reader()

    def open_reader(self) -> None:
        """A reader lists the files now, and reads them at any time until the job ends."""
        for kind, files in self.opened.items():
            files.extend(self.store.committed_files(kind))

    @precondition(lambda self: self.finished)
    @rule(crash=crashes)
    def end(self, crash: int | None) -> None:
        """The end of the job: files go, as the readers of a finished window look for others then."""
        self.opened = {"data": [], "dead": []}
        try:
            with crash_at(crash):
                if sweep_finished_windows(self.store):
                    self._only_named_files_are_left()
                remove_orphans(self.store)
        except KilledError:
            return
        self._only_named_files_are_left()

    def _only_named_files_are_left(self) -> None:
        for kind in ("data", "dead"):
            named = sorted(path.rsplit("/", 1)[1] for path in self.store.committed_files(kind))
            assert list_names(self.store.fs, f"{self.store.root}/{kind}") == named
        assert list_names(self.store.fs, f"{self.store.root}/_commits") == [f"window-{WINDOW:06d}.json"]

    @invariant()
    def no_row_is_seen_twice(self) -> None:
        rows = visible_rows(self.store)
        assert len(rows) == len(set(rows))

    @invariant()
    def a_file_that_a_reader_opened_stays(self) -> None:
        assert [path for files in self.opened.values() for path in files if not self.store.fs.exists(path)] == []

    @invariant()
    def a_finished_window_has_every_row_once_and_counts_it(self) -> None:
        if self.finished:
            assert visible_rows(self.store) == list(range(ROWS))
            assert self.store.newest_marker(WINDOW)[1].counts == tally_of(list(range(ROWS)))

    def _write(self, name: str, rows: list[int], crash: int | None) -> None:
        self.tasks[name] = rows
        try:
            with crash_at(crash):
                write_shard(self.store, name, rows)
        except KilledError:
            return


WindowMachine.TestCase.settings = settings(max_examples=examples(30), stateful_step_count=15)


TestWindow = pytest.mark.long(WindowMachine.TestCase)
