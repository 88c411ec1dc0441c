"""Settings row by row in the engine: against transformers, a plain forward, and themselves in other batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.adapters import AdapterBank
from pipeline.engine import Constraint, Engine, Failure, Request, Sampling
from pipeline.engine.core.decoder import Decoder
from pipeline.engine.sequence import Sequence as GeneratedSequence
from pipeline.engine.settings import EngineSettings
from pipeline.models import load_model, load_tokenizer
from pipeline.records import Completion, Mixture
from tests import examples
from tests.engine.lora.test_lora import merged

GREEDY = Sampling(max_new_tokens=12)
SAMPLED = Sampling(max_new_tokens=12, temperature=1.0)
Make = Callable[..., Engine]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_model(str(tiny_model), "fp32")


@pytest.fixture
def make_engine(model: Any, tiny_model: Path, tiny_bank: Path) -> Iterator[Make]:
    made: list[Engine] = []

    def make(batch_size: int = 8) -> Engine:
        for engine in made:
            engine.lora.detach()
        bank, tokenizer = AdapterBank.load(tiny_bank), load_tokenizer(str(tiny_model))
        made.append(Engine(model, tokenizer, bank, EngineSettings(batch_size=batch_size)))
        return made[-1]

    yield make
    for engine in made:
        engine.lora.detach()


def request(name: str, engine: Engine, sampling: Sampling | None = None, words: str = "red1 tall2") -> Request:
    tokens = engine.tokenizer(words).input_ids
    return Request(name, tokens, Mixture.of({"red": 0.5, "cold": 0.5}), sampling=sampling)


def answers(engine: Engine, requests: Sequence[Request], sampling: Sampling = GREEDY) -> dict[str, Completion]:
    found = {r.id: a for r, a in engine.generate(requests, sampling)}
    assert len(found) == len(requests)
    assert all(isinstance(a, Completion) for a in found.values()), found
    return {name: a for name, a in found.items() if isinstance(a, Completion)}


SETTINGS = [
    GREEDY,
    SAMPLED,
    replace(SAMPLED, top_k=20, min_p=0.02),
    replace(SAMPLED, top_p=0.8, repetition_penalty=1.3, n=3),
    replace(GREEDY, presence_penalty=1.5, frequency_penalty=0.5, logprobs=2),
    replace(GREEDY, repetition_penalty=1.5, min_new_tokens=6, max_new_tokens=9),
    replace(SAMPLED, stop=("1", "e"), seed=5),
    replace(SAMPLED, stop_token_ids=(70, 71, 72, 73, 74, 75, 76), min_new_tokens=3),
    replace(SAMPLED, constraint=Constraint("regex", "(red|tall)[0-9]{1,3}")),
]


@pytest.mark.long
@settings(max_examples=examples(15))
@given(
    own=st.lists(st.sampled_from(SETTINGS), min_size=1, max_size=10),
    batch_size=st.integers(1, 10),
    turned=st.booleans(),
)
def test_answers_do_not_depend_on_the_settings_of_other_rows(
    model: Any, tiny_model: Path, tiny_bank: Path, own: list[Sampling], batch_size: int, turned: bool
) -> None:
    bank, tokenizer = AdapterBank.load(tiny_bank), load_tokenizer(str(tiny_model))
    engine = Engine(model, tokenizer, bank, EngineSettings(batch_size=batch_size))
    requests = [request(f"r{i}", engine, one, " ".join(["cold1"] * (1 + i))) for i, one in enumerate(own)]
    together = answers(engine, requests[:: -1 if turned else 1])
    engine.settings = EngineSettings(batch_size=1)
    for one in requests:
        [(_, alone)] = engine.generate([one], GREEDY)
        assert isinstance(alone, Completion)
        assert without_logprobs(together[one.id]) == without_logprobs(alone)
        for ours, theirs in zip(together[one.id].logprobs or (), alone.logprobs or (), strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
    engine.lora.detach()


def without_logprobs(answer: Completion) -> Completion:
    """Text is bit-equal over batches; log probabilities are equal to the precision of the forward."""
    return replace(answer, logprobs=None)


def test_a_greedy_answer_with_a_repetition_penalty_equals_that_of_transformers(make_engine: Make, model: Any) -> None:
    engine = make_engine()
    for words in ("red1 tall2 red1", "cold3 cold3 loud4", "kind1"):
        asked = replace(request("a", engine, words=words), mixture=Mixture())
        theirs = model.generate(
            torch.tensor([asked.tokens]), max_new_tokens=12, do_sample=False, repetition_penalty=1.4
        )
        expected = engine.tokenizer.decode(theirs[0, len(asked.tokens) :], skip_special_tokens=True)
        assert answers(engine, [asked], replace(GREEDY, repetition_penalty=1.4))["a"].output == expected


def test_logprobs_equal_a_plain_forward_with_merged_weights(make_engine: Make, tiny_model: Path) -> None:
    engine = make_engine()
    asked = request("a", engine)
    # The penalty changes what is chosen, not what is reported.
    answer = answers(engine, [asked], replace(SAMPLED, logprobs=3, presence_penalty=2.0))["a"]
    assert answer.logprobs is not None
    assert len(answer.logprobs) == answer.completion_tokens
    assert answer.answer_logprob == pytest.approx(np.mean([token.logprob for token in answer.logprobs]), abs=1e-5)
    new = [token.token_id for token in answer.logprobs]
    plain = merged(load_model(str(tiny_model), "fp32"), engine.lora.bank, asked.mixture)
    with torch.no_grad():
        logits = plain(torch.tensor([[*asked.tokens, *new]])).logits[0, len(asked.tokens) - 1 : -1]
    expected = logits.log_softmax(1)
    for step, token in enumerate(answer.logprobs):
        assert token.logprob == pytest.approx(float(expected[step, token.token_id]), abs=1e-4)
        assert [t.token_id for t in token.top] == expected[step].topk(3).indices.tolist()
        assert [t.logprob for t in token.top] == pytest.approx(expected[step].topk(3).values.tolist(), abs=1e-4)
        assert token.token == engine.tokenizer.decode([token.token_id])
    assert engine.tokenizer.decode(new, skip_special_tokens=True) == answer.output


def test_several_answers_the_first_of_which_is_the_only_one_of_n_1(make_engine: Make) -> None:
    engine = make_engine(3)
    one = answers(engine, [request("a", engine)], SAMPLED)["a"]
    several = answers(engine, [request("a", engine), request("b", engine)], replace(SAMPLED, n=5))
    first = several["a"].answers[0]
    assert (several["a"].output, first) == (one.output, one)
    assert len({answer.output for answer in several["a"].answers}) == 5
    assert several["a"].completion_tokens == sum(answer.completion_tokens for answer in several["a"].answers)
    assert [a.output for a in several["b"].answers] != [a.output for a in several["a"].answers]


def test_a_seed_of_its_own_takes_the_place_of_seed_and_id(make_engine: Make) -> None:
    engine = make_engine()
    own = replace(SAMPLED, seed=3)
    found = answers(engine, [request("a", engine, own), request("b", engine, own), request("c", engine)], SAMPLED)
    assert found["a"].output == found["b"].output != found["c"].output
    engine.settings = EngineSettings(seed=9)
    assert answers(engine, [request("d", engine, own)])["d"].output == found["a"].output


def test_a_stop_token_ends_an_answer_and_is_cut_off(make_engine: Make) -> None:
    engine = make_engine()
    asked = request("a", engine)
    free = answers(engine, [asked], replace(GREEDY, logprobs=0))["a"]
    assert free.logprobs is not None
    tokens = [token.token_id for token in free.logprobs]
    place = next(i for i in range(2, 12) if tokens[i] not in tokens[:i])
    cut = answers(engine, [asked], replace(GREEDY, stop_token_ids=(tokens[place],)))["a"]
    assert (cut.finish_reason, cut.completion_tokens) == ("stop", place + 1)
    assert cut.output == engine.tokenizer.decode(tokens[:place])
    held = answers(engine, [asked], replace(GREEDY, stop_token_ids=(tokens[place],), min_new_tokens=place + 1))["a"]
    assert held.completion_tokens > place + 1


def test_settings_that_cannot_be_met_fail_alone(make_engine: Make) -> None:
    engine = make_engine()
    bad = {
        "outside": replace(GREEDY, stop_token_ids=(5000,)),
        "twins": replace(GREEDY, n=2),
        "regex": replace(GREEDY, constraint=Constraint("regex", "(a")),
        "choices": replace(GREEDY, choices=("a", "b")),
    }
    found = {r.id: a for r, a in engine.generate([*(request(k, engine, v) for k, v in bad.items())], GREEDY)}
    assert {name: a.error_type for name, a in found.items() if isinstance(a, Failure)} == dict.fromkeys(
        bad, "BadSampling"
    )


@pytest.mark.parametrize("own", SETTINGS, ids=range(len(SETTINGS)))
def test_all_that_a_row_needs_stands_in_the_row(make_engine: Make, own: Sampling) -> None:
    """Another decoder can go on with it at any token, as after a row was taken out and its cache computed again."""
    engine = make_engine()
    logits = torch.randn(12, 1, engine.vocabulary, generator=torch.Generator().manual_seed(1)) * 4

    def decode(decoders: int) -> GeneratedSequence:
        made = [
            Decoder(engine.tokenizer, engine.constraints, engine.vocabulary, {0}, 0, GREEDY) for _ in range(decoders)
        ]
        row = made[0].start(request("a", engine, own))
        for step, own_logits in enumerate(logits):
            if not row.finish_reason:
                made[step % decoders].choose([row], own_logits)
        return row

    assert decode(4).new_tokens == decode(1).new_tokens


def test_rows_that_have_ended_stay_as_they_are(make_engine: Make) -> None:
    engine = make_engine()
    decoder = Decoder(engine.tokenizer, engine.constraints, engine.vocabulary, {0}, 0, replace(SAMPLED, logprobs=1))
    rows = [decoder.start(request(name, engine)) for name in "ab"]
    rows[0].finish_reason = "length"
    assert decoder.choose(rows, torch.randn(2, engine.vocabulary)).shape == (2,)
    assert (rows[0].new_tokens, rows[0].logprobs) == ([], [])
    assert len(rows[1].new_tokens) == len(rows[1].logprobs) == 1
