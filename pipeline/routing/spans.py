"""Routes of the sentences of a prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

from pipeline.records import Mixture, Spans

from .policy import RoutingPolicy
from .router import Route, Router
from .sentences import Sentences


@dataclass(frozen=True)
class SentenceRoute:
    """What the router says of a prompt sentence by sentence.

    ``spans``: each sentence's mixture. ``score``: the best in-domain score of a sentence; ``fallback``: that one is
    below the threshold too. ``context``: first token of the last paragraph, which tells what is asked for.
    """

    spans: Spans
    score: float
    fallback: bool
    context: int

    @property
    def mixture(self) -> Mixture:
        """The last sentence's: the answer starts with it."""
        return self.spans[-1][1]


def route_sentences(
    router: Router,
    policy: RoutingPolicy,
    prompts: Sequence[Sequence[int]],
    sentences: Sequence[Sentences],
    context_sentences: int,
) -> list[SentenceRoute]:
    """One route for each prompt (token ids) that is divided into sentences.

    The router sees a sentence to its end, and ``context_sentences`` before it of the same paragraph. It sees no more,
    because it takes the mean over all tokens: of a whole prompt, the tasks of other parts would drown the sentence's.
    """
    shown = [list(shown_of(p, s, context_sentences)) for p, s in zip(prompts, sentences, strict=True)]
    routes = iter(router.route(list(chain.from_iterable(shown)), policy))
    return [_joined(divided, [next(routes) for _ in divided]) for divided in sentences]


def shown_of(prompt: Sequence[int], sentences: Sentences, context: int) -> Iterator[Sequence[int]]:
    """What the router is shown of each sentence of a prompt (token ids); see `route_sentences`."""
    ends = [*(s.start for s in sentences[1:]), len(prompt)]
    for number, (sentence, end) in enumerate(zip(sentences, ends, strict=True)):
        yield prompt[max(sentence.paragraph, sentences[max(0, number - context)].start) : end]


def _joined(sentences: Sentences, routes: Sequence[Route]) -> SentenceRoute:
    # A sentence that the router knows nothing about ("Think step by step.") goes on with the mixture before it.
    mixtures = accumulate(routes, lambda held, r: held if r.fallback else r.mixture, initial=Mixture())
    next(mixtures)
    return SentenceRoute(
        spans=tuple((s.start, mixture) for s, mixture in zip(sentences, mixtures, strict=True)),
        score=max(route.score for route in routes),
        fallback=all(route.fallback for route in routes),
        context=sentences[-1].paragraph,
    )
