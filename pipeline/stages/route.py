"""Route stage: tokenise each record once, and choose its mixture of adapters."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, chain
from typing import Any

import pyarrow as pa
import torch

from pipeline.cluster.node_cache import cache_for_routing
from pipeline.engine import Sampling
from pipeline.errors import one_line
from pipeline.models import PromptError, PromptFormat, load_tokenizer
from pipeline.models.prompt import Rendered, TokensWithOffsets
from pipeline.records import (
    PROMPT_PARTS,
    ROUTED,
    SENTENCES,
    Conversation,
    DeadLetter,
    Prompt,
    concat_schemas,
    span_rows,
)
from pipeline.routing.loading import load_router
from pipeline.routing.part_routes import PartCutter, PartRoute, PromptPart
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
    """A prompt as token ids, its sentences if they are routed one by one, and the ``mark`` of its item if it is one."""

    tokens: list[int]
    sentences: Sentences = ()
    mark: str = ""


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
        self.prompts = PromptFormat(load_tokenizer(model.path, model.trust_remote_code), model.prompts)
        self.router = load_router(settings.router)
        self._cutter = None
        if settings.parts is not None:
            self._cutter = PartCutter(self.prompts, self.router, settings.routing, settings.parts)
        self.context = context
        self.sampling = RecordSampling(settings.sampling)
        self._known_choices = lru_cache(_CACHED_CHOICES)(self.prompts.encode_answer)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Append the columns of `records.ROUTED`.

        Appends `records.SENTENCES` too if sentences are routed one by one, or `records.PROMPT_PARTS` if prompts are cut
        into parts. Records that cannot be routed become dead letters.
        """
        with self.incidents.recording("route", records=table.num_rows):
            routed = self._route_table(table)
        count_routed(self.settings.run, routed)
        return routed

    def _route_table(self, table: pa.Table) -> pa.Table:
        samplings, refused = self._samplings(table)
        prompts = prompts_of(table.take(pa.array(list(samplings), pa.int64())))
        parts = self._cut(prompts, list(samplings.values()))
        encoded = dict(zip(samplings, self._encode_parts(parts, list(samplings.values())), strict=True))
        refused |= {row: found for row, found in encoded.items() if isinstance(found, DeadLetter)}
        routed = {row: found for row, found in encoded.items() if not isinstance(found, DeadLetter)}
        routes = iter(self._route(list(chain.from_iterable(routed.values()))))
        rows = {row: _values(found, [next(routes) for _ in found]) for row, found in routed.items()}
        for row, prompt in zip(samplings, prompts, strict=True):
            if row in rows:
                rows[row]["last_assistant"] = isinstance(prompt, Conversation) and prompt.ends_with_assistant
        schema = concat_schemas(ROUTED, *([SENTENCES] if self.settings.sentences else []))
        schema = concat_schemas(schema, *([PROMPT_PARTS] if self._cutter else []))
        return with_columns(with_dead_letters(table, refused), schema, _columns(table.num_rows, schema, rows))

    def _cut(self, prompts: Sequence[Prompt], samplings: Sequence[Sampling]) -> list[list[PromptPart]]:
        """Return the parts of each prompt. Answers that cannot be joined are not asked for in parts."""
        cut = [[PromptPart(prompt)] for prompt in prompts]
        if self._cutter is not None:
            rows = [row for row, sampling in enumerate(samplings) if sampling.is_one_text]
            for row, parts in zip(rows, self._cutter.cut([prompts[row] for row in rows]), strict=True):
                cut[row] = parts
        return cut

    def _encode_parts(
        self, cut: Sequence[Sequence[PromptPart]], samplings: Sequence[Sampling]
    ) -> list[list[Encoded] | DeadLetter]:
        """Return the parts of each prompt as tokens, or why one of them is refused."""
        limits = [self.context - self._max_answer_tokens(sampling) for sampling in samplings]
        flat = [(part.prompt, limit) for parts, limit in zip(cut, limits, strict=True) for part in parts]
        encoded = iter(self.tokenise([prompt for prompt, _ in flat], [limit for _, limit in flat]))
        return [_with_marks(parts, [next(encoded) for _ in parts]) for parts in cut]

    def _route(self, prompts: list[Encoded]) -> Sequence[Route | SentenceRoute]:
        tokens, policy = [p.tokens for p in prompts], self.settings.routing
        if self.settings.sentences is None:
            return self.router.route(tokens, policy)
        divided = [p.sentences for p in prompts]
        return route_sentences(self.router, policy, tokens, divided, self.settings.sentences.context_sentences)

    def _samplings(self, table: pa.Table) -> tuple[dict[int, Sampling], dict[int, DeadLetter]]:
        """Return the sampling settings by row, and a dead letter for each row of bad settings."""
        samplings: dict[int, Sampling] = {}
        refused: dict[int, DeadLetter] = {}
        settings = zip(table["dead"].to_pylist(), table["sampling"].to_pylist(), strict=True)
        for row, (dead, text) in enumerate(settings):
            if dead is not None:
                continue
            try:
                samplings[row] = self.sampling(text)
            except ValueError as error:
                refused[row] = DeadLetter("route", "BadSampling", str(error))
        return samplings, refused

    def _max_answer_tokens(self, sampling: Sampling) -> int:
        choices = sampling.choices
        encode = self._known_choices if sum(map(len, choices)) <= _MAX_CACHED_LENGTH else self.prompts.encode_answer
        return max(map(len, encode(choices)), default=sampling.max_new_tokens)

    def tokenise(self, prompts: list[Prompt], limits: Sequence[int]) -> list[Encoded | DeadLetter]:
        """Return each prompt as tokens, cut to its limit if the settings say so, or the reason why it is refused."""
        rendered = [self._render(prompt) for prompt in prompts]
        alive = [(prompt, one) for prompt, one in zip(prompts, rendered, strict=True) if isinstance(one, Rendered)]
        tokens = iter(self._encode([prompt for prompt, _ in alive], [one for _, one in alive]))
        encoded = [one if isinstance(one, DeadLetter) else next(tokens) for one in rendered]
        return [self._fit(*found) for found in zip(encoded, prompts, limits, strict=True)]

    def _render(self, prompt: Prompt) -> Rendered | DeadLetter:
        try:
            return self.prompts.render(prompt)
        except PromptError as error:
            return DeadLetter("route", error.error_type, one_line(error))

    def _encode(self, prompts: Sequence[Prompt], rendered: Sequence[Rendered]) -> list[Encoded]:
        if self.settings.sentences is None:
            return [Encoded(tokens) for tokens in self.prompts.tokenise(rendered)]
        encoded = zip(prompts, self.prompts.tokenise_with_offsets(rendered), strict=True)
        return [Encoded(found.tokens, self._sentences(prompt, found)) for prompt, found in encoded]

    def _sentences(self, prompt: Prompt, encoded: TokensWithOffsets) -> Sentences:
        assert self.settings.sentences is not None
        head, tail = map(len, self.prompts.template_tokens(prompt))
        return prompt_sentences(encoded.text, encoded.ends, head, tail, self.settings.sentences)

    def _fit(self, encoded: Encoded | DeadLetter, prompt: Prompt, limit: int) -> Encoded | DeadLetter:
        if isinstance(encoded, DeadLetter) or 0 < len(encoded.tokens) <= limit:
            return encoded
        if not encoded.tokens:
            return DeadLetter("route", "EmptyPrompt", "the prompt has no tokens")
        if limit <= 0:  # the job's own settings leave some: `job.preflight`
            problem = (
                f"an answer of {self.context - limit} tokens (max_tokens or choices of the record) leaves no room for a"
                f" prompt in the model's context of {self.context}"
            )
            return DeadLetter("route", "BadSampling", problem)
        ids, sentences = encoded.tokens, encoded.sentences
        head, tail = self.prompts.template_tokens(prompt)
        shortest = self.settings.sentences.min_sentence_tokens if self.settings.sentences else 0
        is_without_frame = isinstance(prompt, Conversation) and not (head or tail)
        can_cut = limit > len(head) + len(tail) and not is_without_frame
        policy = self.settings.long_prompts if can_cut else "dead_letter"
        if policy == "truncate_left":
            left = cut_left(sentences, len(ids) - limit, len(head), shortest)
            return Encoded(head + ids[len(head) - limit :], left)
        if policy == "truncate_right":
            kept = limit - len(tail)
            return Encoded(ids[:kept] + tail, cut_right(sentences, kept, shortest))
        return DeadLetter(
            "route",
            "PromptTooLong",
            f"{len(ids)} prompt tokens; beside the answer's {self.context - limit} (generation.max_new_tokens, or"
            f" max_tokens of the record) the context leaves {limit}; input.long_prompts can cut it",
        )


def _with_marks(parts: Sequence[PromptPart], encoded: Sequence[Encoded | DeadLetter]) -> list[Encoded] | DeadLetter:
    found: list[Encoded] = []
    for number, (part, one) in enumerate(zip(parts, encoded, strict=True), 1):
        if isinstance(one, DeadLetter):
            where = f"part {number} of {len(parts)}: " if len(parts) > 1 else ""
            return replace(one, message=where + one.message)
        found.append(replace(one, mark=part.mark) if part.mark else one)
    return found


def _values(parts: Sequence[Encoded], routes: Sequence[Route | SentenceRoute]) -> dict[str, Any]:
    """Return the values of a routed row by column."""
    route: Route | SentenceRoute | PartRoute = routes[0]
    if len(routes) > 1:
        mixtures = tuple(each.mixture for each in routes)
        route = PartRoute(
            mixtures,
            score=max(each.score for each in routes),
            confidence=min(each.confidence for each in routes),
            fallback=all(each.fallback for each in routes),
        )
    values = {
        "tokens": list(chain.from_iterable(part.tokens for part in parts)),
        "mixture": route.mixture.key,
        "route_score": route.score,
        "route_confidence": route.confidence,
        "fallback": route.fallback,
    }
    if isinstance(route, SentenceRoute):
        values |= {"spans": span_rows(route.spans), "context": route.context}
    if isinstance(route, PartRoute):
        starts = accumulate((len(part.tokens) for part in parts[:-1]), initial=0)
        values["prompt_parts"] = [
            {"start": start, "mixture": mixture.key, "mark": part.mark}
            for start, mixture, part in zip(starts, route.mixtures, parts, strict=True)
        ]
    return values


def _columns(rows: int, schema: pa.Schema, routed: dict[int, dict[str, Any]]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {f.name: [None] * rows for f in schema}
    columns["mixture"] = [DEAD_KEY] * rows
    for row, values in routed.items():
        for name, value in values.items():
            columns[name][row] = value
    return columns
