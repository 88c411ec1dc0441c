"""Answers that are one of some given strings, by their exact likelihoods."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from pipeline.engine.core.answers import Answer, together
from pipeline.engine.core.engine import Engine
from pipeline.engine.overrides import sampling_problem
from pipeline.engine.request import Failure, Request, Reroute, Sampling
from pipeline.engine.sampling.decoder import request_generator
from pipeline.engine.sampling.sampler import choose_tokens
from pipeline.records import Completion

from .score import Choices, score_choices

Encode = Callable[[Sequence[str]], list[list[int]]]
"""Token ids of some answers, each with the end token; see `models.PromptFormat.encode_answer`."""


def answer(
    engine: Engine, requests: Iterable[Request], sampling: Sampling, encode: Encode, reroute: Reroute | None = None
) -> Iterator[Answer]:
    """Answer each request by its own settings, else by ``sampling``: generated, or chosen where these name choices."""
    generated: list[Request] = []
    chosen: list[Request] = []
    for request in requests:
        (chosen if (request.sampling or sampling).choices else generated).append(request)
    yield from engine.generate(generated, sampling, reroute)
    yield from choose(engine, chosen, sampling, encode)


def choose(engine: Engine, requests: Iterable[Request], sampling: Sampling, encode: Encode) -> Iterator[Answer]:
    """The choice of highest likelihood for each request, with the log-likelihoods of all of its choices.

    The likelihood of a choice is that of all its tokens and the end token after the prompt: not per token, so that over
    all possible texts they sum to 1. The tokens are those of the choice by itself, as adapters are trained on answers:
    no space is put before it. With a temperature the answer is drawn from the softmax of log-likelihood / temperature.
    Nothing is generated; equal likelihoods go to the choice that is named first.
    """
    asked = []
    tokens: dict[tuple[str, ...], list[list[int]]] = {}
    for request in requests:
        choices = (request.sampling or sampling).choices
        problem = sampling_problem(request.sampling or sampling)
        if problem:
            yield request, Failure("BadSampling", problem)
            continue
        if choices not in tokens:
            tokens[choices] = encode(choices)
        asked.append(Choices(request, tokens[choices]))
    for item, scores in score_choices(engine, asked, engine.settings.prefill_tokens):
        if isinstance(scores, Failure):
            yield item.request, scores
        else:
            yield item.request, chosen(item, scores, item.request.sampling or sampling, engine.settings.seed)


def chosen(item: Choices, scores: list[float], sampling: Sampling, seed: int) -> Completion | Failure:
    """The answer to a request whose choices have the log-likelihoods ``scores``."""
    answers: list[Completion | Failure] = []
    for number in range(sampling.n):
        place = _pick(scores, sampling, request_generator(replace(item.request, number=number), sampling, seed))
        answers.append(
            Completion(
                sampling.choices[place],
                "choice",
                len(item.request.tokens),
                len(item.choices[place]),
                choice_log_likelihoods=tuple(scores),
            )
        )
    one = answers[0]
    return one if len(answers) == 1 else together(answers)


def _pick(scores: list[float], sampling: Sampling, generator: torch.Generator) -> int:
    likelihoods = torch.tensor([scores], dtype=torch.float64)
    settings = Sampling(temperature=sampling.temperature)
    return int(choose_tokens(likelihoods, [settings], [generator]))
