"""What goes wrong with the machine under the engine rather than with a record: memory that ends, passes that hang."""

import faulthandler
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from pipeline.engine.core.engine import Engine

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
        self._began: dict[int, float] = {}  # by thread
        engine.before_pass = self._begin_pass
        watch_passes(seconds, self._oldest, on_hang, "no pass ended")

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

    def _oldest(self) -> float:
        return min(list(self._began.values()), default=time.monotonic())


def watch_passes(seconds: float, since: Callable[[], float], on_hang: Callable[[], None], what: str) -> None:
    """Start a thread that calls ``on_hang`` once, after writing all stacks to stderr, where an engine hangs.

    ``since``: when the pass in work began, now where there is none (`time.monotonic`); ``what``: of it, for the log.
    """

    def watch() -> None:
        while True:
            time.sleep(min(1.0, seconds / 4))
            if time.monotonic() - since() > seconds:
                _log.error("engine: %s in %g s; the process is ended, and started again", what, seconds)
                faulthandler.dump_traceback()
                on_hang()
                return

    threading.Thread(target=watch, daemon=True, name="watchdog").start()
