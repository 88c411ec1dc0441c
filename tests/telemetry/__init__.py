"""Incidents without Ray: their actor is an object of this process."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from pipeline.telemetry.incident_actor import IncidentCounter
from pipeline.telemetry.incidents import Incidents


class LocalActor:
    """A handle of an actor that is called in this process."""

    def __init__(self) -> None:
        self.counter = IncidentCounter()

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.counter, name))


def local_incidents(monkeypatch: pytest.MonkeyPatch) -> Incidents:
    """Incidents that are counted in this process."""
    monkeypatch.setattr(ray, "get", lambda value, timeout: value)
    context = SimpleNamespace(get_actor_id=lambda: "actor")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    return Incidents(LocalActor())
