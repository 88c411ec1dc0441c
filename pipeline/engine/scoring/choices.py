"""Choose one of given answers by their exact likelihoods."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from pipeline.engine.core.engine import Engine
from pipeline.engine.core.parallel_sampling import join_outcomes
from pipeline.engine.overrides import sampling_problem
from pipeline.engine.request import Encode, Failure, Outcome, Request, Sampling
from pipeline.engine.sampling.sampler import choose_tokens, request_generator
from pipeline.records import Completion

from .score import Choices, score_choices


def choose(
    engine: Engine, requests: Iterable[Request], sampling: Sampling, encode: Encode
) -> Iterator[tuple[Request, Outcome]]:
    """Answer each request with its most likely choice, with the log-likelihoods of all of its choices.

    The likelihood of a choice is that of all its tokens and the end token after the prompt. It is not divided by the
    number of tokens, so that the likelihoods of all possible texts sum to 1. A choice is tokenised by itself, as
    adapters are trained on answers: no space is put before it. With a temperature the answer is drawn from the softmax
    of log-likelihood / temperature. Nothing is generated. Among equal likelihoods the first choice wins.
    """
    items = []
    encoded: dict[tuple[str, ...], list[list[int]]] = {}
    for request in requests:
        own = request.sampling or sampling
        problem = sampling_problem(own)
        if problem:
            yield request, Failure("BadSampling", problem)
            continue
        if own.choices not in encoded:
            encoded[own.choices] = encode(own.choices)
        items.append(Choices(request, encoded[own.choices]))
    for item, scores in score_choices(engine, items, engine.settings.prefill_tokens):
        if isinstance(scores, Failure):
            yield item.request, scores
        else:
            yield item.request, choice_outcome(item, scores, item.request.sampling or sampling, engine.settings.seed)


def choice_outcome(item: Choices, scores: list[float], sampling: Sampling, seed: int) -> Outcome:
    """Return the outcome of a request whose choices have the log-likelihoods ``scores``."""
    likelihoods = torch.tensor([scores], dtype=torch.float64)
    probabilities = sorted(likelihoods[0].softmax(0).tolist())
    settings = Sampling(temperature=sampling.temperature)
    outcomes: list[Outcome] = []
    for index in range(sampling.n):
        generator = request_generator(replace(item.request, answer_index=index), sampling, seed)
        choice = int(choose_tokens(likelihoods, [settings], [generator]))
        outcomes.append(
            Completion(
                sampling.choices[choice],
                "choice",
                len(item.request.tokens),
                len(item.choices[choice]),
                choice_log_likelihoods=tuple(scores),
                choice_margin=probabilities[-1] - sum(probabilities[-2:-1]),
                answer_logprob=scores[choice] / len(item.choices[choice]),
            )
        )
    return join_outcomes(outcomes)
