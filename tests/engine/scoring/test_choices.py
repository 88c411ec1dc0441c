"""Answers that are one of some choices."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.adapters import AdapterBank
from pipeline.engine import Engine, Failure, Request, Sampling
from pipeline.engine.native.backend import NativeBackend
from pipeline.engine.scoring.choices import choose
from pipeline.engine.settings import EngineSettings
from pipeline.models import PromptFormat, load_model, load_tokenizer
from pipeline.records import Completion, Mixture, Spans
from tests import tiny
from tests.engine.lora.test_lora import merged
from tests.engine.test_spans import reference

LABELS = ("red1", "tall2 tall3", "cold")
RED, COLD = Mixture.of({"red": 1.0}), Mixture.of({"cold": 0.5, "tall": 0.5})


@pytest.fixture(scope="module")
def engine(tiny_model: Path, tiny_bank: Path) -> Iterator[Engine]:
    made = Engine(
        load_model(str(tiny_model), "fp32"),
        load_tokenizer(str(tiny_model)),
        AdapterBank.load(tiny_bank),
        EngineSettings(),
    )
    yield made
    made.lora.detach()


def encode(engine: Engine) -> PromptFormat:
    return PromptFormat(engine.tokenizer)


def ask(engine: Engine, requests: list[Request], sampling: Sampling) -> dict[str, Completion]:
    found = {r.id: a for r, a in choose(engine, requests, sampling, encode(engine).encode_answer)}
    assert all(isinstance(a, Completion) for a in found.values()), found
    return {name: a for name, a in found.items() if isinstance(a, Completion)}


def request(engine: Engine, name: str, words: str, mixture: Mixture = RED, **more: object) -> Request:
    return Request(name, engine.tokenizer(words).input_ids, mixture, **more)  # type: ignore[arg-type]


def expected(engine: Engine, tiny_model: Path, asked: Request, choice: str) -> float:
    """Log-likelihood of the tokens of the choice by itself, and the end token, after the prompt."""
    model = merged(load_model(str(tiny_model), "fp32"), engine.lora.bank, asked.mixture)
    tokens = [*engine.tokenizer(choice, add_special_tokens=False).input_ids, engine.tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([[*asked.tokens, *tokens]])).logits[0, len(asked.tokens) - 1 : -1]
    return float(logits.log_softmax(1).gather(1, torch.tensor(tokens).unsqueeze(1)).sum())


@pytest.mark.long
def test_the_choice_of_highest_likelihood_is_the_answer(engine: Engine, tiny_model: Path) -> None:
    requests = [
        request(engine, f"r{i}", " ".join(tiny.prompts_of("red", 6)[: i + 1]), [RED, COLD][i % 2]) for i in range(6)
    ]
    found = ask(engine, requests, Sampling(choices=LABELS))
    assert len({a.output for a in found.values()}) > 1
    for one in requests:
        got = found[one.id]
        likelihoods = [expected(engine, tiny_model, one, label) for label in LABELS]
        assert got.choice_log_likelihoods == pytest.approx(likelihoods, abs=1e-4)
        assert got.output == LABELS[likelihoods.index(max(likelihoods))]
        first, second, _ = torch.tensor(likelihoods).softmax(0).sort(descending=True).values.tolist()
        assert got.choice_margin == pytest.approx(first - second, abs=1e-4)
        assert got.answer_logprob == pytest.approx(max(likelihoods) / got.completion_tokens, abs=1e-4)
        assert got.finish_reason == "choice"
        assert got.prompt_tokens == len(one.tokens)
        assert got.completion_tokens == len(engine.tokenizer(got.output).input_ids) + 1


def test_choices_and_generation_go_together(engine: Engine) -> None:
    own = Sampling(choices=("cold", "red1"))
    requests = [request(engine, "a", "red1"), request(engine, "b", "red1", sampling=own)]
    backend = NativeBackend(engine, Sampling(max_new_tokens=4), encode(engine).encode_answer, None, hang_seconds=600)
    generated, chosen = backend.answer(requests)
    backend.close()
    assert isinstance(generated, Completion)
    assert isinstance(chosen, Completion)
    assert (generated.finish_reason, generated.choice_log_likelihoods) == ("length", None)
    assert chosen.finish_reason == "choice"
    assert len(chosen.choice_log_likelihoods or ()) == 2


def test_with_a_temperature_choices_are_drawn_by_their_likelihoods(engine: Engine) -> None:
    one = request(engine, "a", "red1")
    own = Sampling(choices=LABELS, temperature=5.0)
    likelihoods = torch.tensor(ask(engine, [one], own)["a"].choice_log_likelihoods)
    shares = (likelihoods / 5.0).softmax(0).tolist()
    [several] = ask(engine, [one], replace(own, n=128)).values()
    counts = Counter(a.output for a in several.answers)
    for label, share in zip(LABELS, shares, strict=True):
        assert counts[label] / 128 == pytest.approx(share, abs=0.15)
    assert several.answers[0] == ask(engine, [one], own)["a"]
    assert len({ask(engine, [one], replace(own, seed=i))["a"].output for i in range(12)}) > 1


def test_choices_after_a_prompt_of_several_mixtures(engine: Engine, tiny_model: Path) -> None:
    spans: Spans = ((0, COLD), (4, RED))
    one = request(engine, "a", "red1 tall2 cold3 red1", spans=spans)
    found = ask(engine, [one, request(engine, "longer", "red1 " * 12)], Sampling(choices=LABELS))["a"]
    plain = load_model(str(tiny_model), "fp32")
    for label, likelihood in zip(LABELS, found.choice_log_likelihoods or (), strict=True):
        [tokens] = encode(engine).encode_answer([label])
        logits, _ = reference(plain, engine.lora.bank, [*one.tokens, *tokens], spans)
        steps = logits[len(one.tokens) - 1 : -1].log_softmax(1)
        assert likelihood == pytest.approx(float(steps.gather(1, torch.tensor(tokens).unsqueeze(1)).sum()), abs=1e-4)


def test_choices_that_cannot_be_scored_fail_alone(engine: Engine) -> None:
    long = Request("long", [5] * (tiny.CONTEXT - 2), RED)
    twice = request(engine, "twice", "red1", sampling=Sampling(choices=("a", "a")))
    good = request(engine, "good", "red1")
    found = {
        r.id: a for r, a in choose(engine, [long, twice, good], Sampling(choices=LABELS), encode(engine).encode_answer)
    }
    kinds = {name: a.error_type for name, a in found.items() if isinstance(a, Failure)}
    assert kinds == {"long": "PromptTooLong", "twice": "BadSampling"}
    assert isinstance(found["good"], Completion)
