"""Settings of requests through vLLM: what comes back is what the native engine gives."""

import json
import threading
from dataclasses import replace
from typing import Any

import pytest

from pipeline.engine import Constraint, Failure, Request
from pipeline.records import Completion, Mixture
from tests.vllm.engines import Engines, mixtures_of

pytestmark = pytest.mark.vllm

SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["yes", "no"]}, "sure": {"type": "boolean"}},
    "required": ["label", "sure"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "sampling",
    [
        {"stop": (".",)},
        {"stop": (" the", ","), "min_new_tokens": 6},
        {"min_new_tokens": 20},
        {"repetition_penalty": 1.3},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"stop_token_ids": (28, 30, 339)},
        {"max_new_tokens": 3},
        {"constraint": Constraint("json_schema", json.dumps(SCHEMA))},
        {"constraint": Constraint("regex", "(yes|no), because [a-z ]{4,20}")},
        {"constraint": Constraint("grammar", 'start: "(" WORD ")"\nWORD: /[a-z]{3,8}/')},
    ],
    ids=lambda sampling: "-".join(sampling),
)
def test_greedy_answers_equal_those_of_the_native_engine(fp32: Engines, sampling: dict[str, Any]) -> None:
    requests = fp32.requests(mixtures_of(fp32.bank), 5, **sampling)
    for native, vllm in fp32.both(requests):
        assert replace(native, logprobs=None) == replace(vllm, logprobs=None)


def test_logprobs_are_those_of_the_native_engine(fp32: Engines) -> None:
    for native, vllm in fp32.both(fp32.requests(mixtures_of(fp32.bank), 5, logprobs=3, repetition_penalty=1.2)):
        assert native.logprobs
        assert vllm.logprobs
        assert [t.token for t in native.logprobs] == [t.token for t in vllm.logprobs]
        for ours, theirs in zip(native.logprobs, vllm.logprobs, strict=True):
            assert [t.token_id for t in ours.top] == [t.token_id for t in theirs.top]
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-3)


def test_choices_have_the_likelihoods_of_the_native_engine(fp32: Engines) -> None:
    choices = ("yes", "no", "The answer is not known.")
    for native, vllm in fp32.both(fp32.requests(mixtures_of(fp32.bank), 5, choices=choices)):
        assert (native.output, native.finish_reason) == (vllm.output, vllm.finish_reason) == (native.output, "choice")
        assert native.completion_tokens == vllm.completion_tokens
        assert vllm.choice_log_likelihoods == pytest.approx(native.choice_log_likelihoods, abs=1e-3)


def test_drawn_answers_depend_on_record_and_seed_alone(fp32: Engines) -> None:
    requests = fp32.requests(mixtures_of(fp32.bank), 5, temperature=1.0, top_p=0.9, min_p=0.01)
    together = outputs(fp32, requests)
    assert outputs(fp32, requests[::-1])[::-1] == together
    greedy = fp32.requests(mixtures_of(fp32.bank), 6)
    assert outputs(fp32, [*greedy, *requests])[6:] == together
    assert outputs(fp32, requests[3:4]) == together[3:4]
    renamed = [replace(request, id=f"other {request.id}") for request in requests]
    assert outputs(fp32, renamed) != together


def test_the_first_of_several_answers_is_that_of_one(fp32: Engines) -> None:
    requests = fp32.requests(mixtures_of(fp32.bank), 4, temperature=1.2)
    several = [replace(r, sampling=replace(r.sampling, n=3)) for r in requests if r.sampling]
    one, three = fp32.vllm.answer(requests), fp32.vllm.answer(several)
    for alone, first in zip(one, three, strict=True):
        assert isinstance(alone, Completion)
        assert isinstance(first, Completion)
        assert first.output == alone.output
        assert len({answer.output for answer in first.answers}) > 1
        assert first.completion_tokens == sum(answer.completion_tokens for answer in first.answers)


def test_equal_seeds_of_records_give_equal_answers(fp32: Engines) -> None:
    [request] = fp32.requests(mixtures_of(fp32.bank)[1:2], 1, temperature=1.0, seed=5)
    assert len(set(outputs(fp32, [replace(request, id=str(number)) for number in range(4)]))) == 1


def test_bad_requests_fail_as_in_the_native_engine_and_alone(fp32: Engines) -> None:
    [good] = fp32.requests([Mixture()], 1)
    sampling = good.sampling
    assert sampling
    bad = [
        replace(good, tokens=[]),
        replace(good, tokens=[10**6]),
        replace(good, tokens=[5] * 9000),
        replace(good, sampling=replace(sampling, constraint=Constraint("regex", "("))),
        replace(good, sampling=replace(sampling, min_new_tokens=99)),
        replace(good, sampling=replace(sampling, stop_token_ids=(10**6,))),
        replace(good, sampling=replace(sampling, choices=("a", "a"))),
    ]
    native, vllm = fp32.native.answer([*bad, good]), fp32.vllm.answer([*bad, good])
    assert [type(answer) for answer in vllm] == [Failure] * len(bad) + [Completion]
    assert [a.error_type for a in native[:-1] if isinstance(a, Failure)] == [
        a.error_type for a in vllm[:-1] if isinstance(a, Failure)
    ]
    [hot] = fp32.vllm.answer([replace(good, sampling=replace(sampling, temperature=3.0))])
    assert hot == Failure("BadSampling", "temperature 3: the engine takes 2 at most")


def test_batches_in_flight_at_once_share_the_engine(fp32: Engines) -> None:
    """More adapters than slots, from two threads."""
    names = fp32.bank.names
    mixtures = [Mixture.of({name: 1.0}) for name in names[:9]]
    requests = fp32.requests(mixtures, 18)
    expected = outputs(fp32, requests)
    found: dict[int, list[str]] = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: outputs(fp32, requests[n::2])})) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i % 2][i // 2] for i in range(18)] == expected
    assert fp32.vllm.load().kv_limit > 1000


def outputs(engines: Engines, requests: list[Request]) -> list[str]:
    answers = engines.vllm.answer(requests)
    assert all(isinstance(answer, Completion) for answer in answers), answers
    return [answer.output for answer in answers if isinstance(answer, Completion)]
