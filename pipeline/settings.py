"""The settings of a job, as plain dataclasses that travel to the actors."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa

from .conversations import PromptSettings
from .engine import Sampling
from .engine.choice import NAMED, Choice
from .engine.settings import BackendSettings
from .models import Quantization
from .records import PARTS, REQUESTED, SENTENCE_MIXTURES, concat_schemas
from .routing import PartSettings, RoutingPolicy, SentenceSettings
from .storage.input.columns import Columns


@dataclass(frozen=True)
class ModelRef:
    """The base model and the settings of its prompts.

    ``path``: a folder, a hub id, a GGUF file, ``package:module/file.gguf``, or a URL of a folder or a GGUF file;
    `cluster.node_cache` turns it into a folder or a hub id.
    """

    path: str
    dtype: str
    prompts: PromptSettings
    trust_remote_code: bool
    quantization: Quantization


@dataclass(frozen=True)
class JobSettings:
    """One generation job. `job.guard` names the settings that decide the output, not just its speed.

    ``adapters``: names of the bank's adapters to use, None for all. ``sentences``: to route sentence by sentence.
    ``parts``: to cut prompts into parts. At most one of these two is given; if none is, records are routed whole.
    """

    input: str
    output: str
    model: ModelRef
    bank: str
    router: str
    adapters: tuple[str, ...] | None
    columns: Columns
    long_prompts: Literal["truncate_left", "truncate_right", "dead_letter"]
    keep_prompt: bool
    sampling: Sampling
    routing: RoutingPolicy
    sentences: SentenceSettings | None
    parts: PartSettings | None
    engine: BackendSettings
    error_budget: float  # share of the records that may be dead letters
    max_errors: int | None  # dead letters; None: only the share counts
    window_records: int
    limit: int | None  # records from the beginning of the input; None: all
    shard_records: int
    shard_adapters: int  # of all mixtures of a shard together
    block_records: int  # routed records that are regrouped into shards together
    file_bytes: int  # of the files that a finished window's shards are merged into
    hang_seconds: float  # without a new pass of the engine
    config: dict[str, Any] = field(default_factory=dict)  # as the user gave it, for run.json
    engine_reason: str = NAMED  # why the job has its engine
    run: str = ""  # id of the run in metrics and logs, set by `job.session.open_session`

    @property
    def engine_choice(self) -> Choice:
        """The engine and the reason for it."""
        return Choice(self.engine.backend, self.engine_reason)

    def with_routing(self, routing: RoutingPolicy) -> "JobSettings":
        """Return these settings with another routing policy, whose fallback the config for `run.json` shows too."""
        shown = self.config.get("routing", {}) | {"fallback": routing.fallback}
        return replace(self, routing=routing, config=self.config | {"routing": shown})

    @property
    def divided_columns(self) -> pa.Schema:
        """The columns of the output for prompts of which each sentence or each part has a mixture of its own."""
        return concat_schemas(*([SENTENCE_MIXTURES] if self.sentences else []), *([PARTS] if self.parts else []))

    @property
    def requested_columns(self) -> pa.Schema:
        """The columns of `records.REQUESTED` that these settings, or the settings of a record, may request."""
        per_record = self.columns.sampling is not None
        has_choices = per_record or self.columns.choices is not None or bool(self.sampling.choices)
        is_requested = {
            "outputs": per_record or self.sampling.n > 1,
            "logprobs": per_record or self.sampling.logprobs is not None,
            "choice_log_likelihoods": has_choices,
            "choice_margin": has_choices,
        }
        return pa.schema([f for f in REQUESTED if is_requested[f.name]])
