"""How likely a model finds each of some given answers: sums of log probabilities after one shared prefill."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from .batch import Batch
from .cache import RowCache
from .engine import Engine
from .request import Failure, Request
from .row import Row

# A position of a choice holds the logits of the whole vocabulary, which outweigh its keys and values by far.
_LOGIT_SHARE = 8

Line = tuple[int, Sequence[int]]
"""One choice: the place of its prompt in the group, and its token ids."""


@dataclass(frozen=True)
class Choices:
    """A prompt with its mixture, and the token ids of each answer to choose from (end token included)."""

    request: Request
    choices: Sequence[Sequence[int]]


@torch.inference_mode()
def score_choices(
    engine: Engine, asked: Iterable[Choices], token_budget: int = 8192
) -> Iterator[tuple[Choices, list[float] | Failure]]:
    """Sum of log probabilities, fp32 log-softmax, of the tokens of each choice given its prompt.

    Prompts of like length are prefilled together, each once; its keys and values are then repeated for its choices,
    which run in one forward, padded on the right. ``token_budget``: positions in the cache at a time, padding
    included (one choice at least); of the logits, an eighth of it. Prompts come back longest first; one that does
    not fit the context comes back with a `Failure`. A choice has the mixture of its request, its prompt those of the
    request's spans where it has some.
    """
    fitting = []
    for item in asked:
        problem = _problem(item, engine.context)
        if problem:
            yield item, problem
        else:
            fitting.append(item)
    fitting.sort(key=lambda item: (-len(item.request.tokens), item.request.id))
    while fitting:
        longest = len(fitting[0].request.tokens)
        taken = max(1, token_budget // longest)
        yield from _score_group(engine, fitting[:taken], token_budget)
        del fitting[:taken]


def _problem(item: Choices, context: int) -> Failure | None:
    if not item.request.tokens:
        return Failure("EmptyPrompt", "the prompt has no tokens")
    if not item.choices or not all(item.choices):
        return Failure("EmptyChoice", "there are no choices, or one without tokens")
    needed = len(item.request.tokens) + max(map(len, item.choices))
    if needed > context:
        return Failure("PromptTooLong", f"prompt and longest choice have {needed} tokens, the context {context}")
    return None


def _score_group(engine: Engine, group: list[Choices], budget: int) -> Iterator[tuple[Choices, list[float] | Failure]]:
    engine.set_prompt_mixtures([item.request for item in group])
    prompts = Batch(engine.model, [Row(item.request) for item in group])
    lines = [(place, choice) for place, item in enumerate(group) for choice in item.choices]
    sums: list[list[float]] = [[] for _ in group]
    for part in _parts(lines, prompts.mask.shape[1], budget):
        engine.lora.set_mixtures([group[place].request.mixture for place, _ in part])
        for (place, _), total in zip(part, _log_probabilities(engine, prompts, part), strict=True):
            sums[place].append(total)
    for item, totals in zip(group, sums, strict=True):
        finite = torch.tensor(totals).isfinite().all()
        yield item, totals if finite else Failure("NonFiniteLogits", "the model gave NaN or infinite logits")


def _parts(lines: list[Line], prompt_length: int, budget: int) -> Iterator[list[Line]]:
    """Lines that run together: within the budget of cache positions and within that of logits."""
    part: list[Line] = []
    longest = 0
    for line in lines:
        rows, length = len(part) + 1, max(longest, len(line[1]))
        if part and (rows * (prompt_length + length) > budget or rows * length > budget // _LOGIT_SHARE):
            yield part
            part, length = [], len(line[1])
        part.append(line)
        longest = length
    yield part


def _log_probabilities(engine: Engine, prompts: Batch, part: list[Line]) -> list[float]:
    """Log probability of each line: its first token by the prompt's logits, the others by a forward over the line."""
    device = prompts.mask.device
    places = torch.tensor([place for place, _ in part], device=device)
    first = torch.tensor([tokens[0] for _, tokens in part], device=device)
    total = prompts.logits[places].log_softmax(1).gather(1, first.unsqueeze(1)).squeeze(1)
    if max(len(tokens) for _, tokens in part) == 1:
        return [float(x) for x in total.tolist()]
    logits = _forward(engine, prompts, places, [tokens[:-1] for _, tokens in part])
    for row, (_, tokens) in enumerate(part):
        following = torch.tensor(tokens[1:], dtype=torch.long, device=device).unsqueeze(1)
        # Row by row: an fp32 copy of all logits would double the memory of the largest tensor here.
        total[row] += logits[row, : len(following)].float().log_softmax(1).gather(1, following).sum()
    return [float(x) for x in total.tolist()]


def _forward(engine: Engine, prompts: Batch, places: torch.Tensor, rows: list[Sequence[int]]) -> torch.Tensor:
    """Logits [rows x longest x vocab] of token rows, each after the prompt at its place; padded on the right."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long, device=places.device)
    own = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long, device=places.device)
        own[row, : len(tokens)] = 1
    before = prompts.mask[places]
    positions = before.sum(1, keepdim=True) + torch.arange(longest, device=places.device)
    output = engine.model(
        input_ids=ids,
        attention_mask=torch.cat([before, own], dim=1),
        position_ids=positions.clamp(max=engine.context - 1),  # padding must not run past the position table
        past_key_values=_repeated(prompts.cache, places),
        use_cache=True,
    )
    logits: torch.Tensor = output.logits
    return logits


def _repeated(cache: RowCache, places: torch.Tensor) -> RowCache:
    """A cache of its own with the rows at ``places``, which may repeat; the given one stays as it is."""
    repeated = copy.copy(cache)
    repeated.layers = [copy.copy(layer) for layer in cache.layers]
    repeated.keep(places, 0)
    return repeated
