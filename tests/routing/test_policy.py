from fractions import Fraction
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import Mixture
from pipeline.routing import RoutingPolicy, WeightRule
from pipeline.routing.policy import quantise
from tests.storage import user_error

PARTS = 64  # probabilities are multiples of 1/64, so that floats hold their sums exactly


@st.composite
def probabilities(draw: st.DrawFn) -> list[Fraction]:
    """A distribution over 1 to 7 classes, with zeros and ties."""
    cuts = sorted(draw(st.lists(st.integers(0, PARTS), max_size=6)))
    return [Fraction(b - a, PARTS) for a, b in zip([0, *cuts], [*cuts, PARTS], strict=True)]


top_ps = st.integers(1, PARTS).map(lambda n: Fraction(n, PARTS))


def labels(count: int) -> list[str]:
    return [f"adapter{number}" for number in range(count)]


def tensor(*rows: list[Fraction] | list[float]) -> torch.Tensor:
    return torch.tensor([[float(value) for value in row] for row in rows])


def chosen(row: list[Fraction], policy: RoutingPolicy) -> list[int]:
    """Classes that top-p keeps, in its order."""
    kept, places = policy.choose(tensor(row))
    return [place for value, place in zip(kept[0].tolist(), places[0].tolist(), strict=True) if value > 0]


@given(probabilities(), top_ps)
def test_top_p_keeps_a_smallest_set_that_reaches_p(row: list[Fraction], top_p: Fraction) -> None:
    kept = chosen(row, RoutingPolicy(top_p=float(top_p), max_adapters=99))
    smallest = next(
        size
        for size in range(1, len(row) + 1)
        if any(sum(row[c] for c in classes) >= top_p for classes in combinations(range(len(row)), size))
    )
    assert len(kept) == smallest
    assert sum(row[c] for c in kept) >= top_p


@pytest.mark.long
@given(probabilities(), top_ps, st.integers(1, 8))
def test_at_most_max_adapters_are_kept_and_they_are_the_likeliest(
    row: list[Fraction], top_p: Fraction, most: int
) -> None:
    kept = chosen(row, RoutingPolicy(top_p=float(top_p), max_adapters=most))
    unlimited = chosen(row, RoutingPolicy(top_p=float(top_p), max_adapters=99))
    assert kept == unlimited[:most]
    assert 1 <= len(kept) <= most
    assert kept == sorted(kept, key=lambda c: (-row[c], c))
    assert min(row[c] for c in kept) >= max((p for c, p in enumerate(row) if c not in unlimited), default=0)


@pytest.mark.parametrize("rule", ["renormalize", "softmax"])
@given(row=probabilities(), top_p=top_ps, most=st.integers(1, 6))
def test_weights_of_a_mixture_are_sixteenths_that_sum_to_exactly_one(
    rule: WeightRule, row: list[Fraction], top_p: Fraction, most: int
) -> None:
    policy = RoutingPolicy(top_p=float(top_p), max_adapters=most, weights=rule)
    (mixture,) = policy.mixtures(tensor(row), labels(len(row)))
    assert sum(mixture.weights) == 1.0
    assert all(weight > 0 and (weight * 16).is_integer() for weight in mixture.weights)
    assert set(mixture.adapters) <= {f"adapter{c}" for c in chosen(row, policy)}


shares = st.lists(st.floats(0, 1), min_size=1, max_size=6).filter(lambda values: sum(values) > 1e-3)


@given(shares, st.integers(1, 100))
def test_quantised_weights_sum_to_the_steps_and_are_within_one_of_exact(values: list[float], steps: int) -> None:
    weights = torch.tensor([values], dtype=torch.float64)
    weights /= weights.sum()
    (units,) = quantise(weights, steps).tolist()
    assert sum(units) == steps
    assert all(abs(unit - weight * steps) < 1 + 1e-9 for unit, weight in zip(units, weights[0].tolist(), strict=True))
    assert all(unit == 0 for unit, weight in zip(units, weights[0].tolist(), strict=True) if weight == 0)


@given(shares, st.integers(1, 100))
def test_quantising_keeps_what_is_a_multiple_of_the_step(values: list[float], steps: int) -> None:
    units = quantise(torch.tensor([values], dtype=torch.float64) / sum(values), steps)
    assert torch.equal(quantise(units.double() / steps, steps), units)


def test_renormalize_keeps_the_proportions() -> None:
    (mixture,) = RoutingPolicy(top_p=0.7).mixtures(tensor([0.6, 0.2, 0.1, 0.1]), labels(4))
    assert mixture == Mixture.of({"adapter0": 0.75, "adapter1": 0.25})


def test_softmax_evens_the_proportions_out() -> None:
    policy = RoutingPolicy(top_p=0.7, weights="softmax", weight_steps=1000)
    (mixture,) = policy.mixtures(tensor([0.6, 0.2, 0.1, 0.1]), labels(4))
    expected = torch.tensor([0.6, 0.2]).softmax(0).tolist()
    assert list(mixture.weights) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("rule", ["renormalize", "softmax"])
def test_a_sure_router_gives_one_adapter(rule: WeightRule) -> None:
    policy = RoutingPolicy(weights=rule)
    assert policy.mixtures(tensor([0.0, 1.0, 0.0]), ["a", "b", "c"]) == [Mixture.of({"b": 1.0})]
    assert policy.mixtures(tensor([1.0]), ["only"]) == [Mixture.of({"only": 1.0})]


def test_equal_probabilities_go_to_the_first_classes() -> None:
    policy = RoutingPolicy(top_p=0.5, max_adapters=4)
    row = [1 / 8] * 8
    expected = Mixture.of({f"adapter{c}": 0.25 for c in range(4)})
    assert policy.mixtures(tensor(row), labels(8)) == [expected]
    assert policy.mixtures(tensor(*[row] * 50), labels(8)) == [expected] * 50


def test_units_left_over_at_a_tie_go_to_the_first_classes() -> None:
    policy = RoutingPolicy(top_p=1.0, max_adapters=3)
    (mixture,) = policy.mixtures(tensor([1 / 3] * 3), labels(3))
    assert mixture == Mixture.of({"adapter0": 6 / 16, "adapter1": 5 / 16, "adapter2": 5 / 16})


@given(st.lists(probabilities(), min_size=1, max_size=5))
def test_a_row_is_routed_alike_alone_and_in_a_batch(rows: list[list[Fraction]]) -> None:
    policy = RoutingPolicy()
    rows = [row + [Fraction(0)] * (7 - len(row)) for row in rows]
    alone = [mixture for row in rows for mixture in policy.mixtures(tensor(row), labels(7))]
    assert policy.mixtures(tensor(*rows), labels(7)) == alone


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (RoutingPolicy(fallback="base"), []),
        (RoutingPolicy(fallback="all"), [0, 1, 2, 3, 4]),
        (RoutingPolicy(fallback="nearest"), [1, 2, 4]),
        (RoutingPolicy(fallback="nearest", max_adapters=2), [2, 4]),
        (RoutingPolicy(fallback="nearest", max_adapters=0), []),
        (RoutingPolicy(fallback="all", max_adapters=0), []),
    ],
)
def test_a_fallback_is_the_base_model_or_adapters_at_equal_weight(policy: RoutingPolicy, expected: list[int]) -> None:
    found = policy.fallbacks(tensor([0.0, 0.05, 0.15, 0.0, 0.8], [0.0, 0.05, 0.15, 0.0, 0.8]), labels(5))
    assert found == [Mixture.of({f"adapter{c}": 1 / len(expected) for c in expected})] * 2
    assert len(found[0].adapters) <= policy.largest_mixture(5)


def test_only_a_blend_of_all_makes_mixtures_larger_than_max_adapters() -> None:
    policies = [RoutingPolicy(fallback=kind) for kind in ("base", "nearest", "all")]
    assert [policy.largest_mixture(26) for policy in policies] == [4, 4, 26]
    assert RoutingPolicy(fallback="all", gate=False).largest_mixture(26) == 4
    assert RoutingPolicy(fallback="all", max_adapters=0).largest_mixture(26) == 0


def test_a_blend_of_all_adapters_of_a_large_router_is_refused() -> None:
    RoutingPolicy(fallback="all").check_fallback(labels(100))
    RoutingPolicy(fallback="nearest").check_fallback(labels(101))
    RoutingPolicy(fallback="all", gate=False).check_fallback(labels(101))
    with user_error("routing.fallback=all", "100", "101", "nearest"):
        RoutingPolicy(fallback="all").check_fallback(labels(101))


def test_no_rows_are_no_mixtures() -> None:
    assert RoutingPolicy().mixtures(torch.empty(0, 3), labels(3)) == []
