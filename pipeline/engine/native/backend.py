"""The native engine as a `Backend`: a server generates, choices are scored, and a watchdog watches both."""

from collections.abc import Callable, Sequence

import torch

from pipeline.engine.backend import EngineContext, EngineLoad, exit_process
from pipeline.engine.core.engine import Engine
from pipeline.engine.request import Encode, Failure, Outcome, Request, Reroute, Sampling
from pipeline.engine.scoring.choices import choose
from pipeline.engine.serving.recovery import Recovery
from pipeline.engine.serving.server import EngineServer
from pipeline.engine.serving.watchdog import Watchdog
from pipeline.engine.settings import EngineSettings
from pipeline.heap import keep_freed_memory
from pipeline.models import load_model


def start_native(settings: EngineSettings, context: EngineContext) -> "NativeBackend":
    """Load the model of a context and start the engine on it."""
    if context.device == "cpu":
        keep_freed_memory()
    model = load_model(
        context.model_path, context.dtype, context.device, context.trust_remote_code, context.quantization
    )
    engine = Engine(model, context.tokenizer, context.bank, settings)
    return NativeBackend(
        engine, context.sampling, context.encode, context.reroute, context.hang_seconds, context.on_dead
    )


class NativeBackend:
    """Answers requests with an engine of this process; see `backend.Backend`.

    ``encode``: see `request.Encode`. ``on_dead``: called when a forward pass takes longer than ``hang_seconds`` or the
    device is lost; it should end the process.
    """

    def __init__(
        self,
        engine: Engine,
        sampling: Sampling,
        encode: Encode,
        reroute: Reroute | None,
        hang_seconds: float,
        on_dead: Callable[[], None] = exit_process,
    ) -> None:
        self.engine, self.sampling, self.encode, self._on_dead = engine, sampling, encode, on_dead
        watchdog = Watchdog(hang_seconds, on_dead)
        engine.runner.before_pass = watchdog.start_pass
        self._recovery = Recovery(engine, self._exit_if_device_is_lost, watchdog.watching)
        self.server = EngineServer(engine, sampling, reroute, self._recovery)

    def answer(self, requests: Sequence[Request]) -> list[Outcome]:
        """Answer the requests, in order; blocks until all are answered."""
        scored = [bool((request.sampling or self.sampling).choices) for request in requests]
        chosen = iter(self._choose([r for r, choices in zip(requests, scored, strict=True) if choices]))
        generated = iter(self.server.answer([r for r, choices in zip(requests, scored, strict=True) if not choices]))
        return [next(chosen if choices else generated) for choices in scored]

    def load(self) -> EngineLoad:
        """Return the current load."""
        return self.server.load()

    def close(self) -> None:
        """Answer the requests in flight and stop the server."""
        self.server.close()

    def _exit_if_device_is_lost(self, error: Exception) -> None:
        """End this process if its device is lost: after a device-side assert every CUDA call fails. Ray restarts it."""
        if self.engine.model.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            self._on_dead()

    def _choose(self, requests: Sequence[Request]) -> list[Outcome]:
        """Answer requests with choices, in order."""
        chosen = self._recovery.answer(requests, lambda part: choose(self.engine, part, self.sampling, self.encode))
        outcomes = {id(request): outcome for request, outcome in chosen}
        missing = Failure("NoAnswer", "the engine gave no answer")
        return [outcomes.get(id(request), missing) for request in requests]
