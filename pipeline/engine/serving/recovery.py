"""Recover from errors of the engine: smaller batches if memory runs out, and bisection to the request at fault."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from pipeline.engine.core.engine import Engine
from pipeline.engine.request import Failure, Outcome, Request

Run = Callable[[Sequence[Request]], Iterable[tuple[Request, Outcome]]]
"""Answers requests with the engine; may raise."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the device or of the machine ran out."""
    is_on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or is_on_cpu


@dataclass(frozen=True)
class Recovery:
    """Answers every request although some make the engine raise.

    If memory runs out, the engine continues with half the batch. After other errors, halves of the requests run by
    themselves, down to the one that raises alone, which gets a `Failure`. ``on_error`` is called with each error, in
    the thread of the run. ``watching``: context of every run (`Watchdog.watching`).
    """

    engine: Engine
    on_error: Callable[[Exception], None] = lambda error: None
    watching: Callable[[], AbstractContextManager[None]] = nullcontext

    def answer(self, requests: Sequence[Request], run: Run) -> Iterator[tuple[Request, Outcome]]:
        """Run requests, and recover from errors."""
        unanswered = {id(request): request for request in requests}
        try:
            with self.watching():
                for request, outcome in run(requests):
                    unanswered.pop(id(request), None)
                    yield request, outcome
        except Exception as error:
            yield from self.recover(error, [*unanswered.values()], run, is_alone=len(requests) == 1)

    def recover(
        self, error: Exception, requests: Sequence[Request], run: Run, is_alone: bool = False
    ) -> Iterator[tuple[Request, Outcome]]:
        """Answer the requests that an error left unanswered. ``is_alone``: the error is due to a single request."""
        self.on_error(error.with_traceback(None))  # a traceback would hold the memory of the pass
        if is_out_of_memory(error) and self.engine.halve_batch():
            yield from self.answer(requests, run)
        elif is_alone:
            message = (str(error).splitlines() or [""])[0] or "the engine failed on this record alone"
            yield requests[0], Failure(type(error).__name__, message)
        else:
            middle = len(requests) // 2
            for half in (requests[:middle], requests[middle:]):
                yield from self.answer(half, run)
