"""Route stage: each record is tokenised once and gets its mixture."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import pyarrow as pa
import torch

from pipeline.cluster.node_cache import on_this_node
from pipeline.engine import Sampling
from pipeline.models import PromptFormat, load_tokenizer
from pipeline.models.prompt import PlacedTokens
from pipeline.records import ROUTED, SENTENCES, DeadLetter, Prompt, joined, span_rows
from pipeline.routing import Route, Router, SentenceRoute, route_sentences
from pipeline.routing.sentences import Sentences, cut_left, cut_right, of_prompt
from pipeline.settings import JobSettings
from pipeline.telemetry.incidents import Incidents
from pipeline.telemetry.metrics import count_routed

from .record_sampling import RecordSampling
from .shard_plan import DEAD_KEY
from .tables import prompts_of, with_columns, with_dead_letters

_LONGEST_KEPT = 4096  # characters in a list of choices
_CHOICES = 4096  # lists of choices whose tokens are kept; most records share theirs with many


@dataclass(frozen=True)
class Encoded:
    """A prompt as token ids, and its sentences where each is routed for itself."""

    tokens: list[int]
    sentences: Sentences = ()


class RouteRecords:
    """Actor of the route stage; also used without Ray, by `jobs.route`."""

    def __init__(self, settings: JobSettings, context: int, incidents: Incidents | None = None) -> None:
        self.incidents = incidents or Incidents()
        with self.incidents.starting("route"):
            self._start(settings, context)

    def _start(self, settings: JobSettings, context: int) -> None:
        torch.set_num_threads(1)
        settings = on_this_node(settings)
        self.settings = settings
        model = settings.model
        self.prompts = PromptFormat(load_tokenizer(model.folder, model.trust_remote_code), model.prompt_format)
        self.frame = cache(self.prompts.frame)
        self.router = Router.load(settings.router)
        self.context = context
        self.sampling = RecordSampling(settings.sampling)
        self._known_choices = lru_cache(_CHOICES)(self.prompts.encode_answer)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Append the columns of `records.ROUTED`; refused records become dead letters.

        Where sentences are routed, those of `records.SENTENCES` too.
        """
        with self.incidents.telling("route"):
            routed = self._routed(table)
        count_routed(self.settings.run, routed)
        return routed

    def _routed(self, table: pa.Table) -> pa.Table:
        limits, refused = self._limits(table)
        alive = list(limits)
        prompts = prompts_of(table.take(pa.array(alive, pa.int64())))
        encoded, unfit = self.tokenise(prompts, list(limits.values()))
        refused |= {alive[place]: dead for place, dead in unfit.items()}
        by_row = dict(zip(alive, encoded, strict=True))
        routed = {i: by_row[i] for i in alive if i not in refused}
        routes = self._route(list(routed.values()))
        table = with_dead_letters(table, refused)
        schema = joined(ROUTED, SENTENCES) if self.settings.sentences else ROUTED
        return with_columns(table, schema, _columns(table.num_rows, schema, routed, routes))

    def _route(self, prompts: list[Encoded]) -> Sequence[Route | SentenceRoute]:
        tokens, policy = [p.tokens for p in prompts], self.settings.routing
        if self.settings.sentences is None:
            return self.router.route(tokens, policy)
        divided = [p.sentences for p in prompts]
        return route_sentences(self.router, policy, tokens, divided, self.settings.sentences.context_sentences)

    def _limits(self, table: pa.Table) -> tuple[dict[int, int], dict[int, DeadLetter]]:
        """Prompt tokens that the context leaves room for, by the place of the record; and records of bad settings."""
        limits: dict[int, int] = {}
        refused: dict[int, DeadLetter] = {}
        for place, (dead, text) in enumerate(
            zip(table["dead_stage"].to_pylist(), table["sampling"].to_pylist(), strict=True)
        ):
            if dead is not None:
                continue
            try:
                limits[place] = self.context - self._answer_room(self.sampling(text))
            except ValueError as error:
                refused[place] = DeadLetter("route", "BadSampling", str(error))
        return limits, refused

    def _answer_room(self, sampling: Sampling) -> int:
        choices = sampling.choices
        encode = self._known_choices if sum(map(len, choices)) <= _LONGEST_KEPT else self.prompts.encode_answer
        return max(map(len, encode(choices)), default=sampling.max_new_tokens)

    def tokenise(self, prompts: list[Prompt], limits: Sequence[int]) -> tuple[list[Encoded], dict[int, DeadLetter]]:
        """Token ids of each prompt, cut to its limit where the settings say so; refused ones by their place."""
        refused: dict[int, DeadLetter] = {}
        try:
            found = self._encode(prompts)
        except Exception:  # a template may refuse single conversations (roles out of order) with any error
            found = [self._encode_one(prompt, place, refused) for place, prompt in enumerate(prompts)]
        for place, encoded in enumerate(found):
            if place in refused:
                continue
            if not encoded.tokens:
                refused[place] = DeadLetter("route", "EmptyPrompt", "the prompt has no tokens")
            elif len(encoded.tokens) > limits[place]:
                found[place] = self._shortened(encoded, prompts[place], limits[place], place, refused)
        return found, refused

    def _encode(self, prompts: list[Prompt]) -> list[Encoded]:
        if self.settings.sentences is None:
            return [Encoded(tokens) for tokens in self.prompts.encode(prompts)]
        placed = zip(prompts, self.prompts.encode_placed(prompts), strict=True)
        return [Encoded(found.tokens, self._sentences(prompt, found)) for prompt, found in placed]

    def _sentences(self, prompt: Prompt, placed: PlacedTokens) -> Sentences:
        assert self.settings.sentences is not None
        head, tail = map(len, self.frame(isinstance(prompt, list)))
        return of_prompt(placed.text, placed.ends, head, tail, self.settings.sentences)

    def _encode_one(self, prompt: Prompt, place: int, refused: dict[int, DeadLetter]) -> Encoded:
        try:
            return self._encode([prompt])[0]
        except Exception as error:
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            refused[place] = DeadLetter("route", "ChatTemplateError", message)
            return Encoded([])

    def _shortened(
        self, prompt: Encoded, given: Prompt, limit: int, place: int, refused: dict[int, DeadLetter]
    ) -> Encoded:
        ids, sentences = prompt.tokens, prompt.sentences
        head, tail = self.frame(isinstance(given, list))
        shortest = self.settings.sentences.min_sentence_tokens if self.settings.sentences else 0
        policy = self.settings.long_prompts if limit > len(head) + len(tail) else "dead_letter"
        if policy == "truncate_left":
            left = cut_left(sentences, len(ids) - limit, len(head), shortest)
            return Encoded(head + ids[len(head) - limit :], left)
        if policy == "truncate_right":
            kept = limit - len(tail)
            return Encoded(ids[:kept] + tail, cut_right(sentences, kept, shortest))
        refused[place] = DeadLetter(
            "route",
            "PromptTooLong",
            f"{len(ids)} prompt tokens; beside the answer's {self.context - limit} (generation.max_new_tokens) the"
            f" context leaves {max(0, limit)}; input.long_prompts can cut it",
        )
        return prompt


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
