"""Route stage: tokenise each record once, and choose its mixture of adapters."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import pyarrow as pa
import torch

from pipeline.cluster.node_cache import cache_for_routing
from pipeline.engine import Sampling
from pipeline.models import PromptFormat, load_tokenizer
from pipeline.models.prompt import TokensWithOffsets
from pipeline.records import ROUTED, SENTENCES, DeadLetter, Prompt, concat_schemas, span_rows
from pipeline.routing.loading import load_router
from pipeline.routing.router import Route
from pipeline.routing.sentence_routes import SentenceRoute, route_sentences
from pipeline.routing.sentences import Sentences, cut_left, cut_right, prompt_sentences
from pipeline.settings import JobSettings
from pipeline.telemetry.incidents import Incidents
from pipeline.telemetry.metrics import count_routed

from .record_sampling import RecordSampling
from .shard_plan import DEAD_KEY
from .tables import prompts_of, with_columns, with_dead_letters

_MAX_CACHED_LENGTH = 4096  # characters of a list of choices
_CACHED_CHOICES = 4096  # lists of choices whose tokens are kept; most records share theirs with many others


@dataclass(frozen=True)
class Encoded:
    """A prompt as token ids, and its sentences if they are routed one by one."""

    tokens: list[int]
    sentences: Sentences = ()


class RouteRecords:
    """Actor of the route stage; `loraloom route` uses it without Ray."""

    def __init__(self, settings: JobSettings, context: int, incidents: Incidents | None = None) -> None:
        self.incidents = incidents or Incidents()
        with self.incidents.recording_start("route"):
            self._start(settings, context)

    def _start(self, settings: JobSettings, context: int) -> None:
        torch.set_num_threads(1)
        settings = cache_for_routing(settings)
        self.settings = settings
        model = settings.model
        self.prompts = PromptFormat(load_tokenizer(model.path, model.trust_remote_code), model.prompt_format)
        self.frame = cache(self.prompts.template_tokens)
        self.router = load_router(settings.router)
        self.context = context
        self.sampling = RecordSampling(settings.sampling)
        self._known_choices = lru_cache(_CACHED_CHOICES)(self.prompts.encode_answer)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Append the columns of `records.ROUTED`, and of `records.SENTENCES` if sentences are routed one by one.

        Records that cannot be routed become dead letters.
        """
        with self.incidents.recording("route", records=table.num_rows):
            routed = self._route_table(table)
        count_routed(self.settings.run, routed)
        return routed

    def _route_table(self, table: pa.Table) -> pa.Table:
        limits, refused = self._limits(table)
        prompts = prompts_of(table.take(pa.array(list(limits), pa.int64())))
        encoded = dict(zip(limits, self.tokenise(prompts, list(limits.values())), strict=True))
        refused |= {row: found for row, found in encoded.items() if isinstance(found, DeadLetter)}
        routed = {row: found for row, found in encoded.items() if isinstance(found, Encoded)}
        routes = self._route(list(routed.values()))
        table = with_dead_letters(table, refused)
        schema = concat_schemas(ROUTED, SENTENCES) if self.settings.sentences else ROUTED
        return with_columns(table, schema, _columns(table.num_rows, schema, routed, routes))

    def _route(self, prompts: list[Encoded]) -> Sequence[Route | SentenceRoute]:
        tokens, policy = [p.tokens for p in prompts], self.settings.routing
        if self.settings.sentences is None:
            return self.router.route(tokens, policy)
        divided = [p.sentences for p in prompts]
        return route_sentences(self.router, policy, tokens, divided, self.settings.sentences.context_sentences)

    def _limits(self, table: pa.Table) -> tuple[dict[int, int], dict[int, DeadLetter]]:
        """Return the maximum number of prompt tokens by row, and a dead letter for each row of bad settings."""
        limits: dict[int, int] = {}
        refused: dict[int, DeadLetter] = {}
        settings = zip(table["dead"].to_pylist(), table["sampling"].to_pylist(), strict=True)
        for row, (dead, text) in enumerate(settings):
            if dead is not None:
                continue
            try:
                limits[row] = self.context - self._max_answer_tokens(self.sampling(text))
            except ValueError as error:
                refused[row] = DeadLetter("route", "BadSampling", str(error))
        return limits, refused

    def _max_answer_tokens(self, sampling: Sampling) -> int:
        choices = sampling.choices
        encode = self._known_choices if sum(map(len, choices)) <= _MAX_CACHED_LENGTH else self.prompts.encode_answer
        return max(map(len, encode(choices)), default=sampling.max_new_tokens)

    def tokenise(self, prompts: list[Prompt], limits: Sequence[int]) -> list[Encoded | DeadLetter]:
        """Return each prompt as tokens, cut to its limit if the settings say so, or the reason why it is refused."""
        encoded: Sequence[Encoded | DeadLetter]
        try:
            encoded = self._encode(prompts)
        except Exception:  # a template may refuse single conversations (roles out of order) with any error
            encoded = [self._encode_one(prompt) for prompt in prompts]
        return [self._fit(*found) for found in zip(encoded, prompts, limits, strict=True)]

    def _encode(self, prompts: list[Prompt]) -> list[Encoded]:
        if self.settings.sentences is None:
            return [Encoded(tokens) for tokens in self.prompts.encode(prompts)]
        encoded = zip(prompts, self.prompts.encode_with_offsets(prompts), strict=True)
        return [Encoded(found.tokens, self._sentences(prompt, found)) for prompt, found in encoded]

    def _sentences(self, prompt: Prompt, encoded: TokensWithOffsets) -> Sentences:
        assert self.settings.sentences is not None
        head, tail = map(len, self.frame(isinstance(prompt, list)))
        return prompt_sentences(encoded.text, encoded.ends, head, tail, self.settings.sentences)

    def _encode_one(self, prompt: Prompt) -> Encoded | DeadLetter:
        try:
            return self._encode([prompt])[0]
        except Exception as error:
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            return DeadLetter("route", "ChatTemplateError", message)

    def _fit(self, encoded: Encoded | DeadLetter, prompt: Prompt, limit: int) -> Encoded | DeadLetter:
        if isinstance(encoded, DeadLetter) or 0 < len(encoded.tokens) <= limit:
            return encoded
        if not encoded.tokens:
            return DeadLetter("route", "EmptyPrompt", "the prompt has no tokens")
        ids, sentences = encoded.tokens, encoded.sentences
        head, tail = self.frame(isinstance(prompt, list))
        shortest = self.settings.sentences.min_sentence_tokens if self.settings.sentences else 0
        policy = self.settings.long_prompts if limit > len(head) + len(tail) else "dead_letter"
        if policy == "truncate_left":
            left = cut_left(sentences, len(ids) - limit, len(head), shortest)
            return Encoded(head + ids[len(head) - limit :], left)
        if policy == "truncate_right":
            kept = limit - len(tail)
            return Encoded(ids[:kept] + tail, cut_right(sentences, kept, shortest))
        return DeadLetter(
            "route",
            "PromptTooLong",
            f"{len(ids)} prompt tokens; beside the answer's {self.context - limit} (generation.max_new_tokens) the"
            f" context leaves {max(0, limit)}; input.long_prompts can cut it",
        )


def _columns(
    rows: int, schema: pa.Schema, routed: dict[int, Encoded], routes: Sequence[Route | SentenceRoute]
) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {f.name: [None] * rows for f in schema}
    columns["mixture"] = [DEAD_KEY] * rows
    for (row, prompt), route in zip(routed.items(), routes, strict=True):
        values: tuple[Any, ...] = (prompt.tokens, route.mixture.key, route.score, route.confidence, route.fallback)
        if isinstance(route, SentenceRoute):
            values += (span_rows(route.spans), route.context)
        for name, value in zip(schema.names, values, strict=True):
            columns[name][row] = value
    return columns
