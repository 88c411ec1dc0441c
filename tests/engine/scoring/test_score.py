"""Choice likelihoods against a plain forward of prompt and choice with merged weights."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.adapters import AdapterBank
from pipeline.engine import Engine, Failure, Request
from pipeline.engine.scoring.score import Choices, score_choices
from pipeline.engine.settings import EngineSettings
from pipeline.models import load_model, load_tokenizer
from pipeline.records import Mixture
from tests import examples, tiny
from tests.engine.lora.test_lora import merged, mixtures_strategy

TOKEN = st.integers(1, 599)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Any]]:
    """An engine, and the model without hooks."""
    config = tiny.llama_config() if request.param == "llama" else tiny.gpt2_config()
    folder = tiny.make_model(tmp_path_factory.mktemp(request.param), config)
    bank = AdapterBank.load(tiny.make_bank(tmp_path_factory.mktemp("bank"), folder))
    engine = Engine(load_model(str(folder), "fp32"), load_tokenizer(str(folder)), bank, EngineSettings())
    yield engine, load_model(str(folder), "fp32")
    engine.lora.detach()


def expected(plain: Any, bank: AdapterBank, item: Choices) -> list[float]:
    """Log probabilities by one forward of prompt + choice for each choice; merged weights; no cache, no padding."""
    model = merged(plain, bank, item.request.mixture)
    prompt = list(item.request.tokens)
    sums = []
    for choice in item.choices:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + list(choice)])).logits[0].float()
        predicted = logits[len(prompt) - 1 : -1].log_softmax(1)
        sums.append(float(predicted.gather(1, torch.tensor(choice).unsqueeze(1)).sum()))
    return sums


@st.composite
def asked(draw: st.DrawFn) -> list[Choices]:
    items = []
    for number in range(draw(st.integers(1, 5))):
        prompt = draw(st.lists(TOKEN, min_size=1, max_size=20))
        choices = draw(st.lists(st.lists(TOKEN, min_size=1, max_size=6), min_size=1, max_size=4))
        mixture = draw(mixtures_strategy() | st.just(Mixture()))
        items.append(Choices(Request(str(number), prompt, mixture), choices))
    return items


@pytest.mark.long
@settings(max_examples=examples(20))
@given(items=asked(), budget=st.sampled_from([1, 40, 8192]))
def test_sums_equal_a_plain_forward_with_merged_weights(
    parts: tuple[Engine, Any], items: list[Choices], budget: int
) -> None:
    engine, plain = parts
    found = dict(zip_ids(score_choices(engine, items, budget)))
    assert set(found) == {item.request.id for item in items}
    for item in items:
        assert found[item.request.id] == pytest.approx(expected(plain, engine.lora.bank, item), abs=1e-4)


def test_each_prompt_runs_once_and_rows_stay_within_the_budget(parts: tuple[Engine, Any]) -> None:
    engine, _ = parts
    shapes: list[tuple[int, int]] = []
    watch = engine.model.register_forward_pre_hook(
        lambda module, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    items = [Choices(Request(str(i), [5] * 10, Mixture.of({"red": 1.0})), [[7, 8, 0]] * 3) for i in range(4)]
    list(score_choices(engine, items, token_budget=8192))
    assert shapes == [(1, 40), (1, 24)]
    shapes.clear()
    list(score_choices(engine, items, token_budget=40))
    assert shapes == [(1, 40), *[(1, 4)] * 6]
    watch.remove()


def test_what_does_not_fit_the_context_fails_alone(parts: tuple[Engine, Any]) -> None:
    engine, plain = parts
    long = Choices(Request("long", [5] * (tiny.CONTEXT - 2), Mixture()), [[1], [1, 2, 0]])
    empty = Choices(Request("empty", [5], Mixture()), [[1], []])
    full = Choices(Request("full", [5] * (tiny.CONTEXT - 3), Mixture()), [[1], [1, 2, 0]])
    found = dict(zip_ids(score_choices(engine, [long, empty, full])))
    assert isinstance(found["long"], Failure)
    assert found["long"].error_type == "PromptTooLong"
    assert isinstance(found["empty"], Failure)
    assert found["full"] == pytest.approx(expected(plain, engine.lora.bank, full), abs=1e-4)


def test_a_model_that_gives_nan_fails_the_record(parts: tuple[Engine, Any]) -> None:
    engine, _ = parts

    def break_logits(module: Any, args: Any, output: Any) -> None:
        output.logits.fill_(float("nan"))

    broken = engine.model.register_forward_hook(break_logits)
    [(_, found)] = score_choices(engine, [Choices(Request("a", [5, 6], Mixture()), [[1, 0]])])
    broken.remove()
    assert isinstance(found, Failure)
    assert found.error_type == "NonFiniteLogits"


def zip_ids(scored: Iterator[tuple[Choices, list[float] | Failure]]) -> Iterator[tuple[str, list[float] | Failure]]:
    return ((item.request.id, found) for item, found in scored)
