"""Everything the stages need to know, in plain dataclasses that travel to the actors."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from ..engine import Sampling
from ..engine.settings import EngineSettings
from ..models import Quantization
from ..records import ASKED
from ..routing import RoutingPolicy, SentenceSettings
from ..storage.columns import Columns


@dataclass(frozen=True)
class ModelRef:
    """The base model as a folder or hub id, and how prompts are put to it."""

    folder: str
    dtype: str = "auto"
    prompt_format: Literal["raw", "chat"] = "raw"
    trust_remote_code: bool = False
    quantization: Quantization = "none"


@dataclass(frozen=True)
class Pools:
    """Actors of the stages and what each asks of Ray. ``gpus``: GPUs of one generating actor."""

    route_actors: int = 1
    generate_actors: int = 1
    gpus: float = 0
    threads: int = 1
    read_cpus: float = 0.25
    route_cpus: float = 0.5
    generate_cpus: float = 0.25
    write_cpus: float = 0.25

    @property
    def devices(self) -> dict[str, float]:
        """What answers: generating actors, and GPUs or CPU threads of each; for run.json and the report."""
        return {"generate_actors": self.generate_actors, "gpus_each": self.gpus, "threads_each": self.threads}


@dataclass(frozen=True)
class JobSettings:
    """One generation job. What `prepare._guard` names decides the output; the rest only how fast it comes.

    ``sentences``: prompts and answers are routed sentence by sentence; None: record by record.
    """

    input: str
    output: str
    model: ModelRef
    bank: str
    router: str
    adapters: tuple[str, ...] | None = None
    columns: Columns = field(default_factory=Columns)
    long_prompts: Literal["truncate_left", "truncate_right", "dead_letter"] = "dead_letter"
    keep_prompt: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    routing: RoutingPolicy = field(default_factory=RoutingPolicy)
    sentences: SentenceSettings | None = None
    engine: EngineSettings = field(default_factory=EngineSettings)
    error_budget: float = 0.01
    error_max: int | None = None
    window_records: int = 1_000_000
    limit: int | None = None  # only the first so many records of the input
    shard_records: int = 512
    file_bytes: int = 128 * 2**20  # of the files that a finished window's shards are joined into
    hang_seconds: float = 1800.0  # without a new pass of the engine
    config: dict[str, Any] = field(default_factory=dict)  # as the user gave it, for run.json

    @property
    def asked(self) -> pa.Schema:
        """Those columns of `records.ASKED` that these settings, or those of a record, may ask for."""
        own = self.columns.sampling is not None
        wanted = {
            "outputs": own or self.sampling.n > 1,
            "logprobs": own or self.sampling.logprobs is not None,
            "choice_log_likelihoods": own or self.columns.choices is not None or bool(self.sampling.choices),
        }
        return pa.schema([f for f in ASKED if wanted[f.name]])
