"""Limits of a model and its KV cache: requests that exceed them are refused before they wait."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pipeline.engine.request import Failure, Request

_LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}


@dataclass(frozen=True)
class PromptLimits:
    """``vocabulary``: number of token ids. ``context``, ``kv_tokens``: positions of the model and of the cache."""

    vocabulary: int
    context: int
    kv_tokens: int

    def problem(self, request: Request, new_tokens: int) -> Failure | None:
        """Return why a prompt with ``new_tokens`` after it cannot be run; None if it can."""
        length, needed = len(request.tokens), len(request.tokens) + new_tokens
        if not length:
            return Failure("EmptyPrompt", "the prompt has no tokens")
        if max(request.tokens) >= self.vocabulary or min(request.tokens) < 0:
            return Failure("BadToken", f"a token id outside the model's vocabulary of {self.vocabulary}")
        if needed > self.context:
            message = f"{length} prompt tokens and {new_tokens} new ones exceed the context of {self.context}"
            return Failure("PromptTooLong", message)
        if needed > self.kv_tokens:
            return Failure("KvBudget", f"{needed} tokens exceed the KV cache of {self.kv_tokens}: raise kv_tokens")
        return None

    def choices_problem(self, request: Request, lengths: Collection[int]) -> Failure | None:
        """Return why choices of ``lengths`` tokens cannot be scored after a prompt; None if they can."""
        if not lengths or not all(lengths):
            return Failure("EmptyChoice", "there are no choices, or one has no tokens")
        return self.problem(request, max(lengths))


def end_tokens(generation_config: Any, tokenizer: Any) -> set[int]:
    """Return the token ids that end an answer, from the model's generation config and the tokenizer."""
    configured = getattr(generation_config, "eos_token_id", None)
    ends = set(configured if isinstance(configured, list) else [configured])
    return {int(token) for token in ends | {tokenizer.eos_token_id} if token is not None}


def context_length(config: Any) -> int:
    """Return the positions of a model; for RoPE types that change with the longest text, those before the change."""
    text = config.get_text_config()
    context = int(getattr(text, "max_position_embeddings", 0) or 2**31)
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    for kind in kinds:
        if kind.get("rope_type") in _LENGTH_DEPENDENT_ROPE:
            context = min(context, int(kind.get("original_max_position_embeddings") or context))
    return context
