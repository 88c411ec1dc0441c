"""The native engine as a backend: a server for what is generated, scoring for choices, and a watchdog over both."""

import os
from collections.abc import Callable, Sequence

import torch

from pipeline.records import Completion

from .backend import Load
from .core.engine import Engine
from .request import Failure, Request, Reroute, Sampling
from .scoring.choices import Encode, choose
from .serving.faults import Watchdog, halve, is_out_of_memory
from .serving.server import EngineServer


def leave() -> None:
    """End this process at once: nothing else stops a thread that hangs."""
    os._exit(1)


class NativeBackend:
    """Answers requests with an engine of this process; see `backend.Backend`.

    ``encode``: see `choices.Encode`. ``on_dead``: called where a pass takes longer than ``hang_seconds``, or the device
    is lost; it should end the process.
    """

    def __init__(
        self,
        engine: Engine,
        sampling: Sampling,
        encode: Encode,
        reroute: Reroute | None,
        hang_seconds: float,
        on_dead: Callable[[], None] = leave,
    ) -> None:
        self.engine, self.sampling, self.encode, self._on_dead = engine, sampling, encode, on_dead
        self.watchdog = Watchdog(engine, hang_seconds, on_dead)
        self.server = EngineServer(engine, sampling, reroute, self._leave_if_device_is_lost, self.watchdog.watching)

    def answer(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        """An answer for each request: choices are scored here, all else goes through the server."""
        scored = [bool((request.sampling or self.sampling).choices) for request in requests]
        chosen = iter(self._chosen([r for r, choices in zip(requests, scored, strict=True) if choices]))
        generated = iter(self.server.answer([r for r, choices in zip(requests, scored, strict=True) if not choices]))
        return [next(chosen if choices else generated) for choices in scored]

    def load(self) -> Load:
        """What the engine is busy with."""
        return self.server.load()

    def close(self) -> None:
        """Answer what is in flight, and end the server's thread."""
        self.server.close()

    def _leave_if_device_is_lost(self, error: Exception) -> None:
        """After a device-side assert every CUDA call of this process fails: end it, so that Ray starts it again."""
        if self.engine.model.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            self._on_dead()

    def _chosen(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        """Answers by choices. Where the engine raises, halves are tried, down to the request that breaks it."""
        if not requests:
            return []
        try:
            places = {id(request): place for place, request in enumerate(requests)}
            answers: list[Completion | Failure] = [Failure("NoAnswer", "the engine gave no answer")] * len(requests)
            with self.watchdog.watching():
                for request, found in choose(self.engine, requests, self.sampling, self.encode):
                    answers[places[id(request)]] = found
            return answers
        except Exception as error:
            self._leave_if_device_is_lost(error.with_traceback(None))
            if is_out_of_memory(error) and halve(self.engine):
                return self._chosen(requests)
            if len(requests) == 1:
                message = str(error).splitlines()[0] if str(error) else ""
                return [Failure(type(error).__name__, message or "the engine failed on this record alone")]
            middle = len(requests) // 2
            return self._chosen(requests[:middle]) + self._chosen(requests[middle:])
