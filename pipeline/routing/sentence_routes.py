"""Route the sentences of a prompt, each for itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

from pipeline.records import Mixture, Spans

from .policy import RoutingPolicy
from .router import Route, Router
from .sentences import Sentences


@dataclass(frozen=True)
class SentenceRoute:
    """The route of a prompt, sentence by sentence.

    ``spans``: each sentence's mixture. ``score``: the best in-domain score of a sentence; ``fallback``: even this score
    is below the threshold. ``confidence``: of the last sentence, as in `Route`. ``context``: index of the first token
    of the last paragraph, which holds the question.
    """

    spans: Spans
    score: float
    confidence: float
    fallback: bool
    context: int

    @property
    def mixture(self) -> Mixture:
        """Mixture of the last sentence, which the answer starts with."""
        return self.spans[-1][1]


def route_sentences(
    router: Router,
    policy: RoutingPolicy,
    prompts: Sequence[Sequence[int]],
    sentences: Sequence[Sentences],
    context_sentences: int,
) -> list[SentenceRoute]:
    """Return one route for each prompt (token ids) that is split into sentences.

    The router reads a sentence to its end, and ``context_sentences`` before it of the same paragraph. It reads no more,
    because it takes the mean over all tokens: in a whole prompt, the other parts would outweigh the sentence.
    """
    inputs = [list(router_inputs(p, s, context_sentences)) for p, s in zip(prompts, sentences, strict=True)]
    routes = iter(router.route(list(chain.from_iterable(inputs)), policy))
    return [_prompt_route(split, [next(routes) for _ in split]) for split in sentences]


def router_inputs(prompt: Sequence[int], sentences: Sentences, context: int) -> Iterator[Sequence[int]]:
    """Yield the token ids that the router reads for each sentence of a prompt; see `route_sentences`."""
    ends = [*(s.start for s in sentences[1:]), len(prompt)]
    for index, (sentence, end) in enumerate(zip(sentences, ends, strict=True)):
        yield prompt[max(sentence.paragraph, sentences[max(0, index - context)].start) : end]


def _prompt_route(sentences: Sentences, routes: Sequence[Route]) -> SentenceRoute:
    # An out-of-domain sentence ("Think step by step.") keeps the mixture before it; the first one has its fallback.
    mixtures = accumulate(routes, lambda last, r: last if r.fallback else r.mixture, initial=routes[0].mixture)
    next(mixtures)
    return SentenceRoute(
        spans=tuple((s.start, mixture) for s, mixture in zip(sentences, mixtures, strict=True)),
        score=max(route.score for route in routes),
        confidence=routes[-1].confidence,
        fallback=all(route.fallback for route in routes),
        context=sentences[-1].paragraph,
    )
