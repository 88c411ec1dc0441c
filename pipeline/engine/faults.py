"""What goes wrong with the machine under the engine rather than with a record: memory that ends, passes that hang."""

import faulthandler
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from .engine import Engine

_LEAST_PREFILL = 64  # tokens of a pass that are not halved any more
_CPU_ALLOCATOR = "DefaultCPUAllocator"
_log = logging.getLogger(__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the device or of the machine ended."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _CPU_ALLOCATOR in str(error)
    )


def halve(engine: Engine) -> bool:
    """Let the engine run half the rows, and half the prompt tokens of a pass; False where it cannot be less.

    Answers stay what they are: they depend on no batch. The engine stays that small, as what filled the memory once (a
    neighbour on the GPU, a long prompt) will again. Its sessions must be begun anew.
    """
    settings = engine.settings
    rows, tokens = max(1, settings.batch_size // 2), max(_LEAST_PREFILL, settings.prefill_tokens // 2)
    if (rows, tokens) == (settings.batch_size, settings.prefill_tokens) or tokens > settings.prefill_tokens:
        return False
    engine.settings = replace(settings, batch_size=rows, prefill_tokens=tokens)
    if engine.model.device.type == "cuda":
        torch.cuda.empty_cache()
    _log.warning("engine: out of memory; going on with %d rows and %d prompt tokens a pass", rows, tokens)
    return True


class Watchdog:
    """Notices that an engine is at work (`watching`) and has begun no pass for ``seconds``: its last one hangs.

    ``on_hang`` is called once, in the watchdog's thread, after the stacks of all threads went to stderr. It should end
    the process: nothing else stops a thread.
    """

    def __init__(self, engine: Engine, seconds: float, on_hang: Callable[[], None]) -> None:
        self._seconds, self._on_hang = seconds, on_hang
        self._began: dict[int, float] = {}  # by thread
        engine.before_pass = self._begin_pass
        thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        thread.start()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the passes of the calling thread."""
        me = threading.get_ident()
        self._began[me] = time.monotonic()
        try:
            yield
        finally:
            del self._began[me]

    def _begin_pass(self) -> None:
        me = threading.get_ident()
        if me in self._began:
            self._began[me] = time.monotonic()

    def _watch(self) -> None:
        while True:
            time.sleep(min(1.0, self._seconds / 4))
            oldest = min(list(self._began.values()), default=time.monotonic())
            if time.monotonic() - oldest > self._seconds:
                _log.error("engine: no pass ended in %g s; the process is ended, and started again", self._seconds)
                faulthandler.dump_traceback()
                self._on_hang()
                return
