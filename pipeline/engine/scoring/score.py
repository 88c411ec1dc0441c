"""How likely a model finds each of some given answers: sums of log probabilities after one shared prefill."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch

from pipeline.engine.attention.packed import Segment
from pipeline.engine.attention.slots import Slot, SlotCache
from pipeline.engine.core.engine import Engine
from pipeline.engine.request import Failure, Request
from pipeline.engine.spans import prompt_spans

# A position of a choice holds the logits of the whole vocabulary, which outweigh its keys and values by far.
_LOGIT_SHARE = 8

Line = tuple[int, int, Sequence[int]]
"""One choice: the place of its prompt in the group, its number there, and its token ids."""


@dataclass(frozen=True)
class Choices:
    """A prompt with its mixture, and the token ids of each answer to choose from (end token included)."""

    request: Request
    choices: Sequence[Sequence[int]]


@dataclass
class _Prompt:
    """A prompt in its slot, and the sums of its choices."""

    item: Choices
    slot: Slot
    sums: list[float] = field(init=False)

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return len(self.item.request.tokens)


@torch.inference_mode()
def score_choices(
    engine: Engine, asked: Iterable[Choices], token_budget: int = 8192
) -> Iterator[tuple[Choices, list[float] | Failure]]:
    """Sum of log probabilities, fp32 log-softmax, of the tokens of each choice given its prompt.

    Prompts run together, each once. Its choices then follow it in its slot, one after another, and each token sees
    the prompt and its own choice alone (tree attention, SpecInfer, arXiv 2305.09781): nothing is copied or padded.
    ``token_budget``: tokens of prompts that run together (one prompt at least); of choices, for the sake of their
    logits, an eighth of it. Prompts come back longest first; one that does not fit the context comes back with a
    `Failure`. A choice has the mixture of its request, its prompt those of the request's spans where it has some.
    """
    fitting = []
    for item in asked:
        problem = engine.limits.choices_problem(item.request, [len(tokens) for tokens in item.choices])
        if problem:
            yield item, problem
        else:
            fitting.append(item)
    fitting.sort(key=lambda item: (-len(item.request.tokens), item.request.id))
    cache = SlotCache(engine.attention.shapes, engine.model.device, engine.kv_tokens)
    start = 0
    while start < len(fitting):
        group = _place(cache, fitting[start:], token_budget)
        yield from _score_group(engine, group, token_budget)
        start += len(group)
        for prompt in group:
            cache.release(prompt.slot)


def _place(cache: SlotCache, items: Iterable[Choices], budget: int) -> list[_Prompt]:
    """The first prompts, as many as fit the budget and the cache, in slots that hold their choices too."""
    group: list[_Prompt] = []
    left = budget
    for item in items:
        length, longest = len(item.request.tokens), max(map(len, item.choices))
        left -= length
        if group and left < 0:
            break
        most = max(longest, min(sum(map(len, item.choices)), budget // _LOGIT_SHARE))
        slot = cache.reserve(length + most) or cache.reserve(length + longest)
        if slot is None:
            break
        group.append(_Prompt(item, slot))
    assert group  # an empty cache holds any prompt that the limits let through
    return group


def _score_group(engine: Engine, group: list[_Prompt], budget: int) -> Iterator[tuple[Choices, list[float] | Failure]]:
    _prefill(engine, group)
    lines = [(place, number, c) for place, p in enumerate(group) for number, c in enumerate(p.item.choices)]
    for part in _parts(group, lines, budget // _LOGIT_SHARE):
        _add_tails(engine, group, part)
    for prompt in group:
        finite = torch.tensor(prompt.sums).isfinite().all()
        failure = Failure("NonFiniteLogits", "the model gave NaN or infinite logits")
        yield prompt.item, prompt.sums if finite else failure


def _prefill(engine: Engine, group: list[_Prompt]) -> None:
    """Run the prompts, and start the sum of each choice with its first token."""
    segments = {}
    for prompt in group:
        request = prompt.item.request
        segments[Segment(prompt.slot, request.tokens, 0, prompt_spans(request), kept=(prompt.length - 1,))] = prompt
    packed, logits = engine.forward([*segments])
    for segment, following in zip(packed, logits.float().log_softmax(1), strict=True):
        prompt = segments[segment]
        prompt.sums = [float(following[tokens[0]]) for tokens in prompt.item.choices]


def _parts(group: Sequence[_Prompt], lines: Iterable[Line], most: int) -> Iterator[list[Line]]:
    """Choices of two tokens or more that run together: of at most ``most`` tokens, and as their slots have room."""
    part: list[Line] = []
    room: dict[int, int] = {}
    for line in lines:
        place, _, tokens = line
        length = len(tokens) - 1
        if not length:
            continue
        free = group[place].slot.lane.capacity - group[place].length
        if part and (sum(len(t) - 1 for _, _, t in part) + length > most or room.get(place, free) < length):
            yield part
            part, room = [], {}
        room[place] = room.get(place, free) - length
        part.append(line)
    if part:
        yield part


def _add_tails(engine: Engine, group: Sequence[_Prompt], part: Sequence[Line]) -> None:
    """Add the log probabilities of all tokens but the first: those of each choice by a pass over all but its last."""
    tails: dict[int, list[tuple[int, Sequence[int]]]] = {}
    for place, number, tokens in part:
        tails.setdefault(place, []).append((number, tokens))
    segments = {_branches(group[place], [tokens[:-1] for _, tokens in own]): place for place, own in tails.items()}
    packed, logits = engine.forward([*segments])
    start = 0
    for segment in packed:
        place = segments[segment]
        for number, tokens in tails[place]:
            following = torch.tensor(tokens[1:], device=logits.device).unsqueeze(1)
            # Choice by choice: an fp32 copy of all logits would double the memory of the largest tensor here.
            own = logits[start : start + len(following)].float().log_softmax(1)
            group[place].sums[number] += float(own.gather(1, following).sum())
            start += len(following)


def _branches(prompt: _Prompt, branches: Sequence[Sequence[int]]) -> Segment:
    """Token rows that each go on from the prompt, one after another in its slot."""
    lengths = [len(branch) for branch in branches]
    tokens = [token for branch in branches for token in branch]
    sees = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    for length, end in zip(lengths, accumulate(lengths), strict=True):
        sees[end - length : end, end - length : end] = torch.ones(length, length, dtype=torch.bool).tril()
    return Segment(
        prompt.slot,
        tokens,
        prompt.length,
        ((0, prompt.item.request.mixture),),
        kept=range(len(tokens)),
        positions=[prompt.length + place for length in lengths for place in range(length)],
        sees=sees,
    )
