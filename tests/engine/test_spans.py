"""Sentences with mixtures of their own, against a model whose layers are merged anew for each token."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear
from transformers import DynamicCache

from pipeline.adapters import AdapterBank
from pipeline.engine import Engine, Failure, Request, Sampling
from pipeline.engine.attention.segment import Segment
from pipeline.engine.attention.slots import SlotCache
from pipeline.engine.settings import EngineSettings
from pipeline.models import load_model, load_tokenizer
from pipeline.records import Completion, Mixture, Spans
from tests import examples, tiny
from tests.engine.lora.test_lora import mixtures_strategy

A, B, C = (Mixture.of({name: 1.0}) for name in ("red", "cold", "slow"))
AB = Mixture.of({"red": 0.5, "cold": 0.5})
GREEDY = Sampling(max_new_tokens=16)
SAMPLED = Sampling(max_new_tokens=16, temperature=0.9, top_p=0.95)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, AdapterBank]:
    config = tiny.llama_config() if request.param == "llama" else tiny.gpt2_config()
    folder = tiny.make_model(tmp_path_factory.mktemp(request.param), config)
    return load_model(str(folder), "fp32"), AdapterBank.load(tiny.make_bank(tmp_path_factory.mktemp("bank"), folder))


@contextmanager
def merged_by_token(model: Any, bank: AdapterBank, spans: Spans) -> Iterator[None]:
    """Each adapted layer computes token t with ``W + sum w_i s_i B_i A_i`` of t's mixture; one row, no padding."""

    def hook(name: str) -> Callable[..., torch.Tensor]:
        def replace(module: Any, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            transposed = not isinstance(module, torch.nn.Linear)  # Conv1D
            base = module.weight.T if transposed else module.weight
            output = output.clone()
            ends = [*(start for start, _ in spans[1:]), output.shape[1]]
            for (start, mixture), end in zip(spans, ends, strict=True):
                weight = base.clone()
                for adapter, share in zip(mixture.adapters, mixture.weights, strict=True):
                    part = bank.adapters[adapter].modules.get(name)
                    if part is not None:
                        weight += share * part.scale * (part.B @ part.A)
                output[:, start:end] = linear(args[0][:, start:end], weight, module.bias)
            return output

        return replace

    modules = dict(model.named_modules())
    hooks = [modules[name].register_forward_hook(hook(name)) for name in bank.modules]
    yield
    for made in hooks:
        made.remove()


def reference(model: Any, bank: AdapterBank, tokens: Sequence[int], spans: Spans) -> tuple[torch.Tensor, DynamicCache]:
    """Logits [tokens x vocab] and KV cache of one row."""
    cache = DynamicCache()
    with merged_by_token(model, bank, spans), torch.no_grad():
        logits = model(torch.tensor([list(tokens)]), past_key_values=cache, use_cache=True).logits[0]
    return logits, cache


def draw_request(data: st.DataObject, number: int) -> Request:
    length = data.draw(st.integers(1, 20))
    tokens = data.draw(st.lists(st.integers(1, 600), min_size=length, max_size=length))
    starts = sorted({0, *data.draw(st.lists(st.integers(0, length - 1), max_size=4))})
    mixtures = [data.draw(mixtures_strategy() | st.just(Mixture())) for _ in starts]
    spans = tuple(zip(starts, mixtures, strict=True)) if data.draw(st.booleans()) else ()
    return Request(f"r{number}", tokens, mixtures[-1], spans)


@pytest.mark.long
@settings(max_examples=examples(25))
@given(data=st.data())
def test_logits_and_cache_equal_those_of_weights_merged_for_each_token(
    parts: tuple[Any, AdapterBank], tiny_model: Path, data: st.DataObject
) -> None:
    model, bank = parts
    requests = [draw_request(data, i) for i in range(data.draw(st.integers(1, 4)))]
    engine = Engine(model, load_tokenizer(str(tiny_model)), bank, EngineSettings())
    cache = SlotCache(engine.runner.attention.shapes, model.device, 1024)
    segments = {}
    for request in requests:
        slot = cache.allocate(len(request.tokens))
        assert slot is not None
        last = (len(request.tokens) - 1,)
        segments[Segment(slot, request.tokens, 0, request.prompt_spans, kept=last)] = request
    with torch.inference_mode():
        packed, found = engine.runner.forward([*segments])
    engine.lora.detach()
    for segment, row in zip(packed, found, strict=True):
        request = segments[segment]
        logits, theirs = reference(model, bank, request.tokens, request.prompt_spans)
        assert (row - logits[-1]).abs().max() < 1e-4
        assert row.argmax() == logits[-1].argmax()
        for (keys, values), layer in zip(segment.slot.views(len(request.tokens)), theirs.layers, strict=True):
            assert (keys - layer.keys[0]).abs().max() < 1e-4
            assert (values - layer.values[0]).abs().max() < 1e-4


class Scripted:
    """Starts a sentence at every ``step``-th token, with mixtures in turn; notes the tokens of each record."""

    def __init__(self, step: int = 3, mixtures: Sequence[Mixture] = (A, AB, Mixture(), C)) -> None:
        self.step = step
        self.mixtures = mixtures
        self.tokens: dict[str, list[int]] = {}

    def __call__(
        self, request: Request, new_tokens: Sequence[int], sentences: Sequence[tuple[int, Mixture]]
    ) -> Mixture | None:
        self.tokens[request.id] = list(new_tokens)
        assert sentences[0] == (0, request.mixture)
        if len(new_tokens) - 1 - sentences[-1][0] < self.step:
            return None
        return self.mixtures[(len(sentences) + int(request.id[1:])) % len(self.mixtures)]


def make_requests(tokenizer: Any) -> list[Request]:
    """Prompts of many lengths; two of three with sentences, one of them with equal ones."""
    requests = []
    for i in range(15):
        words = " ".join(w for k in range(1 + i % 4) for w in tiny.prompts_of(tiny.ADAPTERS[(i + k) % 8], 1, seed=i))
        tokens = tokenizer(words).input_ids
        kinds: list[Spans] = [(), ((0, A), (len(tokens) // 2, B)), ((0, C), (2, C))]
        spans = kinds[i % 3]
        requests.append(Request(f"r{i}", tokens, spans[-1][1] if spans else AB, spans))
    return requests


@pytest.fixture
def engines(parts: tuple[Any, AdapterBank], tiny_model: Path) -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def make(batch_size: int, **changes: Any) -> Engine:
        for engine in made:
            engine.lora.detach()
        made.append(Engine(parts[0], load_tokenizer(str(tiny_model)), parts[1], EngineSettings(batch_size, **changes)))
        return made[-1]

    yield make
    for engine in made:
        engine.lora.detach()


def answers(
    engine: Engine, requests: Sequence[Request], sampling: Sampling, reroute: Scripted
) -> dict[str, Completion]:
    found = {r.id: a for r, a in engine.generate(requests, sampling, reroute)}
    return {name: a for name, a in found.items() if isinstance(a, Completion)}


def test_an_answer_is_that_of_weights_merged_for_each_token(
    engines: Callable[..., Engine], parts: tuple[Any, AdapterBank]
) -> None:
    engine, reroute = engines(6), Scripted()
    requests = make_requests(engine.tokenizer)
    found = answers(engine, requests, GREEDY, reroute)
    engine.lora.detach()
    assert len(found) == 15
    for request in requests:
        answer, new = found[request.id], reroute.tokens[request.id]
        spans = (request.spans or ((0, request.mixture),)) + answer.sentences
        assert [mixture for _, mixture in answer.sentences] or len(new) < 4
        logits, _ = reference(parts[0], parts[1], [*request.tokens, *new], spans)
        assert logits[len(request.tokens) - 1 : -1].argmax(1).tolist() == new


@pytest.mark.long
@pytest.mark.parametrize("sampling", [pytest.param(GREEDY, marks=pytest.mark.slow), SAMPLED], ids=["greedy", "sampled"])
def test_sentences_do_not_make_an_answer_depend_on_its_batch(
    engines: Callable[..., Engine], sampling: Sampling
) -> None:
    engine = engines(1)
    requests = make_requests(engine.tokenizer)
    alone = answers(engine, requests, sampling, Scripted())
    assert len({a.sentences for a in alone.values()}) > 4
    for batch_size in (3, 7, 15):
        assert answers(engines(batch_size), requests[::-1], sampling, Scripted()) == alone
    assert answers(engines(7, prefill_tokens=40), requests, sampling, Scripted()) == alone


def test_prompts_of_one_mixture_pay_nothing_for_sentences(engines: Callable[..., Engine]) -> None:
    """Their tokens share one row of weights each prompt, which is set once and then again only as rows end."""
    engine = engines(15)
    requests = make_requests(engine.tokenizer)
    same = [r for r in requests if len({m for _, m in r.spans}) < 2]
    without = [Request(r.id, r.tokens, r.mixture) for r in same]
    with patch.object(engine.lora, "set_tokens", wraps=engine.lora.set_tokens) as weights:
        list(engine.generate(same, GREEDY))
        given = [call.args[0] for call in weights.call_args_list]
        weights.reset_mock()
        list(engine.generate(without, GREEDY))
        assert [call.args[0] for call in weights.call_args_list] == given
        weights.reset_mock()
        list(engine.generate(requests, GREEDY))
        assert {A, B} <= set(weights.call_args_list[0].args[0])


def test_an_overflow_in_one_prompt_stays_there(parts: tuple[Any, AdapterBank], tiny_model: Path) -> None:
    bank = copy.deepcopy(parts[1])
    for part in bank.adapters["tall"].modules.values():
        part.B.fill_(3e38)
    tall = Mixture.of({"tall": 1.0})
    requests = [
        Request("poison", [5, 6, 7, 8, 9], A, ((0, tall), (2, A))),
        Request("good", [5, 6, 7], B, ((0, A), (1, B))),
    ]
    engine = Engine(parts[0], load_tokenizer(str(tiny_model)), bank, EngineSettings())
    together = {r.id: a for r, a in engine.generate(requests, GREEDY)}
    [(_, alone)] = engine.generate(requests[1:], GREEDY)
    engine.lora.detach()
    assert isinstance(together["poison"], Failure)
    assert together["good"] == alone
    assert isinstance(alone, Completion)


@pytest.mark.parametrize("starts", [[1], [0, 3, 3], [0, 4, 2], [0, 5]])
def test_spans_that_do_not_cover_the_prompt_are_refused(starts: list[int]) -> None:
    with pytest.raises(ValueError, match="spans start at"):
        Request("r", [1, 2, 3, 4, 5], A, tuple((start, A) for start in starts))
