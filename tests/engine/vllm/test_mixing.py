"""What runs inside vLLM, without vLLM: the text of mixtures, and the products of all slots."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.vllm.mixing import plugin
from pipeline.engine.vllm.mixing.codec import BASE, AdapterWeights, decode, encode
from pipeline.engine.vllm.mixing.products import SlotProducts, TokenWeights

WEIGHTS = st.dictionaries(st.integers(1, 5), st.floats(0.01, 1), max_size=3)
SPANS = st.lists(st.tuples(st.integers(1, 9), WEIGHTS), max_size=5)  # tokens before the next span, and its weights


@given(WEIGHTS, SPANS, st.integers(0, 50), st.integers(1, 20))
def test_each_token_has_the_weights_of_its_span(
    first: dict[int, float], rest: list[tuple[int, dict[int, float]]], start: int, count: int
) -> None:
    spans, by_token = [(0, first)], [first] * 100
    for length, weights in rest:
        spans.append((spans[-1][0] + length, weights))
        by_token[spans[-1][0] :] = [weights] * (100 - spans[-1][0])
    found = decode(encode(spans))
    assert found.adapters == {number for _, weights in spans for number in weights}
    flat: list[AdapterWeights] = []
    for begin, end, weights in found.within(start, start + count):
        assert begin == start + len(flat)
        flat += [weights] * (end - begin)
    assert flat == [tuple(sorted(weights.items())) for weights in by_token[start : start + count]]


def test_equal_weights_have_one_text_and_the_base_model_has_none() -> None:
    assert encode([(0, {}), (9, {})]) == ""
    assert decode("") == BASE
    assert encode([(0, {2: 0.5, 1: 0.1}), (7, {1: 0.1, 2: 0.5})]) == encode([(0, {1: 0.1, 2: 0.5})])
    assert json.loads(encode([(0, {}), (3, {1: 1 / 3})])) == [[0, []], [3, [[1, 1 / 3]]]]


@pytest.mark.parametrize("used", [(True, True, True), (True, False, True), (False, False, False)])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.bfloat16, 0.2)])
@pytest.mark.parametrize("is_eager", [True, False])
def test_products_are_those_of_each_token_alone(
    used: tuple[bool, ...], dtype: torch.dtype, allowed: float, is_eager: bool
) -> None:
    torch.manual_seed(0)
    slots, rank, inputs, widths = 5, 4, 10, (8, 6, 6)
    weights = TokenWeights(16, slots, torch.device("cpu"), is_eager)
    products = SlotProducts(weights, rank, inputs, widths, used, torch.zeros(1, dtype=dtype))
    pairs = list(zip(products.slot_a, products.slot_b, strict=True))
    assert [a.shape for a, _ in pairs] == [(slots, 1, rank if is_used else 0, inputs) for is_used in used]
    assert [b.shape for _, b in pairs] == [(slots, 1, n, rank if u else 0) for n, u in zip(widths, used, strict=True)]

    def load(slot: int) -> None:
        own = 1 + slot % rank  # smaller ranks leave rows of zeros
        for (a, b), is_used in zip(pairs, used, strict=True):
            if is_used:
                a[slot, 0, :own].copy_(torch.randn(own, inputs))
                b[slot, 0, :, :own].copy_(torch.randn(b.shape[2], own))
        weights.slots_changed()

    def check(columns: set[int], tokens: int) -> None:
        """The weights of some slots for each token but the third; two more rows are padded."""
        x, y = torch.randn(tokens + 2, inputs, dtype=dtype), torch.randn(tokens + 2, sum(widths), dtype=dtype)
        rows = torch.rand(tokens, slots) * torch.tensor([float(slot in columns) for slot in range(slots)])
        rows[2] = 0
        expected = y.double()
        for (a, b), is_used, first in zip(pairs, used, (0, 8, 14), strict=True):
            for slot in range(slots) if is_used else ():
                change = x[:tokens].double() @ (b[slot, 0].double() @ a[slot, 0].double()).T
                expected[:tokens, first : first + b.shape[2]] += rows[:, slot : slot + 1].double() * change
        padding = y[tokens:].clone()
        weights.set_rows(rows)
        products.add_lora_linear(y, x)
        assert (y.double() - expected).abs().max() < allowed
        assert torch.equal(y[tokens:], padding)

    for slot in range(slots - 1):  # the last stays empty
        load(slot)
    for columns, tokens in ((set(), 9), ({0, 1, 2, 3}, 9), ({1}, 7), ({0, 3}, 7), ({3}, 5), (set(), 5), ({0}, 9)):
        check(columns, tokens)
    load(0)
    check({0}, 9)
    check({0, 1, 2}, 9)


def test_adapters_of_other_tokens_may_overflow_in_fp16() -> None:
    weights = TokenWeights(1, 2, torch.device("cpu"), is_eager=False)
    products = SlotProducts(weights, 1, 2, (1,), (True,), torch.zeros(1, dtype=torch.float16))
    products.slot_a[0][:, 0, 0] = torch.tensor([[6e4, 6e4], [1.0, 0.0]])
    products.slot_b[0].fill_(1.0)
    weights.set_rows(torch.tensor([[0.0, 0.5]]))
    y = torch.zeros(1, 1, dtype=torch.float16)
    products.add_lora_linear(y, torch.full((1, 2), 4.0, dtype=torch.float16))
    assert y.item() == 2.0


_ENCODER = "json:JSONEncoder.__init__"


@pytest.mark.parametrize(
    ("hooks", "attributes", "said"),
    [
        ({"json:JSONEncoder.encode": ("self", "o"), "json:JSONEncoder": ()}, {_ENCODER: ("indent",)}, ""),
        ({"json:JSONEncoder.encode": ("self", "value")}, {}, "json:JSONEncoder.encode takes self, o"),
        ({"json:JSONEncoder.write": ("self",)}, {}, "it has no json:JSONEncoder.write"),
        ({"json.none:JSONEncoder": ()}, {}, "it has no json.none:JSONEncoder"),
        ({}, {_ENCODER: ("indent", "width")}, f"{_ENCODER} does not set width"),
    ],
)
def test_a_version_of_vllm_without_a_hook_is_told(
    monkeypatch: pytest.MonkeyPatch,
    hooks: dict[str, tuple[str, ...]],
    attributes: dict[str, tuple[str, ...]],
    said: str,
) -> None:
    monkeypatch.setattr(plugin, "_HOOKS", hooks)
    monkeypatch.setattr(plugin, "_ATTRIBUTES", attributes)
    assert plugin.hook_problem() == said
