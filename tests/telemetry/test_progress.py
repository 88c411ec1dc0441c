"""Progress: what the listener hears, rates and the timeline."""

import time
from unittest import mock

import pytest

from pipeline.storage.commit.counts import Counts
from pipeline.telemetry.progress import JobProgress, Snapshot


@pytest.fixture
def clock() -> mock.Mock:
    with mock.patch.object(time, "monotonic") as monotonic:
        monotonic.return_value = 100.0
        yield monotonic


def test_rates_are_those_of_the_last_minute_of_this_command(clock: mock.Mock) -> None:
    heard: list[Snapshot] = []
    progress = JobProgress(heard.append)
    progress.start(1000, 2, Counts(data=100, completion_tokens=900))
    assert heard[-1].records_per_second is None
    assert heard[-1].eta is None
    for step in range(1, 20):
        clock.return_value = 100.0 + 10 * step
        # Ten records a ten seconds for a while, then a hundred.
        done = 100 + 10 * min(step, 10) + 100 * max(0, step - 10) // 2
        progress.update(Counts(data=done, completion_tokens=9 * done))
    last = heard[-1]
    assert (last.done_before, last.done) == (100, 650)
    assert last.records_per_second == pytest.approx(5.0)
    assert last.tokens_per_second == pytest.approx(45.0)
    assert last.eta == pytest.approx(70.0)
    assert last.seconds == 190


def test_a_look_that_finds_nothing_new_slows_the_rate_and_adds_no_point(clock: mock.Mock) -> None:
    heard: list[Snapshot] = []
    progress = JobProgress(heard.append)
    progress.start(10, 1, Counts())
    progress.set_stage("routing")
    progress.set_windows_left(0)
    assert (heard[-1].stage, heard[-1].windows_done, heard[-1].windows) == ("routing", 1, 1)
    clock.return_value = 110.0
    progress.update(Counts(data=5))
    points = list(progress.timeline)
    clock.return_value = 120.0
    progress.update(Counts(data=5))
    assert [s.records_per_second for s in heard[-2:]] == [0.5, 0.25]
    assert progress.timeline == points
    progress.update(Counts(data=10), "committed")
    assert (heard[-1].stage, heard[-1].eta) == ("committed", 0)


def test_the_timeline_stays_bounded_and_keeps_both_ends(clock: mock.Mock) -> None:
    progress = JobProgress()
    progress.start(10**6, 1, Counts())
    for done in range(1, 5000):
        progress.update(Counts(data=done, dead=1, completion_tokens=2 * done))
        assert len(progress.timeline) <= 401
    assert progress.timeline[0].records == 0
    assert progress.timeline[-1].records == 4999
    records = [point.records for point in progress.timeline]
    assert records == sorted(set(records))
