"""Mixtures of a tiny random model inside vLLM: against merged weights, and against the native engine."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pipeline.engine import Failure, Outcome, Request, Sampling
from pipeline.engine.vllm import backend
from pipeline.engine.vllm.mixing import plugin
from pipeline.errors import UserError
from pipeline.models import load_model
from pipeline.records import Completion, Mixture
from tests import tiny
from tests.vllm.engines import Engines, start, start_vllm
from tests.vllm.measures import off_merged

pytestmark = pytest.mark.vllm

SAMPLING = Sampling(max_new_tokens=12, min_new_tokens=12, logprobs=5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with the smallest heads that vLLM has on a CPU."""
    config = tiny.llama_config(hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
    return tiny.make_model(tmp_path_factory.mktemp("model"), config)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param({"adapter_slots": 8, "reuse_prefixes": False}, id="all-in-slots"),
        pytest.param({"adapter_slots": 4, "enforce_eager": True}, id="half-in-slots-prefixes-eager"),
    ],
)
def both(request: Any, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Both engines; adapters of ranks 2 to 9, on attention or on all layers, with several scales.

    The one without prefixes divides prompts over passes, as on a GPU.
    """
    bank = tiny.make_bank(tmp_path_factory.mktemp("bank"), model)
    arguments = backend.engine_arguments
    divided = {"enable_chunked_prefill": True, "max_num_batched_tokens": 128}
    with pytest.MonkeyPatch.context() as patch:
        if not request.param.get("reuse_prefixes", True):
            patch.setattr(backend, "engine_arguments", lambda *given: arguments(*given) | divided)
        engines = start("fp32", str(model), bank, batch_size=128, **request.param)
    yield engines
    engines.close()


def requests(mixtures: list[Mixture], seed: int = 0) -> list[Request]:
    """One request for each mixture: prompts of 40 to 99 tokens, of which several begin alike."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randint(1, 600, (4, 100), generator=generator).tolist()
    return [
        Request(f"r{index}", shared[index % 4][: 40 + index % 60], mixture, sampling=SAMPLING)
        for index, mixture in enumerate(mixtures)
    ]


def distinct(names: list[str], count: int) -> list[Mixture]:
    """Mixtures of one to four adapters, no two alike; the base model is one of them."""
    chosen = [Mixture(), *(Mixture.of({name: 0.75}) for name in names)]
    for size in (4, 3, 2):
        for index, group in enumerate(combinations(names, size)):
            weights = [1 + (index + place) % 5 for place in range(size)]
            chosen.append(Mixture.of({n: w / sum(weights) for n, w in zip(group, weights, strict=True)}))
    return chosen[:count]


def assert_alike(both: Engines, asked: list[Request]) -> None:
    """Greedy answers are equal, and their log probabilities to 1e-4."""
    for native, vllm in both.both(asked):
        assert (native.output, native.finish_reason) == (vllm.output, vllm.finish_reason)
        assert native.logprobs
        assert vllm.logprobs
        for ours, theirs in zip(native.logprobs, vllm.logprobs, strict=True):
            assert ours.token_id == theirs.token_id
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)


def texts(answers: list[Outcome]) -> list[str]:
    return [answer.output for answer in answers if isinstance(answer, Completion)]


def test_log_probabilities_are_those_of_merged_weights(both: Engines, model: Path) -> None:
    asked = requests(distinct(both.bank.names, 16))
    assert off_merged(load_model(str(model), "fp32"), both.bank, both.vllm, asked) < 1e-4


def test_a_hundred_mixtures_in_a_batch_are_answered_as_by_the_native_engine(both: Engines) -> None:
    mixtures = distinct(both.bank.names, 100)
    assert len(set(mixtures)) == 100
    assert_alike(both, requests(mixtures, seed=1))


def test_equal_prompts_with_other_mixtures_share_no_prefix(both: Engines) -> None:
    mixtures = distinct(both.bank.names, 20)
    asked = [replace(r, tokens=requests(mixtures)[0].tokens) for r in requests(mixtures)]
    assert_alike(both, asked)
    assert_alike(both, asked[::-1])


def test_each_sentence_of_a_prompt_has_its_mixture(both: Engines) -> None:
    """Prompts over several passes, sentences that end within one, and an answer with another mixture."""
    asked = []
    for index in range(12):
        tokens = [(7 * index + place) % 599 + 1 for place in range(150 + index)]
        one, two, three, four = (both.bank.names[(index + place) % 8] for place in range(4))
        first, last = Mixture.of({one: 0.5, two: 0.25}), Mixture.of({three: 0.5, four: 0.5})
        spans = ((0, first), (17 + index, Mixture()), (18 + index, Mixture.of({three: 1.0})), (140, last))
        answer = Mixture.of({two: 0.75, four: 0.25})
        asked.append(Request(f"s{index}", tokens, answer, spans=spans, sampling=SAMPLING))
    assert_alike(both, asked)


def test_each_sentence_of_an_answer_has_its_mixture(both: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence starts at every third token; most have another mixture than the one before."""
    names = both.bank.names[:4]

    def reroute(
        request: Request, new_tokens: Sequence[int], sentences: Sequence[tuple[int, Mixture]]
    ) -> Mixture | None:
        if len(new_tokens) % 3:
            return None
        chosen = names[: 1 + (new_tokens[-1] + len(sentences)) % 4]
        return Mixture.of(dict.fromkeys(chosen, 1 / len(chosen)))

    monkeypatch.setattr(both.vllm, "_reroute", reroute)
    asked = requests([Mixture.of({names[index % 4]: 1.0}) for index in range(24)], seed=2)
    expected = {request.id: answer for request, answer in both.native.engine.generate(asked, SAMPLING, reroute)}
    changes = 0
    for request, found in zip(asked, both.vllm.answer(asked), strict=True):
        native = expected[request.id]
        assert isinstance(native, Completion)
        assert isinstance(found, Completion)
        assert replace(found, logprobs=None) == replace(native, logprobs=None)
        assert [t.logprob for t in found.logprobs or ()] == pytest.approx(
            [t.logprob for t in native.logprobs or ()], abs=1e-4
        )
        changes += len({mixture for _, mixture in found.sentences}) > 1
    assert changes > 12
    if both.vllm.settings.reuse_prefixes:  # on a CPU vLLM draws no tokens where prompts are divided
        drawn = [replace(request, sampling=replace(SAMPLING, temperature=1.0)) for request in asked]
        assert texts(both.vllm.answer(drawn)) == texts(both.vllm.answer(drawn[::-1]))[::-1]
    [counted] = both.vllm.answer([replace(asked[0], sampling=replace(SAMPLING, presence_penalty=1.0))])
    assert isinstance(counted, Failure)
    assert "presence and frequency penalties do not go with" in counted.message


def test_another_version_of_vllm_is_refused_before_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin.check_plugin()
    monkeypatch.setitem(
        plugin._HOOKS, "vllm.lora.worker_manager:LRUCacheWorkerLoRAManager.add_adapter", ("self", "lora")
    )
    with pytest.raises(UserError, match=r"vLLM .* does not fit: .*add_adapter takes self, lora_request; install vllm"):
        plugin.check_plugin()
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    with pytest.raises(UserError, match="vLLM does not load the plugin loraloom"):
        plugin.check_plugin()


def test_an_adapter_without_a_layer_in_vllm_ends_the_start(model: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("blue", "cold", "dark", "loud", "tall")):  # the last has no slot
        module = f"model.layers.{7 if name == 'tall' else 0}.self_attn.q_proj"
        tiny.make_adapter(tmp_path / name, {module: (64, 64)}, rank=2, seed=number)
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(Exception, match=r"vLLM applies no adapter to model\.layers\.7\.self_attn\.q_proj"):
        start_vllm("fp32", model=str(model), bank=tmp_path, adapter_slots=4)
    left = {p for p in psutil.Process().children(recursive=True) if "EngineCore" in p.name()} - before
    assert not left


def test_requests_that_do_not_fit_are_refused_and_others_are_answered(both: Engines) -> None:
    slots = both.vllm.settings.adapter_slots
    [good] = requests([Mixture.of({both.bank.names[0]: 1.0})])
    with pytest.raises(UserError, match="no adapter none in the bank"):
        both.vllm.answer([good, replace(good, mixture=Mixture.of({"none": 1.0}))])
    wide = Mixture.of(dict.fromkeys(both.bank.names, 1 / 8))
    one, other = both.vllm.answer([good, replace(good, mixture=wide)])
    assert isinstance(one, Completion)
    refused = Failure("BadRequest", f"its sentences mix 8 adapters, and engine.adapter_slots is {slots}")
    assert other == refused if slots < 8 else isinstance(other, Completion)
