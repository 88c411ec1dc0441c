"""Passes over the rows of a job, with a stream of this process that loses some of them. Without Ray."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from pipeline.cluster.resources import Pools, StageResources
from pipeline.job import passes as passes_module
from pipeline.job import preflight as prepare_module
from pipeline.job.error_budget import ErrorBudget
from pipeline.job.finish import _finish
from pipeline.job.generate import GenerateJob
from pipeline.job.passes import Passes, without_answer
from pipeline.job.preflight import ModelChecks
from pipeline.job.session import Session
from pipeline.job.stop import SIGTERM, StopKind, StoppedError, StopReason, StopSwitch
from pipeline.settings import JobSettings
from pipeline.stages.commit import Committed
from pipeline.stages.dataset import Stream
from pipeline.stages.read import Missing
from pipeline.storage.commit.counts import Counts, count_rows
from pipeline.storage.commit.lease import Lease
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import Shard
from pipeline.storage.commit.window import commit_shard
from pipeline.storage.input.plan import InputPlan
from pipeline.storage.store.objects import read
from pipeline.telemetry.incident_actor import START, Incident
from pipeline.telemetry.incidents import Incidents
from pipeline.telemetry.progress import JobProgress
from tests.stages import default_job, tiny_pools
from tests.storage import memory_url
from tests.storage.commit.committing import data_table, dead_table, visible
from tests.telemetry import local_incidents

ROWS, WINDOW_ROWS, SHARD = 250, 100, 50
PARTS = {"model": "m", "bank": "b", "router": "r", "tokenizer": "t"}
LOST = ActorUnavailableError("the cluster is gone", None)

# A pass: its rows, the most of a shard, and whether an engine has one shard at a time.
Pass = tuple[int, int, bool]


@dataclass
class FakeStream:
    """Commits shards of the rows, and loses those with a row that kills; rows are given by their number in the input.

    ``kills`` is asked with the pass, from 1, and the row. ``before``: called before each shard with its first row.
    """

    plan: InputPlan
    markers: MarkerStore
    incidents: Incidents = field(default_factory=Incidents)
    pools: Pools = field(default_factory=tiny_pools)
    kills: Callable[[int, int], bool] = lambda number, row: False
    dead: Sequence[int] = ()
    before: Callable[[int, int], None] = lambda number, row: None
    refusal: str = ""
    passes: list[Pass] = field(default_factory=list)
    closed: int = 0

    def run(self, missing: Missing, shard_records: int, alone: bool = False) -> Iterator[Committed]:
        wanted = {w: np.arange(self.plan.window_size(w)) if rows is None else rows for w, rows in missing.items()}
        self.passes.append((sum(map(len, wanted.values())), shard_records, alone))
        number = len(self.passes)
        try:
            for window, rows in wanted.items():
                for start in range(0, len(rows), shard_records):
                    part = rows[start : start + shard_records]
                    of_input = (part + window * WINDOW_ROWS).tolist()
                    self.before(number, of_input[0])
                    if self.refusal:
                        yield Committed(window, Counts(), self.refusal)
                    elif not any(self.kills(number, row) for row in of_input):
                        yield Committed(window, self._commit(window, part, f"{number}-{start:04d}"), "")
        finally:
            self.closed += 1

    def _commit(self, window: int, rows: np.ndarray, name: str) -> Counts:
        is_dead = np.isin(rows + window * WINDOW_ROWS, self.dead)
        data = data_table((rows + window * WINDOW_ROWS)[~is_dead].tolist())
        letters = dead_table((rows + window * WINDOW_ROWS)[is_dead].tolist())
        places = rows[~is_dead], rows[is_dead]
        shard = Shard(f"{self.markers.shard_prefix(window)}{name}", None, None, *places, count_rows(data, letters))
        return commit_shard(self.markers, shard, data, letters).counts


class Ends:
    """Finishes windows at once, in this process."""

    def __init__(self, markers: MarkerStore, plan: InputPlan) -> None:
        self.markers, self.plan = markers, plan
        self.ended: set[int] = set()
        self.started: list[int] = []

    def start(self, window: int) -> None:
        self.started.append(window)
        if _finish(self.markers, window, self.plan.window_size(window), 0) is not None:
            self.ended.add(window)

    def wait(self) -> None:
        pass


@dataclass
class Job:
    """The passes of a job, and what they work on."""

    session: Session
    stream: FakeStream
    ends: Ends
    log: list[str]
    budget: ErrorBudget = field(default_factory=lambda: ErrorBudget(1.0, None, ROWS))
    before: Counts = field(default_factory=Counts)

    def run(self, missing: Missing | None = None) -> int:
        everything: Missing = dict.fromkeys(range(self.stream.plan.windows))
        self.passes = Passes(self.session, cast(Stream, self.stream), self.ends, self.budget, self.before)
        return self.passes.run(everything if missing is None else missing)

    def stopped(self) -> StopReason:
        with pytest.raises(StoppedError) as caught:
            self.run()
        return caught.value.reason

    def answered(self) -> list[int]:
        return sorted(map(int, visible(self.stream.markers, "data")))

    def letters(self) -> list[tuple[Any, str]]:
        """Rows and error types of the dead letters."""
        store = self.stream.markers
        found = zip(visible(store, "dead", "row"), visible(store, "dead", "error_type"), strict=True)
        return sorted(found)


def make_job(settings: JobSettings) -> Job:
    prepared, log = GenerateJob(settings).prepare(new_run=True), list[str]()
    markers = MarkerStore(settings.output, "today")
    lease = Lease(settings.output, lambda: None)
    folder = GenerateJob(settings).folder
    session = Session(
        settings, prepared, folder, markers, None, lease, StopSwitch(), JobProgress(), log.append, pools=tiny_pools()
    )
    return Job(session, FakeStream(prepared.plan, markers), Ends(markers, prepared.plan), log)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobSettings:
    """Of a job whose parts are taken for good, with three windows."""
    monkeypatch.setattr(prepare_module, "check_models", lambda settings: ModelChecks(1000, PARTS, [], settings.routing))
    (tmp_path / "in.jsonl").write_text("".join(f'{{"id": "{i}", "prompt": "red{i}"}}\n' for i in range(ROWS)))
    changes: dict[str, Any] = {"window_records": WINDOW_ROWS, "shard_records": SHARD, "error_budget": 0.0}
    return default_job(str(tmp_path / "in.jsonl"), memory_url(), **changes)


@pytest.fixture
def job(settings: JobSettings) -> Job:
    return make_job(settings)


def test_what_is_answered_at_once_takes_one_pass(job: Job) -> None:
    assert job.run() == 0
    assert job.stream.passes == [(ROWS, SHARD, False)]
    assert job.answered() == list(range(ROWS))
    assert (job.letters(), job.ends.ended, job.ends.started) == ([], {0, 1, 2}, [0, 1, 2])
    assert (job.passes.counts.data, job.stream.closed, job.log) == (ROWS, 1, [])


def test_nothing_to_do_is_no_pass(job: Job) -> None:
    assert job.run({}) == job.run({1: np.empty(0, np.int64)}) == 0
    assert job.stream.passes == []


def test_rows_that_have_an_answer_are_not_run_again(job: Job) -> None:
    done = job.stream._commit(1, np.arange(30, 100), "0-0000")
    job.before = done
    left = without_answer(job.stream.markers, job.stream.plan, 1, None)
    assert left.tolist() == list(range(30))
    assert job.run({0: None, 1: left}) == 0
    assert job.stream.passes == [(130, SHARD, False)]
    assert (job.ends.ended, job.passes.counts.data) == ({0, 1}, 200)
    assert job.answered() == list(range(200))


def test_records_that_kill_their_actor_are_found_and_become_dead_letters(job: Job) -> None:
    killers = {7, 130, 249}
    job.stream.kills = lambda number, row: row in killers
    assert job.run() == 0
    assert job.stream.passes == [(ROWS, 50, False), (150, 20, False), (50, 1, True)]
    assert job.letters() == [(row, "NoAnswer") for row in sorted(killers)]
    assert job.answered() == [row for row in range(ROWS) if row not in killers]
    assert (job.ends.ended, job.ends.started) == ({0, 1, 2}, [0, 1, 2]), "each once, with its last row"
    assert (job.passes.counts.data, job.passes.counts.dead) == (ROWS - 3, 3)
    assert job.passes.counts.errors == {"NoAnswer": 3}
    assert job.log == [
        "150 of 250 records without an answer after a pass in shards of 50",
        "50 of 150 records without an answer after a pass in shards of 20",
        "3 of 50 records without an answer after a pass in shards of 1",
    ]


def test_an_actor_that_died_for_another_reason_costs_one_more_pass(job: Job) -> None:
    job.stream.kills = lambda number, row: (number, row) == (1, 7)
    assert job.run() == 0
    assert job.stream.passes == [(ROWS, 50, False), (50, 20, False)]
    assert (job.answered(), job.letters(), job.ends.ended) == (list(range(ROWS)), [], {0, 1, 2})


@pytest.mark.long
@pytest.mark.parametrize(("budget", "killers", "left"), [(0.0, 32, 0), (0.0, 33, 33), (0.2, 50, 0), (0.2, 51, 51)])
def test_more_rows_than_the_limit_are_no_dead_letters(
    settings: JobSettings, budget: float, killers: int, left: int
) -> None:
    job = make_job(replace(settings, error_budget=budget, shard_records=1))
    job.stream.kills = lambda number, row: row >= ROWS - killers
    assert job.run() == left
    passes = [(ROWS, 1, False)] + ([] if left else [(killers, 1, True)])
    assert job.stream.passes == passes, "a second pass with shards of the same size would change nothing"
    assert len(job.letters()) == (0 if left else killers)
    assert 0 in job.ends.ended
    assert (2 in job.ends.ended) == (not left)


def test_more_rows_that_fail_alone_than_the_limit_are_no_dead_letters(job: Job) -> None:
    job.stream.kills = lambda number, row: row < 33
    assert job.run() == 33
    assert job.stream.passes == [(ROWS, 50, False), (50, 20, False), (40, 1, True)]
    assert (job.letters(), job.ends.ended) == ([], {1, 2})


def test_a_job_in_which_nothing_is_answered_blames_no_record(job: Job) -> None:
    job.stream.kills = lambda number, row: True
    few = {0: np.arange(5), 2: np.array([49])}
    assert job.run(few) == 6
    assert job.stream.passes == [(6, 50, False), (6, 20, False), (6, 1, True)]
    assert (job.letters(), job.ends.ended) == ([], set())


def test_the_only_record_may_be_at_fault(job: Job) -> None:
    job.stream.kills = lambda number, row: True
    for window, size in ((0, 99), (1, 100), (2, 50)):
        job.stream._commit(window, np.arange(100 - size, size), "0-0000")
    assert job.run({0: np.array([99])}) == 0
    assert job.letters() == [(99, "NoAnswer")]


def lose(at: set[tuple[int, int]]) -> Callable[[int, int], None]:
    """Lose the cluster before the shards of these passes and rows."""

    def before(number: int, row: int) -> None:
        if (number, row) in at:
            raise LOST

    return before


def test_a_pass_that_lost_its_cluster_is_made_again_as_long_as_it_answers_rows(job: Job) -> None:
    job.stream.before = lose({(1, 100), (2, 150)})
    assert job.run() == 0
    assert job.stream.passes == [(250, 50, False), (150, 50, False), (100, 50, False)]
    assert job.log[0].startswith("the stream was lost: ActorUnavailableError: ")
    assert (job.answered(), job.letters(), job.stream.closed) == (list(range(ROWS)), [], 3)


def test_a_cluster_that_is_lost_before_each_first_answer_ends_the_job(job: Job) -> None:
    job.stream.before = lose({(number, 0) for number in range(1, 9)})
    assert job.run() == ROWS
    assert job.stream.passes == [(250, 50, False), (250, 20, False), (250, 1, True)]


def test_a_cluster_that_is_lost_while_records_run_alone_blames_none(job: Job) -> None:
    killers = {7, 130}
    job.stream.kills = lambda number, row: row in killers
    job.stream.before = lose({(3, 5), (4, 7), (5, 7)})
    assert job.run() == 33
    assert job.stream.passes[2:] == [(40, 1, True), (35, 1, True), (33, 1, True)]
    assert job.letters() == []


def test_actors_that_cannot_start_stop_the_job(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.stream.incidents = local_incidents(monkeypatch)
    job.stream.incidents._actor.counter.record(Incident("route", START, "OSError", "of an earlier pass"))

    def before(number: int, row: int) -> None:
        job.stream.incidents._actor.counter.record(Incident("generate", START, "OSError", "no GPU"))
        raise ActorDiedError

    job.stream.before = before
    reason = job.stopped()
    assert reason == StopReason(StopKind.START_FAILED, "generate actor could not start: OSError: no GPU")
    assert len(job.stream.passes) == 1


def test_what_the_store_refuses_stops_the_job_at_once(job: Job) -> None:
    job.stream.refusal = "OSError: No space left on device"
    assert job.stopped() == StopReason(StopKind.STORE, "commit: OSError: No space left on device")
    assert (len(job.stream.passes), job.stream.closed, job.ends.started) == (1, 1, [])


def test_a_job_over_its_budget_stops_as_soon_as_it_is(job: Job) -> None:
    job.budget, job.stream.dead = ErrorBudget(0.0, None, ROWS), [60]
    reason = job.stopped()
    assert reason.kind is StopKind.BUDGET
    assert reason.message.startswith("1 dead letters, over errors.budget=0 of 250 records: 1 Error")
    assert job.answered() == [row for row in range(100) if row != 60]
    assert job.stream.closed == 1


def test_records_that_kill_count_for_the_budget(job: Job) -> None:
    job.budget = ErrorBudget(1.0, 0, ROWS)
    job.stream.kills = lambda number, row: row == 7
    assert job.stopped() == StopReason(StopKind.BUDGET, "1 dead letters, over errors.max=0: 1 NoAnswer")
    assert job.letters() == [(7, "NoAnswer")], "it is kept for a run with a larger budget"


def test_a_job_that_was_over_its_budget_does_nothing(job: Job) -> None:
    job.before, job.budget = Counts(dead=4), ErrorBudget(1.0, 3, ROWS)
    assert job.stopped().kind is StopKind.BUDGET
    assert job.stream.passes == []


@pytest.mark.parametrize("number", [1, 3])
def test_rows_of_a_file_that_changed_are_not_at_fault(job: Job, number: int) -> None:
    path = Path(job.session.settings.input)

    def before(current: int, row: int) -> None:
        if current == number:
            path.write_text(path.read_text() + "\n")

    job.stream.kills, job.stream.before = lambda number, row: row == 7, before
    reason = job.stopped()
    assert reason.kind is StopKind.INPUT_CHANGED
    assert "changed or removed while it was read" in reason.message
    assert (len(job.stream.passes), job.letters()) == (number, [])


def test_a_stop_ends_the_stream_behind_the_shard_in_work(job: Job) -> None:
    def before(number: int, row: int) -> None:
        if row == 100:
            job.session.switch.reason = SIGTERM

    job.stream.before = before
    assert job.stopped() == SIGTERM
    assert (job.answered(), job.stream.closed) == (list(range(150)), 1)
    assert job.stopped() == SIGTERM
    assert len(job.stream.passes) == 1, "no further pass begins"


def test_rows_that_two_shards_hold_do_not_end_a_window_too_early(job: Job) -> None:
    job.stream._commit(0, np.arange(40, 60), "0-late")  # by a writer of a driver that died, after the start
    job.stream.kills = lambda number, row: (number, row) == (1, 3)
    assert job.run() == 0
    assert (job.answered(), job.ends.ended) == (list(range(ROWS)), {0, 1, 2})
    assert job.stream.passes == [(ROWS, 50, False), (40, 20, False)]


def test_a_dead_letter_holds_its_record(job: Job) -> None:
    job.stream.kills = lambda number, row: row == 130
    assert job.run() == 0
    store = job.stream.markers
    assert visible(store, "dead", "record") == ['{"id":"130","prompt":"red130"}']
    assert visible(store, "dead", "stage") == ["generate"]
    assert read(store.fs, store.path("_commits", "window-000001-today.json")) is not None


def test_a_node_that_is_gone_is_said(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes: list[dict[str, Any]] = [{"Resources": {"CPU": 4.0}}]
    monkeypatch.setattr(passes_module, "alive_nodes", lambda: nodes)
    job.stream.pools = tiny_pools(generate=StageResources(0.25, gpus=1.0))
    passes = Passes(job.session, cast(Stream, job.stream), job.ends, job.budget, Counts())
    passes._log_shortage()
    assert len(job.log) == 1
    assert job.log[0].startswith("nothing was committed for 300 s; cluster: no node has what the generate stage needs")
    nodes.append({"Resources": {"CPU": 4.0, "GPU": 1.0}})
    passes._log_shortage()
    assert len(job.log) == 1
