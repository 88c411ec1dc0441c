"""Parts of the fused operator: adapters that come and go on the device, stacks, groups, and the choice of a form."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.adapters import AdapterBank
from pipeline.engine import FusedLora, LoraSettings
from pipeline.engine.lora import cost, forms
from pipeline.engine.lora import panel as panels
from pipeline.engine.lora.forms import narrowed
from pipeline.engine.lora.layout import Group, InputSet, OutKind, Site, group_modules
from pipeline.engine.lora.panel import GatherPanel, Panel, UnionPanel
from pipeline.engine.lora.residency import Packed, Residency
from pipeline.models import load_model
from pipeline.records import Mixture
from tests import examples, tiny

CPU = torch.device("cpu")
INPUTS = InputSet(("q",), (576, 1), 0)
ONE = Group(
    {},
    {},
    (INPUTS,),
    (Site("q", torch.nn.Identity(), INPUTS, 0, OutKind(576, 576, 0), 0),),
    frozenset(),
    frozenset(),
    embedding=False,
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, AdapterBank]:
    folder = tiny.make_model(tmp_path_factory.mktemp("model"))
    bank = AdapterBank.load(tiny.make_bank(tmp_path_factory.mktemp("bank"), folder))
    return load_model(str(folder), "fp32"), bank


def residency(bank: AdapterBank, groups: list[Group], slots: int) -> Residency:
    return Residency(bank, groups, torch.float32, CPU, slots, lambda adapter, module: torch.ones(1))


names = st.lists(st.sampled_from(tiny.ADAPTERS), min_size=1, max_size=5, unique=True)


@settings(max_examples=examples(40))
@given(batches=st.lists(names, max_size=8), slots=st.integers(0, 6))
def test_the_least_recently_used_adapters_leave_and_none_that_is_used(
    parts: tuple[Any, AdapterBank], batches: list[list[str]], slots: int
) -> None:
    model, bank = parts
    held = residency(bank, group_modules(model, bank), slots)
    expected: OrderedDict[str, None] = OrderedDict()
    loads = 0
    for batch in batches:
        assert set(held.use(batch)) == set(batch)
        for name in batch:
            if name not in expected:
                loads += 1
                room(expected, slots - 1, set(batch[: batch.index(name)]), slots)
            expected[name] = None
            expected.move_to_end(name)
        room(expected, slots, set(batch), slots)
        assert len(held._resident) == len(expected) <= max(slots, len(batch)) or not slots
        assert held.loads == loads
    assert held.evictions == loads - len(expected)


def room(held: OrderedDict[str, None], size: int, used: set[str], slots: int) -> None:
    for name in [name for name in held if name not in used]:
        if slots and len(held) > size:
            del held[name]


@settings(max_examples=examples(40))
@given(batches=st.lists(names, min_size=1, max_size=8))
def test_a_union_holds_each_adapter_of_the_batch_once_whatever_came_before(
    parts: tuple[Any, AdapterBank], batches: list[list[str]]
) -> None:
    model, bank = parts
    groups = group_modules(model, bank)
    held = residency(bank, groups, 0)
    unions = [UnionPanel(group, torch.float32, CPU) for group in groups]
    for batch in batches:
        packed = held.use(batch)
        for number, (group, union) in enumerate(zip(groups, unions, strict=True)):
            own = {name: p for name in batch if (p := packed[name][number]) is not None}
            if not own:
                continue
            panel = union.update(own)
            rows = [r for name, start in union.starts.items() for r in range(start, start + group.ranks[name])]
            assert len(rows) == len(set(rows)) == sum(group.ranks[name] for name in own)
            assert set(union.starts) == set(own)
            assert panel.ranks <= 2 * len(rows) + 16
            for name, start in union.starts.items():
                assert_holds(panel, group, bank, name, 0, start)


def test_a_gathered_slot_holds_its_combination_and_zeros(parts: tuple[Any, AdapterBank]) -> None:
    model, bank = parts
    groups = group_modules(model, bank)
    group = max(groups, key=lambda g: len(g.ranks))
    packed: dict[str, Packed] = {}
    for name, shares in residency(bank, groups, 0).use(list(group.ranks)).items():
        share = shares[groups.index(group)]
        assert share is not None
        packed[name] = share
    gather = GatherPanel(group, torch.float32, CPU)
    a, b, c, d = list(group.ranks)[:4]
    gather.update([(c, d), (a,)], packed)
    slot = gather.slots[c, d]
    panel = gather.update([(b,), (c, d)], packed)
    assert gather.slots[c, d] == slot
    for combination, slot_of in gather.slots.items():
        start = 0
        for name in combination:
            assert_holds(panel, group, bank, name, slot_of, start)
            start += group.ranks[name]
        assert not any(x[:, slot_of, :, start:].any() for x in panel.A.values())
        assert not any(x[:, slot_of, start:].any() for x in panel.B.values())


def assert_holds(panel: Panel, group: Group, bank: AdapterBank, name: str, slot: int, start: int) -> None:
    ranks = slice(start, start + group.ranks[name])
    for site in group.sites:
        weights, inputs = bank.adapters[name].modules[site.name], site.inputs
        assert torch.equal(panel.A[inputs.kind][inputs.index, slot, site.position, ranks], weights.A)
        assert torch.equal(panel.B[site.kind][site.index, slot, ranks], weights.B.T)


def names_of(group: Group) -> list[str]:
    return [site.name for site in group.sites]


def test_groups_have_one_set_of_ranks_and_scales_and_siblings_share_an_input(parts: tuple[Any, AdapterBank]) -> None:
    model, bank = parts
    groups = group_modules(model, bank)
    assert sorted(name for group in groups for name in names_of(group)) == bank.modules
    for group in groups:
        for module in names_of(group):
            members = {n: a.modules[module] for n, a in bank.adapters.items() if module in a.modules}
            assert {n: w.rank for n, w in members.items()} == group.ranks
            assert {n: w.scale for n, w in members.items()} == group.scales
    shared = {inputs.names for group in groups for inputs in group.sets if len(inputs.names) > 1}
    assert ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj") in {tuple(sorted(s)) for s in shared}


def test_siblings_that_read_different_tensors_do_not_share_a_product(parts: tuple[Any, AdapterBank]) -> None:
    model, bank = parts
    gate, up = (model.get_submodule(f"model.layers.0.mlp.{n}_proj") for n in ("gate", "up"))
    x, y = torch.randn(2, 1, 3, 48, generator=torch.Generator().manual_seed(0)).unbind(0)
    fused = FusedLora(model, bank)
    fused.set_mixtures([Mixture.of({"red": 1.0})])
    with torch.no_grad():
        expected = up(y)
        gate(x)
        assert torch.equal(up(y), expected)
        gate(x)
        assert not torch.equal(up(x), expected)
    fused.detach()


def test_small_modules_run_as_one_product_with_their_adapters_and_large_ones_apart(
    parts: tuple[Any, AdapterBank], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bank = parts
    asked = [Mixture.of({"red": 0.5, "tall": 0.5}), Mixture.of({"tall": 1 / 3, "cold": 2 / 3}), Mixture()]
    tokens = torch.randint(1, 600, (3, 7), generator=torch.Generator().manual_seed(1))
    found = {}
    for most in (0, 2**20):
        monkeypatch.setattr(panels, "_MAX_WEIGHTS", most)
        fused = FusedLora(model, bank, LoraSettings("union"))
        fused.set_mixtures(asked)
        used = [form for form in fused.union_forms if form is not None]
        assert any(form.panel.joined for form in used) == bool(most)
        with torch.no_grad():
            found[most] = model(tokens).logits
        fused.detach()
    with torch.no_grad():
        plain = model(tokens).logits
    torch.testing.assert_close(found[0], found[2**20], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[2**20][2], plain[2], atol=1e-5, rtol=1e-5)
    assert (found[0][:2] - plain[:2]).abs().amax(dim=(1, 2)).min() > 1e-2


@pytest.mark.parametrize("rows", [31, 32])
def test_products_of_a_few_dozen_tokens_are_the_same_in_either_order(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With biases too."""
    folder = tiny.make_model(tmp_path / "model", tiny.llama_config(attention_bias=True))
    shapes = {f"model.layers.{n}.self_attn.{m}_proj": (48, 48) for n in range(2) for m in "qo"}
    for seed, name in enumerate(("red", "tall", "cold")):
        tiny.make_adapter(tmp_path / "bank" / name, shapes, 4, seed)
    bank = AdapterBank.load(tmp_path / "bank")
    model, exact = load_model(str(folder), "bf16"), load_model(str(folder), "fp32")
    for name, module in model.named_modules():
        if name.endswith("_proj") and module.bias is not None:
            torch.nn.init.normal_(module.bias)
            exact.get_submodule(name).bias.data.copy_(module.bias)
    weights = [(n % 17 / 16, 1 - n % 17 / 16) for n in range(rows)]
    asked = [Mixture.of({"red": one, ("tall", "cold")[n % 2]: other}) for n, (one, other) in enumerate(weights)]
    tokens = torch.randint(1, 600, (rows, 1), generator=torch.Generator().manual_seed(1))

    orders: list[set[bool]] = []

    def logits(of: Any) -> torch.Tensor:
        fused = FusedLora(of, bank, LoraSettings("union"))
        fused.set_mixtures(asked)
        used = [form for form in fused.union_forms if form is not None]
        orders.append({form._transposed is not None for form in used})
        with torch.no_grad():
            found: torch.Tensor = of(tokens).logits.float()
        fused.detach()
        return found

    turned, expected = logits(model), logits(exact)
    monkeypatch.setattr(forms, "_TRANSPOSED_UNITS", ())
    straight = logits(model)
    assert orders == [{rows == 32}, {False}, {False}]  # else the same would be compared with itself
    error = (straight - expected).abs().max()
    assert (turned - expected).abs().max() <= 2 * error
    assert (turned - straight).abs().max() <= 2 * error


@given(sixteenths=st.lists(st.integers(0, 16), min_size=1, max_size=40), scale=st.sampled_from([1.0, 2.0, 0.5, 4.0]))
def test_weights_in_sixteenths_are_narrowed_without_loss(sixteenths: list[int], scale: float) -> None:
    weights = torch.tensor(sixteenths) / 16 * scale
    narrow = narrowed(weights, torch.bfloat16)
    assert narrow.dtype is torch.bfloat16
    assert torch.equal(narrow.float(), weights)


def test_weights_that_would_lose_bits_stay_as_they_are() -> None:
    weights = torch.tensor([0.5, 1 / 3])
    assert narrowed(weights, torch.bfloat16) is weights
    assert narrowed(weights, torch.float32).dtype is torch.float32


def test_the_form_follows_the_batch(tmp_path: Path) -> None:
    """A few adapters: stacked. A hundred in prompts of one each: gathered, whatever the machine is doing."""
    folder = tiny.make_model(tmp_path / "model")
    names = [f"a{n:03d}" for n in range(96)]
    for seed, name in enumerate(names):
        tiny.make_adapter(tmp_path / "bank" / name, {"model.layers.0.self_attn.q_proj": (48, 48)}, 8, seed)
    fused = FusedLora(load_model(str(folder), "fp32"), AdapterBank.load(tmp_path / "bank"))
    mixtures = [Mixture.of({name: 1.0}) for name in names]
    fused.set_mixtures(mixtures[:2])
    assert fused.forms == ["union"]
    fused.set_tokens(mixtures, torch.arange(96).repeat_interleave(128))
    assert fused.forms == ["gather"]
    fused.detach()


@given(
    counts=st.lists(st.integers(1, 500), min_size=1, max_size=64),
    rank=st.integers(1, 64),
    costs=st.sampled_from([cost.CPU_HALF, cost.CPU_FULL, cost.CUDA]),
)
def test_costs_grow_with_the_batch(counts: list[int], rank: int, costs: cost.Costs) -> None:
    small = cost.Workload(counts, sum(counts), rank * len(counts), rank, True)
    large = cost.Workload([*counts, 9], sum(counts) + 9, rank * (len(counts) + 1), rank, True)
    assert cost.union_cost(small, ONE, costs, 2) < cost.union_cost(large, ONE, costs, 2)
    assert cost.gather_cost(small, ONE, costs, 2, 64) < cost.gather_cost(large, ONE, costs, 2, 64)


def test_more_adapters_than_slots_are_brought_in_for_their_batch(parts: tuple[Any, AdapterBank]) -> None:
    model, bank = parts
    fused = FusedLora(model, bank, LoraSettings(adapter_slots=2))
    fused.set_mixtures([Mixture.of({name: 1.0}) for name in tiny.ADAPTERS[:5]])
    assert len(fused.residency._resident) == 5
    fused.set_mixtures([Mixture.of({"red": 1.0})])
    assert len(fused.residency._resident) == 2
    fused.detach()
