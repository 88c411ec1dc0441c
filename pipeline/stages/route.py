"""Route stage: each record is tokenised once and gets its mixture."""

from typing import Any

import orjson
import pyarrow as pa
import torch

from ..models import PromptFormat, load_tokenizer
from ..records import ROUTED, DeadLetter, Prompt
from ..routing import Route, Router
from .settings import JobSettings
from .tables import with_columns, with_dead_letters

DEAD_KEY = ""  # where the mixture of a dead letter would be: dead letters travel together


class RouteRecords:
    """Actor of the route stage; also used without Ray, by `jobs.route`."""

    def __init__(self, settings: JobSettings, context: int) -> None:
        torch.set_num_threads(1)
        self.settings = settings
        model = settings.model
        self.prompts = PromptFormat(load_tokenizer(model.folder, model.trust_remote_code), model.prompt_format)
        self.router = Router.load(settings.router)
        self.limit = context - settings.sampling.max_new_tokens

    def __call__(self, table: pa.Table) -> pa.Table:
        """Append the columns of `records.ROUTED`; refused records become dead letters."""
        alive = [i for i, dead in enumerate(table["dead_stage"].to_pylist()) if dead is None]
        tokens, refused = self.tokenise(prompts_of(table.take(pa.array(alive, pa.int64()))))
        refused = {alive[place]: dead for place, dead in refused.items()}
        routed = [i for i in alive if i not in refused]
        by_row = dict(zip(alive, tokens, strict=True))
        routes = self.router.route([by_row[i] for i in routed], self.settings.routing)
        table = with_dead_letters(table, refused)
        return with_columns(table, ROUTED, _columns(table.num_rows, routed, by_row, routes))

    def tokenise(self, prompts: list[Prompt]) -> tuple[list[list[int]], dict[int, DeadLetter]]:
        """Token ids of each prompt, cut to the context where the settings say so; refused ones by their place."""
        refused: dict[int, DeadLetter] = {}
        try:
            tokens = self.prompts.encode(prompts)
        except Exception:  # a template may refuse single conversations (roles out of order) with any error
            tokens = [self._encode_one(prompt, place, refused) for place, prompt in enumerate(prompts)]
        for place, ids in enumerate(tokens):
            if place in refused:
                continue
            if not ids:
                refused[place] = DeadLetter("route", "EmptyPrompt", "the prompt has no tokens")
            elif len(ids) > self.limit:
                tokens[place] = self._shortened(ids, prompts[place], place, refused)
        return tokens, refused

    def _encode_one(self, prompt: Prompt, place: int, refused: dict[int, DeadLetter]) -> list[int]:
        try:
            return self.prompts.encode([prompt])[0]
        except Exception as error:
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            refused[place] = DeadLetter("route", "ChatTemplateError", message)
            return []

    def _shortened(self, ids: list[int], prompt: Prompt, place: int, refused: dict[int, DeadLetter]) -> list[int]:
        head, tail = self.prompts.frame(isinstance(prompt, list))
        if self.settings.long_prompts == "truncate_left":
            return head + ids[len(head) - self.limit :]
        if self.settings.long_prompts == "truncate_right":
            return ids[: self.limit - len(tail)] + tail
        refused[place] = DeadLetter(
            "route",
            "PromptTooLong",
            f"{len(ids)} prompt tokens; the context leaves {self.limit} (generation.max_new_tokens is"
            f" {self.settings.sampling.max_new_tokens}); input.long_prompts can cut it",
        )
        return ids


def prompts_of(table: pa.Table) -> list[Prompt]:
    """Prompt text or conversation of each row; empty text where there is neither."""
    pairs = zip(table["prompt"].to_pylist(), table["messages"].to_pylist(), strict=True)
    return [orjson.loads(messages) if messages is not None else prompt or "" for prompt, messages in pairs]


def _columns(rows: int, routed: list[int], tokens: dict[int, list[int]], routes: list[Route]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {f.name: [None] * rows for f in ROUTED}
    columns["mixture"] = [DEAD_KEY] * rows
    for row, route in zip(routed, routes, strict=True):
        values = (tokens[row], route.mixture.key, route.score, route.fallback)
        for name, value in zip(ROUTED.names, values, strict=True):
            columns[name][row] = value
    return columns
