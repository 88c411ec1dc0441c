"""What the stages need of an engine, whichever it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.records import Completion

from .request import Failure, Request


@dataclass(frozen=True)
class Load:
    """What an engine is busy with at a moment. ``adapter_loads`` and ``adapter_evictions`` count from its start."""

    rows: int
    most_rows: int
    waiting: int
    mixtures: int
    kv_positions: int
    kv_limit: int
    adapter_loads: int
    adapter_evictions: int


class Backend(Protocol):
    """Answers requests, each by its own settings or those of all; from any number of threads at once."""

    def answer(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        """The answer to each request, in order; blocks until all are there."""
        ...

    def load(self) -> Load:
        """What it is busy with."""
        ...

    def close(self) -> None:
        """Answer what is in flight and end; later requests raise."""
        ...
