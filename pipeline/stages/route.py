"""Route stage: tokenise each record once, and choose its mixture of adapters."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import pyarrow as pa
import torch

from pipeline.cluster.node_cache import cache_on_node
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
    """Actor of the route stage; `jobs.route` uses it without Ray."""

    def __init__(self, settings: JobSettings, context: int, incidents: Incidents | None = None) -> None:
        self.incidents = incidents or Incidents()
        with self.incidents.recording_start("route"):
            self._start(settings, context)

    def _start(self, settings: JobSettings, context: int) -> None:
        torch.set_num_threads(1)
        settings = cache_on_node(settings)
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
        with self.incidents.recording("route"):
            routed = self._route_table(table)
        count_routed(self.settings.run, routed)
        return routed

    def _route_table(self, table: pa.Table) -> pa.Table:
        limits, refused = self._limits(table)
        alive = list(limits)
        prompts = prompts_of(table.take(pa.array(alive, pa.int64())))
        encoded, unfit = self.tokenise(prompts, list(limits.values()))
        refused |= {alive[index]: dead for index, dead in unfit.items()}
        by_row = dict(zip(alive, encoded, strict=True))
        routed = {i: by_row[i] for i in alive if i not in refused}
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

    def tokenise(self, prompts: list[Prompt], limits: Sequence[int]) -> tuple[list[Encoded], dict[int, DeadLetter]]:
        """Return the token ids of each prompt, cut to its limit if the settings say so, and dead letters by index."""
        refused: dict[int, DeadLetter] = {}
        try:
            encoded = self._encode(prompts)
        except Exception:  # a template may refuse single conversations (roles out of order) with any error
            encoded = [self._encode_one(prompt, index, refused) for index, prompt in enumerate(prompts)]
        for index, one in enumerate(encoded):
            if index in refused:
                continue
            if not one.tokens:
                refused[index] = DeadLetter("route", "EmptyPrompt", "the prompt has no tokens")
            elif len(one.tokens) > limits[index]:
                encoded[index] = self._shorten(one, prompts[index], limits[index], index, refused)
        return encoded, refused

    def _encode(self, prompts: list[Prompt]) -> list[Encoded]:
        if self.settings.sentences is None:
            return [Encoded(tokens) for tokens in self.prompts.encode(prompts)]
        encoded = zip(prompts, self.prompts.encode_with_offsets(prompts), strict=True)
        return [Encoded(found.tokens, self._sentences(prompt, found)) for prompt, found in encoded]

    def _sentences(self, prompt: Prompt, encoded: TokensWithOffsets) -> Sentences:
        assert self.settings.sentences is not None
        head, tail = map(len, self.frame(isinstance(prompt, list)))
        return prompt_sentences(encoded.text, encoded.ends, head, tail, self.settings.sentences)

    def _encode_one(self, prompt: Prompt, index: int, refused: dict[int, DeadLetter]) -> Encoded:
        try:
            return self._encode([prompt])[0]
        except Exception as error:
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            refused[index] = DeadLetter("route", "ChatTemplateError", message)
            return Encoded([])

    def _shorten(
        self, encoded: Encoded, prompt: Prompt, limit: int, index: int, refused: dict[int, DeadLetter]
    ) -> Encoded:
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
        refused[index] = DeadLetter(
            "route",
            "PromptTooLong",
            f"{len(ids)} prompt tokens; beside the answer's {self.context - limit} (generation.max_new_tokens) the"
            f" context leaves {max(0, limit)}; input.long_prompts can cut it",
        )
        return encoded


def _columns(
    rows: int, schema: pa.Schema, routed: dict[int, Encoded], routes: Sequence[Route | SentenceRoute]
) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {f.name: [None] * rows for f in schema}
    columns["mixture"] = [DEAD_KEY] * rows
    for (row, prompt), route in zip(routed.items(), routes, strict=True):
        values: tuple[Any, ...] = (prompt.tokens, route.mixture.key, route.score, route.fallback)
        if isinstance(route, SentenceRoute):
            values += (span_rows(route.spans), route.context)
        for name, value in zip(schema.names, values, strict=True):
            columns[name][row] = value
    return columns
