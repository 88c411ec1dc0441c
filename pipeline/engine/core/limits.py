"""What a model, and the memory it is given, can take: prompts that cannot be run are refused before they wait."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pipeline.engine.request import Failure, Request, Sampling

_CHANGING_ROPE = {"dynamic", "longrope"}


@dataclass(frozen=True)
class PromptLimits:
    """``vocabulary``: token ids are below it. ``context``, ``kv_tokens``: positions of the model, and of the cache."""

    vocabulary: int
    context: int
    kv_tokens: int

    def problem(self, request: Request, sampling: Sampling) -> Failure | None:
        """Why the prompt of a request cannot be run; None where it can."""
        if not request.tokens:
            return Failure("EmptyPrompt", "the prompt has no tokens")
        if max(request.tokens) >= self.vocabulary or min(request.tokens) < 0:
            return Failure("BadToken", f"a token id outside the model's vocabulary of {self.vocabulary}")
        needed = len(request.tokens) + sampling.max_new_tokens
        if needed > self.context:
            return Failure(
                "PromptTooLong",
                f"{len(request.tokens)} prompt tokens and {sampling.max_new_tokens} new ones exceed the"
                f" context of {self.context}",
            )
        return self._over_cache(needed)

    def choices_problem(self, request: Request, lengths: Collection[int]) -> Failure | None:
        """Why choices of so many tokens cannot be scored after the prompt of a request; None where they can."""
        if not request.tokens:
            return Failure("EmptyPrompt", "the prompt has no tokens")
        if not lengths or not all(lengths):
            return Failure("EmptyChoice", "there are no choices, or one without tokens")
        needed = len(request.tokens) + max(lengths)
        if needed > self.context:
            return Failure(
                "PromptTooLong", f"prompt and longest choice have {needed} tokens, the context {self.context}"
            )
        return self._over_cache(needed)

    def _over_cache(self, needed: int) -> Failure | None:
        if needed > self.kv_tokens:
            return Failure("KvBudget", f"{needed} tokens exceed the KV cache of {self.kv_tokens}: raise kv_tokens")
        return None


def end_tokens(generation_config: Any, tokenizer: Any) -> set[int]:
    """Token ids that end an answer: those of the model's generation config and the tokenizer's."""
    configured = getattr(generation_config, "eos_token_id", None)
    ends = set(configured if isinstance(configured, list) else [configured])
    return {int(token) for token in ends | {tokenizer.eos_token_id} if token is not None}


def context_length(config: Any) -> int:
    """Positions of the model. Some kinds of RoPE change all positions with the longest text: it must not get there."""
    text = config.get_text_config()
    context = int(getattr(text, "max_position_embeddings", 0) or 2**31)
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    for kind in kinds:
        if kind.get("rope_type") in _CHANGING_ROPE:
            context = min(context, int(kind.get("original_max_position_embeddings") or context))
    return context
