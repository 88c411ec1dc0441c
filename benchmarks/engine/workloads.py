"""Workloads: prompts of random tokens or of the demo, numbers of new tokens, mixtures."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.engine import Request, Sampling
from pipeline.records import Mixture

VOCABULARY = 40_000  # random prompts have ordinary tokens


@dataclass(frozen=True)
class Workload:
    """Requests with a fixed number of new tokens each, so that every variant does the same work."""

    requests: list[Request]

    @property
    def new_tokens(self) -> list[int]:
        """The number of new tokens of each request."""
        return [request.sampling.max_new_tokens for request in self.requests if request.sampling]

    @property
    def tokens(self) -> int:
        """The number of new tokens of all requests."""
        return sum(self.new_tokens)

    def with_mixtures(self, mixtures: Sequence[Mixture]) -> "Workload":
        """Return the same requests with mixtures assigned in turn."""
        return Workload([replace(r, mixture=mixtures[i % len(mixtures)]) for i, r in enumerate(self.requests)])


def workload(prompts: Sequence[Sequence[int]], new_tokens: Sequence[int]) -> Workload:
    """Return requests for the base model."""
    pairs = zip(prompts, new_tokens, strict=True)
    return Workload(
        [
            Request(str(i), list(prompt), Mixture(), sampling=Sampling(max_new_tokens=new, min_new_tokens=new))
            for i, (prompt, new) in enumerate(pairs)
        ]
    )


def even(rows: int, prompt: int, new_tokens: int) -> Workload:
    """Return random prompts of one length."""
    rng = random.Random(0)
    return workload([_prompt(rng, prompt) for _ in range(rows)], [new_tokens] * rows)


def skewed(rows: int, prompt: int = 512, new_tokens: int = 96) -> Workload:
    """Return prompts and answers of realistic lengths: most short, few long (log-normal, cut)."""
    rng = random.Random(0)
    prompts = [_prompt(rng, _length(rng, 90, 8, prompt)) for _ in range(rows)]
    return workload(prompts, [_length(rng, 16, 2, new_tokens) for _ in range(rows)])


def mixtures(names: Sequence[str], adapters: int, distinct: int) -> list[Mixture]:
    """Draw ``distinct`` mixtures of ``adapters`` adapters each from the whole bank."""
    rng = random.Random(1)
    chosen = [rng.sample(list(names), adapters) for _ in range(distinct)]
    return [Mixture.of(dict.fromkeys(sorted(some), 1 / adapters)) for some in chosen]


def _prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(100, VOCABULARY) for _ in range(length)]


def _length(rng: random.Random, median: int, minimum: int, maximum: int) -> int:
    return max(minimum, min(maximum, int(median * rng.lognormvariate(0, 1))))
