"""Incidents: what is recorded of an error, what is counted, and which incidents stop a job."""

from collections import Counter

import pytest

from pipeline.storage.store.objects import StoreError
from pipeline.telemetry.incident_actor import RUN, START, Incident, IncidentCounter
from pipeline.telemetry.incidents import Incidents
from tests.telemetry import local_incidents


class FullStoreError(StoreError):
    """A refusal of a kind of its own."""


@pytest.fixture
def incidents(monkeypatch: pytest.MonkeyPatch) -> Incidents:
    return local_incidents(monkeypatch)


def fail(incidents: Incidents, error: Exception, stage: str = "commit", phase: str = RUN) -> None:
    with pytest.raises(type(error)), incidents.recording(stage, phase):
        raise error


def test_an_error_is_recorded_with_its_stage_phase_type_and_masked_message(incidents: Incidents) -> None:
    fail(incidents, ValueError("s3://user:secret@host/x\nis bad"), "route")
    fail(incidents, ValueError("s3://user:secret@host/x\nis bad"), "route")
    [(incident, times)] = incidents.counts()
    assert (incident.stage, incident.phase, incident.error_type, times) == ("route", "run", "ValueError", 2)
    assert "secret" not in incident.message
    assert incident.message.endswith("is bad")
    assert list(incidents.stage_seconds()) == ["route"]


def test_a_refusal_is_known_by_its_type_not_by_its_words(incidents: Incidents) -> None:
    fail(incidents, RuntimeError("StoreError, at the start of an actor"))
    assert not any(incident.is_store_refusal for incident, _ in incidents.counts())
    assert incidents.failed_starts() == Counter()
    fail(incidents, FullStoreError("no space"))
    [refusal] = [incident for incident, _ in incidents.counts() if incident.is_store_refusal]
    assert (refusal, str(refusal)) == (
        Incident("commit", RUN, "StoreError", "no space"),
        "commit: StoreError: no space",
    )


def test_a_failed_start_is_known_by_its_phase(incidents: Incidents) -> None:
    with pytest.raises(OSError, match="busy"), incidents.recording_start("generate"):
        raise OSError("the GPU is busy")
    failed = Incident("generate", START, "OSError", "the GPU is busy")
    assert incidents.failed_starts() == Counter({failed: 1})
    assert str(failed) == "generate actor could not start: OSError: the GPU is busy"


def test_the_fourth_start_of_a_process_that_died_raises(incidents: Incidents) -> None:
    for _ in range(3):
        incidents._actor.counter.begin_start("actor")
    with pytest.raises(RuntimeError, match="died 3 times while it started"), incidents.recording_start("route"):
        pytest.fail("it was started")


def test_a_start_that_finished_is_forgotten(incidents: Incidents) -> None:
    for _ in range(5):
        with incidents.recording_start("route"):
            pass
    assert incidents.counts() == []
    assert incidents.stage_seconds()["route start"][1] == 5


def test_the_speed_of_a_stage_is_that_of_one_actor_within_its_calls(incidents: Incidents) -> None:
    assert incidents.records_per_second("generate") == 0
    incidents._actor.add_call.remote("generate start", 100.0, 0)
    incidents._actor.add_call.remote("route", 1.0, 5000)
    assert incidents.records_per_second("generate") == 0
    incidents._actor.add_call.remote("generate", 2.0, 30)
    incidents._actor.add_call.remote("generate", 8.0, 70)
    assert incidents.records_per_second("generate") == 10
    assert incidents.stage_seconds()["generate"] == (10.0, 2)


def test_a_block_is_recorded_with_its_records_and_its_error_too(incidents: Incidents) -> None:
    with incidents.recording("generate", records=30):
        pass
    with pytest.raises(ValueError, match="bad"), incidents.recording("generate", records=12):
        raise ValueError("bad")
    with incidents.recording_start("generate"):
        pass
    counter = incidents._actor.counter
    assert (counter._records, incidents.stage_seconds()["generate"][1]) == (
        Counter({"generate": 42, "generate start": 0}),
        2,
    )


def test_each_number_of_threads_is_kept_once(incidents: Incidents) -> None:
    for threads in (16, 2, 16):
        incidents.add_threads(threads)
    assert incidents.threads() == [2, 16]


def test_failures_are_errors_and_starts_of_generating_actors(incidents: Incidents) -> None:
    assert incidents.failures() == 0
    fail(incidents, ValueError("a"), "route")
    fail(incidents, ValueError("a"), "route")
    fail(incidents, FullStoreError("b"))
    with incidents.recording_start("route"), incidents.recording("generate"):
        pass
    assert incidents.failures() == 3
    with incidents.recording_start("generate"):
        pass
    assert incidents.failures() == 4, "each start behind the first is a death that nobody recorded"


def test_incidents_that_stop_a_job_are_not_lost_among_many_others() -> None:
    counter = IncidentCounter()
    for i in range(300):
        counter.record(Incident("read", RUN, "ValueError", str(i)))
    refusal, start = Incident("commit", RUN, "StoreError", "full"), Incident("route", START, "OSError", "busy")
    counter.record(refusal)
    counter.record(start)
    counted = dict(counter.incidents())
    assert (counted[refusal], counted[start], len(counted)) == (1, 1, 103)
    assert sum(counted.values()) == 302


def test_without_an_actor_errors_go_on_and_nothing_is_recorded() -> None:
    incidents = Incidents()
    fail(incidents, ValueError("x"))
    assert (incidents.counts(), incidents.stage_seconds()) == ([], {})
    assert (incidents.failures(), incidents.records_per_second("generate")) == (0, 0)
