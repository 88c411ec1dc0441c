"""The decode loop against transformers and PEFT, and against itself in other batches."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel

from pipeline.adapters import AdapterBank
from pipeline.engine import Engine, Failure, Request, Sampling
from pipeline.engine.settings import EngineSettings
from pipeline.models import load_model, load_tokenizer
from pipeline.records import Completion, Mixture
from tests import examples, tiny

GREEDY = Sampling(max_new_tokens=12)
SAMPLED = Sampling(max_new_tokens=12, temperature=0.9, top_p=0.95, top_k=50)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_model(str(tiny_model), "fp32")


@pytest.fixture
def make_engine(model: Any, tiny_model: Path, tiny_bank: Path) -> Any:
    made: list[Engine] = []

    def make(batch_size: int = 4, **changes: Any) -> Engine:
        for engine in made:
            engine.lora.detach()
        settings = EngineSettings(batch_size=batch_size, **changes)
        made.append(Engine(model, load_tokenizer(str(tiny_model)), AdapterBank.load(tiny_bank), settings))
        return made[-1]

    yield make
    for engine in made:
        engine.lora.detach()


def make_requests(count: int, tokenizer: Any) -> list[Request]:
    """Prompts of 2 to 60 tokens, with mixtures of none to three adapters."""
    requests = []
    for i in range(count):
        words = tiny.prompts_of(tiny.ADAPTERS[i % 8], 1, seed=i)[0].split() * (1 + i % 5)
        names = [tiny.ADAPTERS[(i * k + k) % 8] for k in range(i % 4)]
        mixture = Mixture.of(dict.fromkeys(names, 1 / max(1, len(set(names)))))
        requests.append(Request(f"r{i}", tokenizer(" ".join(words)).input_ids, mixture))
    return requests


def outputs(engine: Engine, requests: Sequence[Request], sampling: Sampling) -> dict[str, str]:
    answers = {r.id: a for r, a in engine.generate(requests, sampling)}
    assert all(isinstance(a, Completion) for a in answers.values())
    return {name: a.output for name, a in answers.items() if isinstance(a, Completion)}


@pytest.mark.long
@pytest.mark.parametrize("sampling", [pytest.param(GREEDY, marks=pytest.mark.slow), SAMPLED], ids=["greedy", "sampled"])
def test_output_does_not_depend_on_batch_size_or_order(make_engine: Any, sampling: Sampling) -> None:
    engine = make_engine(1)
    requests = make_requests(24, engine.tokenizer)
    alone = outputs(engine, requests, sampling)
    for batch_size in (3, 8, 24):
        assert outputs(make_engine(batch_size), requests[::-1], sampling) == alone
    assert outputs(make_engine(8, prefill_tokens=64), requests, sampling) == alone


def test_seed_and_id_decide_what_is_sampled(make_engine: Any) -> None:
    engine = make_engine(4)
    tokens = make_requests(1, engine.tokenizer)[0].tokens
    twins = [Request(name, tokens, Mixture()) for name in ("a", "b")]
    first = outputs(engine, twins, SAMPLED)
    assert first["a"] != first["b"]
    assert outputs(make_engine(4, seed=1), twins, SAMPLED) != first
    assert outputs(make_engine(4), twins, SAMPLED) == first


def test_greedy_output_equals_that_of_transformers(make_engine: Any, model: Any) -> None:
    engine = make_engine(8)
    requests = [Request(r.id, r.tokens, Mixture()) for r in make_requests(8, engine.tokenizer)]
    ours = outputs(engine, requests, GREEDY)
    for request in requests:
        theirs = model.generate(torch.tensor([request.tokens]), max_new_tokens=12, do_sample=False)
        new = theirs[0, len(request.tokens) :]
        assert ours[request.id] == engine.tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.long
def test_one_adapter_gives_the_same_output_through_peft(tiny_model: Path, tiny_bank: Path, make_engine: Any) -> None:
    for name in ("red", "cold", "slow"):  # all modules; rank-stabilised; rank and alpha patterns
        engine = make_engine(8)
        requests = [Request(r.id, r.tokens, Mixture.of({name: 1.0})) for r in make_requests(6, engine.tokenizer)]
        ours = outputs(engine, requests, GREEDY)
        peft = PeftModel.from_pretrained(load_model(str(tiny_model), "fp32"), tiny_bank / name)
        for request in requests:
            theirs = peft.generate(input_ids=torch.tensor([request.tokens]), max_new_tokens=12, do_sample=False)
            new = theirs[0, len(request.tokens) :]
            assert ours[request.id] == engine.tokenizer.decode(new, skip_special_tokens=True)


def test_every_request_is_answered_once_with_its_token_counts(make_engine: Any) -> None:
    engine = make_engine(4)
    requests = make_requests(18, engine.tokenizer)
    answers = list(engine.generate(iter(requests), GREEDY))
    assert sorted(r.id for r, _ in answers) == sorted(r.id for r in requests)
    for request, answer in answers:
        assert isinstance(answer, Completion)
        assert answer.prompt_tokens == len(request.tokens)
        assert (answer.finish_reason == "length") == (answer.completion_tokens == 12) or answer.finish_reason == "stop"


def test_the_end_token_and_stop_strings_end_an_answer(make_engine: Any) -> None:
    engine = make_engine(4)
    requests = make_requests(8, engine.tokenizer)
    free = outputs(engine, requests, GREEDY)
    request = next(r for r in requests if len(free[r.id]) > 4)
    stop = free[request.id][2:4]
    [(_, cut)] = engine.generate([request], Sampling(max_new_tokens=12, stop=(stop,)))
    assert isinstance(cut, Completion)
    assert cut.finish_reason == "stop"
    assert cut.output == free[request.id].split(stop)[0]
    engine.end_tokens = set(range(640))
    [(_, ended)] = engine.generate([request], GREEDY)
    assert isinstance(ended, Completion)
    assert (ended.finish_reason, ended.completion_tokens) == ("stop", 1)
    engine.end_tokens = set(range(639))
    [(_, held)] = engine.generate([request], Sampling(max_new_tokens=12, min_new_tokens=5))
    assert isinstance(held, Completion)
    assert held.completion_tokens == 6


def test_a_stop_string_ends_a_long_answer_wherever_it_comes(make_engine: Any) -> None:
    engine = make_engine(8)
    request = make_requests(8, engine.tokenizer)[5]
    engine.end_tokens = set()
    long = Sampling(max_new_tokens=80, temperature=0.9)
    free = outputs(engine, [request], long)[request.id]
    words = {free[place : place + 2] for place in range(0, len(free), 9)}
    stops = [stop for stop in words if "\ufffd" not in stop]  # parts of characters: random tokens are often that
    assert max(free.index(stop) for stop in stops) > len(free) // 2
    for stop in stops:
        [(_, cut)] = engine.generate([request], replace(long, stop=(stop,)))
        assert isinstance(cut, Completion)
        assert cut.output == free.split(stop)[0]


def test_requests_that_cannot_run_fail_alone(make_engine: Any) -> None:
    engine = make_engine(4)
    good = make_requests(3, engine.tokenizer)
    bad = [
        Request("empty", [], Mixture()),
        Request("vocabulary", [5, 100_000], Mixture()),
        Request("long", [5] * tiny.CONTEXT, Mixture()),
    ]
    answers = {r.id: a for r, a in engine.generate([*bad, *good], GREEDY)}
    kinds = {name: a.error_type for name, a in answers.items() if isinstance(a, Failure)}
    assert kinds == {"empty": "EmptyPrompt", "vocabulary": "BadToken", "long": "PromptTooLong"}
    assert {r.id: answers[r.id] for r in good} == {r.id: a for r, a in engine.generate(good, GREEDY)}


def test_a_row_of_nan_logits_fails_alone(make_engine: Any) -> None:
    engine = make_engine(4)
    weights = engine.lora.bank.adapters["tall"].modules
    for part in weights.values():
        part.B.fill_(3e38)
    good = [Request(f"g{i}", r.tokens, Mixture()) for i, r in enumerate(make_requests(3, engine.tokenizer))]
    poison = Request("poison", good[0].tokens, Mixture.of({"tall": 1.0}))
    answers = {r.id: a for r, a in engine.generate([poison, *good], GREEDY)}
    failure = answers.pop("poison")
    assert isinstance(failure, Failure)
    assert failure.error_type == "NonFiniteLogits"
    assert {name: a.output for name, a in answers.items() if isinstance(a, Completion)} == outputs(
        make_engine(1), good, GREEDY
    )


@pytest.mark.long
@settings(max_examples=examples(10))
@given(order=st.permutations(range(10)), batch_size=st.integers(1, 10), prefill=st.integers(1, 200))
def test_any_admission_order_gives_the_same_output(
    order: list[int], batch_size: int, prefill: int, model: Any, tiny_model: Path, tiny_bank: Path
) -> None:
    bank, tokenizer = AdapterBank.load(tiny_bank), load_tokenizer(str(tiny_model))
    requests = make_requests(10, tokenizer)
    found = []
    for size, tokens, places in [(10, 8192, list(range(10))), (batch_size, prefill, order)]:
        engine = Engine(model, tokenizer, bank, EngineSettings(batch_size=size, prefill_tokens=tokens))
        found.append(outputs(engine, [requests[i] for i in places], SAMPLED))
        engine.lora.detach()
    assert found[0] == found[1]
