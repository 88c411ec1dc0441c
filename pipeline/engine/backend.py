"""The interface between a job and an engine: what an engine is started with, can do, and answers."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from .request import Encode, Outcome, Request, Reroute, Sampling
from .settings import BackendSettings

if TYPE_CHECKING:  # loads torch
    from pipeline.adapters import AdapterBank

Settings = TypeVar("Settings", bound=BackendSettings)


@dataclass(frozen=True)
class EngineLoad:
    """The load of an engine at one moment. ``adapter_loads`` and ``adapter_evictions`` count from its start."""

    rows: int
    max_rows: int
    waiting: int
    mixtures: int
    kv_positions: int
    kv_limit: int
    adapter_loads: int
    adapter_evictions: int


class Backend(Protocol):
    """Answers requests, each by its own sampling settings or the job's; called from any number of threads."""

    def answer(self, requests: Sequence[Request]) -> list[Outcome]:
        """Answer the requests, in order; blocks until all are answered."""
        ...

    def load(self) -> EngineLoad:
        """Return the current load."""
        ...

    def close(self) -> None:
        """Answer the requests in flight and stop; later requests raise."""
        ...


def exit_process() -> None:
    """Exit this process at once: nothing else stops a thread that hangs."""
    os._exit(1)


@dataclass(frozen=True)
class EngineContext:
    """The parts of a job that an engine is started with, besides its settings.

    ``model_path``: a folder or hub id. ``dtype``, ``quantization``: see `models.load_model`. ``max_adapters``: of a
    mixture; 0 for the base model alone. ``encode``: see `request.Encode`. ``reroute``: chooses mixtures of an
    answer's sentences; None for one mixture per request. ``threads``: CPU threads. ``hang_seconds``: time without a
    forward pass after which the engine counts as hung. ``on_dead``: called when the engine hangs or its device or
    process is lost; it should end this process, because callers would wait for ever.
    """

    model_path: str
    dtype: str
    quantization: Any
    trust_remote_code: bool
    tokenizer: Any
    bank: "AdapterBank"
    sampling: Sampling
    encode: Encode
    max_adapters: int
    reroute: Reroute | None
    device: str
    threads: int
    hang_seconds: float
    on_dead: Callable[[], None] = exit_process


@dataclass(frozen=True)
class Capabilities:
    """The capabilities of an engine with its settings. A job that needs more is refused before any work.

    ``sentences``: a mixture per sentence. ``quantization``: base models in 8 or 4 bits. ``several_gpus``: one model
    over several GPUs. These three are empty if the engine can, else the reason and what to do instead.
    ``resumes_answers``: an answer that changes its mixture is begun again after the tokens so far, and what counts the
    tokens of an answer (constraints, presence and frequency penalties) begins again too.
    """

    sentences: str
    quantization: str
    several_gpus: str
    max_temperature: float = math.inf
    resumes_answers: bool = False

    def sampling_problem(self, sampling: Sampling, by_sentence: bool) -> str:
        """Return why the engine cannot sample with these settings; empty if it can.

        ``by_sentence``: the sentences of an answer have mixtures of their own.
        """
        if sampling.temperature > self.max_temperature:
            return f"temperature {sampling.temperature:g}: the engine takes {self.max_temperature:g} at most"
        if (
            by_sentence
            and self.resumes_answers
            and (sampling.constraint or sampling.presence_penalty or sampling.frequency_penalty)
        ):
            return (
                "JSON, regex, grammars, presence and frequency penalties do not go with routing.granularity=sentence;"
                " use engine=native"
            )
        return ""


def _accept_any(*checked: object) -> None:
    """Accept every bank, or every model."""


@dataclass(frozen=True)
class BackendSpec(Generic[Settings]):
    """One engine. ``settings``: its class of settings, whose ``backend`` is the name of the engine.

    ``check`` raises `UserError` for adapters of a bank that the engine cannot compute, given the settings and the
    maximum number of adapters in a mixture. ``check_model`` raises it for a model, given its folder or hub id and its
    config. ``package``: a package that it needs, installed by the extra of its name. ``auto_problem`` returns why
    ``engine=auto`` does not take the engine on a GPU for a model's config, empty if it does; None: it never does.
    """

    settings: type[Settings]
    capabilities: Callable[[Settings], Capabilities]
    start: Callable[[Settings, EngineContext], Backend]
    check: Callable[[Settings, "AdapterBank", int], object] = _accept_any
    package: str = ""
    check_model: Callable[[str, Any], object] = _accept_any
    auto_problem: Callable[[Any], str] | None = None
