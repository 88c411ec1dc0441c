"""One engine fed by several threads: batches of requests that are in flight at the same time share its rows."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

from pipeline.engine.backend import Load
from pipeline.engine.core.engine import Engine
from pipeline.engine.core.session import Session
from pipeline.engine.request import Failure, Request, Reroute, Sampling
from pipeline.records import Completion

from .faults import halve, is_out_of_memory

Answer = Completion | Failure


@dataclass(frozen=True, eq=False)
class _Job:
    """A request, as an object of its own, and where its answer goes."""

    request: Request
    answer: "Future[Answer]"


_InFlight = dict[int, _Job]
"""What runs or waits in a session, by the request's identity."""


class EngineServer:
    """Runs an engine in a thread of its own. `answer` may be called from any number of threads.

    Rows that end in one batch make room for those of the next, so that the engine never runs dry between batches. A
    request that makes the engine raise is found by halving what ran with it, and is answered with a `Failure`; all
    others are answered as if it had not been there. Where memory ends, the engine goes on with half the rows.

    ``on_error`` is called in the engine's thread with each error of the engine, before what ran is tried again.
    ``watching``: a context in which the engine runs (`Watchdog`).
    """

    def __init__(
        self,
        engine: Engine,
        sampling: Sampling,
        reroute: Reroute | None = None,
        on_error: Callable[[Exception], None] = lambda error: None,
        watching: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.engine = engine
        self._begin = partial(Session, engine, sampling, reroute)
        self._session = self._begin()
        self._on_error, self._watching = on_error, watching
        self._jobs: deque[_Job] = deque()
        self._unanswered: set[_Job] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """The answer to each request, in order; blocks until all are there."""
        jobs = [_Job(replace(request), Future()) for request in requests]
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine server is closed")
            self._jobs.extend(jobs)
            self._unanswered.update(jobs)
            self._changed.notify_all()
        try:
            return [job.answer.result() for job in jobs]
        finally:
            with self._changed:
                self._unanswered.difference_update(jobs)

    def load(self) -> Load:
        """What the engine is busy with; from any thread, as good as a look from outside is."""
        scheduler, counts = self._session.scheduler, self.engine.lora.residency.counts
        running = [*scheduler.running]
        return Load(
            len(running),
            self.engine.settings.batch_size,
            len(self._jobs) + scheduler.waiting,
            len({row.mixture for row in running}),
            scheduler.cache.positions,
            scheduler.cache.limit,
            counts.loads,
            counts.evictions,
        )

    def close(self) -> None:
        """Answer what is in flight, and end the thread. Later requests raise `RuntimeError`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _serve(self) -> None:
        try:
            self._run()
        except BaseException as error:  # without an answer, callers would wait for ever
            with self._changed:
                self._closed = True
                for job in self._unanswered:
                    if not job.answer.done():
                        job.answer.set_exception(error)
            raise

    def _run(self) -> None:
        in_flight: _InFlight = {}
        while in_flight or self._wait():
            try:
                with self._watching():
                    _step(self._session, self._jobs, in_flight)
            except Exception as error:
                self._on_error(error.with_traceback(None))  # which holds the memory of the pass
                self._session = self._begin()
                if is_out_of_memory(error) and halve(self.engine):
                    self._jobs.extendleft(reversed(in_flight.values()))
                else:
                    self._run_apart([*in_flight.values()])
                self._session, in_flight = self._begin(), {}

    def _wait(self) -> bool:
        """Wait for a request; false once the server is closed and none is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            return bool(self._jobs)

    def _run_apart(self, jobs: Sequence[_Job]) -> None:
        """Answer jobs of which one, or several, make the engine raise: halves are tried, down to the one that does."""
        middle = len(jobs) // 2
        for part in (jobs[:middle], jobs[middle:]):
            self._run_part(part)

    def _run_part(self, part: Sequence[_Job]) -> None:
        session, waiting = self._begin(), deque(part)
        in_flight: _InFlight = {}
        try:
            while waiting or in_flight:
                with self._watching():
                    _step(session, waiting, in_flight)
        except Exception as error:
            left = [*in_flight.values(), *waiting]
            self._on_error(error.with_traceback(None))
            del session
            if is_out_of_memory(error) and halve(self.engine):
                self._run_part(left)
            elif len(part) == 1:
                message = str(error).splitlines()[0] if str(error) else ""
                failure = Failure(type(error).__name__, message or "the engine failed on this record alone")
                left[0].answer.set_result(failure)
            else:
                self._run_apart(left)


def _step(session: Session, waiting: deque[_Job], in_flight: _InFlight) -> None:
    """Admit jobs as the session has room, run one pass, and answer those that ended."""
    while waiting and session.has_room:
        job = waiting.popleft()
        in_flight[id(job.request)] = job  # already here, should it make `add` raise
        problem = session.add(job.request)
        if problem:
            in_flight.pop(id(job.request)).answer.set_result(problem)
    for request, answer in session.step():
        in_flight.pop(id(request)).answer.set_result(answer)
