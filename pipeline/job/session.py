"""A session: one command at work on an output, from taking its lease to releasing it."""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

from pipeline.cluster.resources import Pools
from pipeline.settings import JobSettings
from pipeline.stages.dataset import Stream
from pipeline.storage.commit.counts import Counts, sum_counts
from pipeline.storage.commit.lease import Lease
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.input.plan import InputPlan
from pipeline.storage.output.run import RUN, RunFolder
from pipeline.telemetry.incidents import Incidents
from pipeline.telemetry.progress import JobProgress

from .guard import check_guard
from .preflight import Prepared
from .stop import StopKind, StoppedError, StopReason, StopSwitch

_LEASE_LOST = StopReason(StopKind.LEASE_LOST, "another driver took the output over")


@dataclass
class Session:
    """The lease, the markers and the state of one command; see `open_session`.

    ``settings``: with the id of the run. ``earlier``: `run.json` as the last command left it, None for a new run.
    ``pools`` and ``incidents`` are set by `start_ray`, which took ``ray_seconds``. ``started``: seconds since 1970.
    """

    settings: JobSettings
    prepared: Prepared
    folder: RunFolder
    markers: MarkerStore
    earlier: dict[str, Any] | None
    lease: Lease
    switch: StopSwitch
    progress: JobProgress
    log: Callable[[str], None]
    started: float = field(default_factory=time.time)
    pools: Pools | None = None
    incidents: Incidents = field(default_factory=Incidents)
    ray_seconds: float = 0.0

    def check_lease(self) -> None:
        """Raise `StoppedError` if another driver has taken the output over: a write would overwrite its files."""
        if not self.lease.holds():
            raise StoppedError(_LEASE_LOST)

    def start_ray(self, start_pools: Callable[[], Pools]) -> None:
        """Start Ray, and the actor that collects the incidents of this session."""
        self.progress.set_stage("starting Ray")
        start = time.monotonic()
        self.pools = start_pools()
        self.incidents = Incidents.with_actor()
        self.ray_seconds = time.monotonic() - start

    def stream(self, generator: type, router: type) -> Stream:
        """Return the stream of the job. ``generator``, ``router``: classes of its actors, see `Stream`."""
        assert self.pools is not None  # `start_ray` was called
        plan, context, schema = self.prepared.plan, self.prepared.context, self.prepared.schema
        stages = generator, router
        return Stream(self.settings, self.pools, plan, context, schema, self.incidents, self.markers, *stages)


@contextmanager
def open_session(
    settings: JobSettings, prepared: Prepared, folder: RunFolder, progress: JobProgress, log: Callable[[str], None]
) -> Iterator[Session]:
    """Take the lease of the output, and read `run.json` again: another command may have changed it since `prepare`.

    Raises `UserError` if another command is working on the output, or its run differs from this job.
    """
    switch = StopSwitch()
    with Lease(settings.output, partial(switch.stop, _LEASE_LOST), log) as lease:
        earlier = None if prepared.new_run else folder.read_json(RUN)
        if earlier is not None:
            check_guard(earlier["guard"], prepared.guard, settings.output)
        run = (earlier or {}).get("run") or uuid.uuid4().hex[:12]
        markers = MarkerStore(settings.output, run)
        yield Session(replace(settings, run=run), prepared, folder, markers, earlier, lease, switch, progress, log)


def read_finished_run(folder: RunFolder, prepared: Prepared) -> dict[str, Any] | None:
    """Return `run.json` of an output whose run is finished; None if there is something left to do."""
    values = None if prepared.new_run else folder.read_json(RUN)
    if values is None or values.get("state") != "finished":
        return None
    return None if unfinished_windows(MarkerStore(folder.url, values["run"]), prepared.plan) else values


def unfinished_windows(markers: MarkerStore, plan: InputPlan) -> list[int]:
    """Return the windows of a plan that have no marker."""
    return sorted(set(range(plan.windows)) - markers.finished_markers().keys())


def committed_counts(markers: MarkerStore, plan: InputPlan) -> Counts:
    """Return the counts of all committed rows, in finished windows and in others."""
    finished = markers.finished_markers()
    others = sorted(markers.windows_with_shards() & set(range(plan.windows)) - finished.keys())
    return sum_counts(
        chain((files.counts for files in markers.read_windows(finished.values())), map(markers.counts, others))
    )
