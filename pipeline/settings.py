"""Everything the stages need to know, in plain dataclasses that travel to the actors."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from .engine import Sampling
from .engine.settings import EngineSettings
from .models import Quantization
from .records import ASKED
from .routing import RoutingPolicy, SentenceSettings
from .storage.input.columns import Columns


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
