"""Log-likelihoods of given answers: sums of token log probabilities after one shared prefill."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch

from pipeline.engine.attention.segment import Segment
from pipeline.engine.attention.slots import Slot, SlotCache
from pipeline.engine.core.engine import Engine
from pipeline.engine.request import Failure, Request

# Each token of a choice needs the logits of the whole vocabulary, which are far larger than its keys and values. So
# choices may have an eighth of the token budget.
_LOGIT_FRACTION = 8


@dataclass(frozen=True)
class Choices:
    """A prompt with its mixture, and the token ids of each answer to choose from (end token included)."""

    request: Request
    choices: Sequence[Sequence[int]]


@dataclass(eq=False)
class _Prompt:
    """A prompt of ``length`` tokens in its slot, and the sums of its choices."""

    item: Choices
    slot: Slot
    length: int
    sums: list[float] = field(init=False)


_Branch = tuple[_Prompt, int, Sequence[int]]
"""One choice: its prompt, its index among the prompt's choices, and its token ids."""


@torch.inference_mode()
def score_choices(
    engine: Engine, items: Iterable[Choices], token_budget: int = 8192
) -> Iterator[tuple[Choices, list[float] | Failure]]:
    """Sum the log probabilities (fp32 log-softmax) of the tokens of each choice, given its prompt.

    Prompts run together, each once. Their choices then follow in the same slot, one after another, and each token
    attends to the prompt and its own choice alone (tree attention, SpecInfer, arXiv 2305.09781): nothing is copied or
    padded. ``token_budget``: prompt tokens per pass (at least one prompt); tokens of choices are limited to an eighth
    of it, because of their logits. Prompts come back longest first; one that exceeds the context or the cache comes
    back with a `Failure`. A choice has the mixture of its request, a prompt the mixtures of the request's spans if any.
    """
    valid = []
    for item in items:
        problem = engine.limits.choices_problem(item.request, [len(tokens) for tokens in item.choices])
        if problem:
            yield item, problem
        else:
            valid.append(item)
    valid.sort(key=lambda item: (-len(item.request.tokens), item.request.id))
    cache = engine.new_cache()
    start = 0
    while start < len(valid):
        group = _allocate_group(cache, valid[start:], token_budget)
        _prefill(engine, group)
        for batch in _batches(group, token_budget // _LOGIT_FRACTION):
            _add_branches(engine, batch)
        for prompt in group:
            is_finite = torch.tensor(prompt.sums).isfinite().all()
            failure = Failure("NonFiniteLogits", "the model gave NaN or infinite logits")
            yield prompt.item, prompt.sums if is_finite else failure
            prompt.slot.lane.release(prompt.slot)
        start += len(group)


def _allocate_group(cache: SlotCache, items: Iterable[Choices], budget: int) -> list[_Prompt]:
    """Allocate slots with room for the choices, for as many of the first prompts as fit the budget and the cache."""
    group: list[_Prompt] = []
    remaining = budget
    for item in items:
        length, longest = len(item.request.tokens), max(map(len, item.choices))
        remaining -= length
        if group and remaining < 0:
            break
        preferred = max(longest, min(sum(map(len, item.choices)), budget // _LOGIT_FRACTION))
        slot = cache.allocate(length + preferred) or cache.allocate(length + longest)
        if slot is None:
            break
        group.append(_Prompt(item, slot, length))
    assert group  # an empty cache holds any prompt within the limits
    return group


def _prefill(engine: Engine, group: list[_Prompt]) -> None:
    """Run the prompts, and start the sum of each choice with its first token."""
    segments = {}
    for prompt in group:
        request = prompt.item.request
        segments[Segment(prompt.slot, request.tokens, 0, request.prompt_spans, kept=(prompt.length - 1,))] = prompt
    packed, logits = engine.runner.forward([*segments])
    for segment, logprobs in zip(packed, logits.float().log_softmax(1), strict=True):
        prompt = segments[segment]
        prompt.sums = [float(logprobs[tokens[0]]) for tokens in prompt.item.choices]


def _batches(group: Sequence[_Prompt], max_tokens: int) -> Iterator[list[_Branch]]:
    """Batch choices of two tokens or more: at most ``max_tokens`` tokens each, within the free room of their slots."""
    batch: list[_Branch] = []
    num_tokens = 0
    for prompt in group:
        free = capacity = prompt.slot.lane.capacity - prompt.length
        for choice, tokens in enumerate(prompt.item.choices):
            length = len(tokens) - 1
            if batch and length and (num_tokens + length > max_tokens or length > free):
                yield batch
                batch, num_tokens, free = [], 0, capacity
            if length:
                batch.append((prompt, choice, tokens))
                num_tokens, free = num_tokens + length, free - length
    if batch:
        yield batch


def _add_branches(engine: Engine, batch: Sequence[_Branch]) -> None:
    """Add the log probabilities of all tokens but the first, with a pass over all tokens but the last."""
    by_prompt: dict[_Prompt, list[tuple[int, Sequence[int]]]] = {}
    for prompt, choice, tokens in batch:
        by_prompt.setdefault(prompt, []).append((choice, tokens))
    segments = {_branch_segment(prompt, [t[:-1] for _, t in own]): prompt for prompt, own in by_prompt.items()}
    packed, logits = engine.runner.forward([*segments])
    start = 0
    for segment in packed:
        prompt = segments[segment]
        for choice, tokens in by_prompt[prompt]:
            targets = torch.tensor(tokens[1:], device=logits.device).unsqueeze(1)
            # Choice by choice: an fp32 copy of all logits would double the memory of the largest tensor here.
            logprobs = logits[start : start + len(targets)].float().log_softmax(1)
            prompt.sums[choice] += float(logprobs.gather(1, targets).sum())
            start += len(targets)


def _branch_segment(prompt: _Prompt, branches: Sequence[Sequence[int]]) -> Segment:
    """Make the segment of branches that each continue the prompt, one after another in its slot."""
    lengths = [len(branch) for branch in branches]
    tokens = [token for branch in branches for token in branch]
    mask = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    for length, end in zip(lengths, accumulate(lengths), strict=True):
        mask[end - length : end, end - length : end] = torch.ones(length, length, dtype=torch.bool).tril()
    return Segment(
        prompt.slot,
        tokens,
        prompt.length,
        ((0, prompt.item.request.mixture),),
        kept=range(len(tokens)),
        positions=[prompt.length + offset for length in lengths for offset in range(length)],
        branch_mask=mask,
    )
