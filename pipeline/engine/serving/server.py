"""Serve one engine to several threads: their requests share its batch."""

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

from pipeline.engine.backend import EngineLoad
from pipeline.engine.core.engine import Engine
from pipeline.engine.request import Outcome, Request, Reroute, Sampling

from .recovery import Recovery

_Job = tuple[Request, Future[Outcome]]
"""A request, as an object of its own, and the future of its outcome."""


class EngineServer:
    """Runs an engine in a thread of its own. `answer` may be called from any number of threads.

    Requests of later calls join the batch as soon as sequences of earlier ones finish, so that the engine never runs
    dry between calls. ``recovery`` handles errors of the engine.
    """

    def __init__(
        self, engine: Engine, sampling: Sampling, reroute: Reroute | None = None, recovery: Recovery | None = None
    ) -> None:
        self.engine = engine
        self._new_loop = partial(engine.new_loop, sampling, reroute)
        self._generate = partial(engine.generate, sampling=sampling, reroute=reroute)
        self._recovery = recovery or Recovery(engine)
        self._loop = self._new_loop()
        self._waiting: deque[_Job] = deque()
        self._in_flight: dict[int, _Job] = {}  # by the id() of the request
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    def answer(self, requests: Sequence[Request]) -> list[Outcome]:
        """Answer the requests, in order; blocks until all are answered. Raises `RuntimeError` if closed."""
        jobs = [(replace(request), Future[Outcome]()) for request in requests]
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the engine server is closed")
            self._waiting.extend(jobs)
            self._changed.notify_all()
        return [outcome.result() for _, outcome in jobs]

    def load(self) -> EngineLoad:
        """Return the current load; called from other threads, so its numbers may be of different moments."""
        scheduler, residency = self._loop.scheduler, self.engine.lora.residency
        running = [*scheduler.running]
        return EngineLoad(
            len(running),
            self.engine.settings.batch_size,
            len(self._waiting) + scheduler.num_waiting,
            len({seq.mixture for seq in running}),
            scheduler.cache.positions,
            scheduler.cache.limit,
            residency.loads,
            residency.evictions,
        )

    def close(self) -> None:
        """Answer the requests in flight, and end the thread. Later calls of `answer` raise `RuntimeError`."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()

    def _serve(self) -> None:
        """Answer requests until the server is closed and none remains."""
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._is_closed)
                    if not self._waiting:
                        return
                self._run()
        except BaseException as error:  # callers would wait for ever
            with self._changed:
                self._is_closed = True
                for _, outcome in [*self._in_flight.values(), *self._waiting]:
                    outcome.set_exception(error)
            raise

    def _run(self) -> None:
        """Step until no request is left. After an error, answer those in flight apart from the others."""
        try:
            with self._recovery.watching():
                while self._waiting or self._in_flight:
                    self._step()
        except Exception as error:
            self._loop = self._new_loop()
            requests = [request for request, _ in self._in_flight.values()]
            for request, outcome in self._recovery.recover(error, requests, self._generate):
                self._finish(request, outcome)
            self._loop = self._new_loop()

    def _step(self) -> None:
        """Add jobs that the loop wants, run one pass, and finish the jobs that it answers."""
        while self._waiting and self._loop.scheduler.wants_sequences:
            request, future = self._waiting.popleft()
            self._in_flight[id(request)] = request, future  # before `add`, which may raise
            problem = self._loop.add(request)
            if problem:
                self._finish(request, problem)
        for request, outcome in self._loop.step():
            self._finish(request, outcome)

    def _finish(self, request: Request, outcome: Outcome) -> None:
        _, future = self._in_flight.pop(id(request))
        future.set_result(outcome)
