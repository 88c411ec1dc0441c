"""Incidents: what is recorded of an error, what is counted, and which incidents stop a job."""

import subprocess
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.storage.store.objects import StoreError
from pipeline.telemetry import incidents as module
from pipeline.telemetry.incident_actor import PREFETCH, RUN, START, Incident, IncidentCounter
from pipeline.telemetry.incidents import Incidents


class FullStoreError(StoreError):
    """A refusal of a kind of its own."""


class Local:
    """A handle of an actor that is called in this process."""

    def __init__(self) -> None:
        self.counter = IncidentCounter()

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.counter, name))


@pytest.fixture
def incidents(monkeypatch: pytest.MonkeyPatch) -> Incidents:
    monkeypatch.setattr(module.ray, "get", lambda value, timeout: value)
    context = SimpleNamespace(get_actor_id=lambda: "actor")
    monkeypatch.setattr(module.ray, "get_runtime_context", lambda: context)
    return Incidents(Local())


def fail(incidents: Incidents, error: Exception, stage: str = "commit", phase: str = RUN) -> None:
    with pytest.raises(type(error)), incidents.recording(stage, phase):
        raise error


def test_an_error_is_recorded_with_its_stage_phase_type_and_masked_message(incidents: Incidents) -> None:
    fail(incidents, ValueError("s3://user:secret@host/x\nis bad"), "route", PREFETCH)
    fail(incidents, ValueError("s3://user:secret@host/x\nis bad"), "route", PREFETCH)
    [(incident, times)] = incidents.counts()
    assert (incident.stage, incident.phase, incident.error_type, times) == ("route", "prefetch", "ValueError", 2)
    assert "secret" not in incident.message
    assert incident.message.endswith("is bad")
    assert list(incidents.stage_seconds()) == ["route prefetch"]


def test_a_refusal_is_known_by_its_type_not_by_its_words(incidents: Incidents) -> None:
    fail(incidents, RuntimeError("StoreError, at the start of an actor"))
    assert (incidents.store_refusals(), incidents.failed_starts()) == ([], Counter())
    fail(incidents, FullStoreError("no space"))
    [refusal] = incidents.store_refusals()
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


def test_the_process_of_the_actor_imports_next_to_nothing() -> None:
    code = (
        "import sys, pipeline.telemetry.incident_actor;"
        "print({'ray', 'pyarrow', 'numpy', 'fsspec', 'torch'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n", "it lives as long as the job"
