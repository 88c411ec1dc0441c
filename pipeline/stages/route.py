"""Route stage: each record is tokenised once and gets its mixture."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa
import torch

from ..models import PromptFormat, load_tokenizer
from ..models.prompt import PlacedTokens
from ..records import ROUTED, SENTENCES, DeadLetter, Prompt, joined, span_rows
from ..routing import Route, Router, SentenceRoute, route_sentences
from ..routing.sentences import Sentences, cut_left, cut_right, of_prompt
from .settings import JobSettings
from .tables import prompts_of, with_columns, with_dead_letters

DEAD_KEY = ""  # where the mixture of a dead letter would be: dead letters travel together


@dataclass(frozen=True)
class Encoded:
    """A prompt as token ids, and its sentences where each is routed for itself."""

    tokens: list[int]
    sentences: Sentences = ()


class RouteRecords:
    """Actor of the route stage; also used without Ray, by `jobs.route`."""

    def __init__(self, settings: JobSettings, context: int) -> None:
        torch.set_num_threads(1)
        self.settings = settings
        model = settings.model
        self.prompts = PromptFormat(load_tokenizer(model.folder, model.trust_remote_code), model.prompt_format)
        self.frame = cache(self.prompts.frame)
        self.router = Router.load(settings.router)
        self.limit = context - settings.sampling.max_new_tokens

    def __call__(self, table: pa.Table) -> pa.Table:
        """Append the columns of `records.ROUTED`; refused records become dead letters.

        Where sentences are routed, those of `records.SENTENCES` too.
        """
        alive = [i for i, dead in enumerate(table["dead_stage"].to_pylist()) if dead is None]
        encoded, refused = self.tokenise(prompts_of(table.take(pa.array(alive, pa.int64()))))
        refused = {alive[place]: dead for place, dead in refused.items()}
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

    def tokenise(self, prompts: list[Prompt]) -> tuple[list[Encoded], dict[int, DeadLetter]]:
        """Token ids of each prompt, cut to the context where the settings say so; refused ones by their place."""
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
            elif len(encoded.tokens) > self.limit:
                found[place] = self._shortened(encoded, prompts[place], place, refused)
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

    def _shortened(self, prompt: Encoded, given: Prompt, place: int, refused: dict[int, DeadLetter]) -> Encoded:
        ids, sentences = prompt.tokens, prompt.sentences
        head, tail = self.frame(isinstance(given, list))
        shortest = self.settings.sentences.min_sentence_tokens if self.settings.sentences else 0
        if self.settings.long_prompts == "truncate_left":
            left = cut_left(sentences, len(ids) - self.limit, len(head), shortest)
            return Encoded(head + ids[len(head) - self.limit :], left)
        if self.settings.long_prompts == "truncate_right":
            kept = self.limit - len(tail)
            return Encoded(ids[:kept] + tail, cut_right(sentences, kept, shortest))
        refused[place] = DeadLetter(
            "route",
            "PromptTooLong",
            f"{len(ids)} prompt tokens; the context leaves {self.limit} (generation.max_new_tokens is"
            f" {self.settings.sampling.max_new_tokens}); input.long_prompts can cut it",
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
