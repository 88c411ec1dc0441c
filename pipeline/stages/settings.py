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
    """The base model as `local.on_this_node` takes it, and how prompts are put to it.

    ``folder``: a folder, a hub id, a GGUF file, ``package:module/file.gguf``, or a URL of a folder or a GGUF file.
    """

    folder: str
    dtype: str = "auto"
    prompt_format: Literal["raw", "chat"] = "raw"
    trust_remote_code: bool = False
    quantization: Quantization = "none"


@dataclass(frozen=True)
class Share:
    """What one task or actor of a stage asks of Ray, and how many actors the stage has where it has some.

    ``memory``: bytes that Ray counts as taken, 0: not counted. ``accelerator``: a type as Ray names it, as ``A100``.
    ``labels``: of the nodes, as ``ray start --labels`` gives them. Between ``actors`` and ``most_actors`` a pool grows
    as work waits, and shrinks again; both 0: as many as the cluster has room for.
    """

    cpus: float = 0.25
    gpus: float | None = None
    memory: int = 0
    accelerator: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    actors: int = 1
    most_actors: int = 1

    @property
    def asked(self) -> dict[str, Any]:
        """The options of a task or an actor."""
        options: dict[str, Any] = {
            "num_gpus": self.gpus or None,
            "memory": self.memory or None,
            "accelerator_type": self.accelerator,
            "label_selector": dict(self.labels) or None,
        }
        return {"num_cpus": self.cpus} | {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class Pools:
    """What each stage asks of Ray. ``threads``: CPU threads of a generating actor."""

    read: Share = Share()
    route: Share = Share(0.5)
    generate: Share = Share()
    write: Share = Share()
    threads: int = 1

    @property
    def devices(self) -> dict[str, float]:
        """What answers: generating actors, and GPUs or CPU threads of each; for run.json and the report."""
        generate = self.generate
        return {"generate_actors": generate.actors, "gpus_each": generate.gpus or 0, "threads_each": self.threads}


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
    shard_adapters: int = 64  # of all mixtures of a shard together
    shuffle_task_records: int = 16_384  # of a window that one task plans and cuts
    file_bytes: int = 128 * 2**20  # of the files that a finished window's shards are joined into
    hang_seconds: float = 1800.0  # without a new pass of the engine
    config: dict[str, Any] = field(default_factory=dict)  # as the user gave it, for run.json
    run: str = ""  # names the run in metrics and logs; `GenerateJob` gives it

    @property
    def shard_mixtures(self) -> int:
        """Distinct mixtures of a shard at most, as the engine takes them at the same time; 0: any number."""
        return self.engine.vllm.max_loras if self.engine.vllm else 0

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
