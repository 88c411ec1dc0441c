import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import Mixture

# Text that UTF-8 can hold, with the characters that a key uses itself.
names = st.one_of(st.text(alphabet="+:%/ .ab1é", max_size=8), st.text(st.characters(exclude_categories=["Cs"])))
weights = st.integers(1, 16).map(lambda n: n / 16)
mappings = st.dictionaries(names, weights, max_size=6)


@given(mappings)
def test_a_key_is_parsed_back_to_the_same_mixture(mapping: dict[str, float]) -> None:
    mixture = Mixture.of(mapping)
    assert Mixture.parse(mixture.key) == mixture


@given(st.dictionaries(names, st.floats(1e-6, 1.0), max_size=6))
def test_any_float_weight_survives_the_key(mapping: dict[str, float]) -> None:
    parsed = Mixture.parse(Mixture.of(mapping).key)
    assert dict(zip(parsed.adapters, parsed.weights, strict=True)) == mapping


@given(mappings, st.randoms(use_true_random=False))
def test_the_order_of_adapters_does_not_matter(mapping: dict[str, float], random: object) -> None:
    items = list(mapping.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    assert Mixture.of(dict(items)).key == Mixture.of(mapping).key
    assert Mixture.of(dict(items)) == Mixture.of(mapping)


@given(mappings, mappings)
def test_different_mixtures_have_different_keys(a: dict[str, float], b: dict[str, float]) -> None:
    assert (Mixture.of(a).key == Mixture.of(b).key) == (a == b)


@pytest.mark.parametrize("mapping", [{}, {"legal": 0.0}])
def test_no_weight_is_the_base_model(mapping: dict[str, float]) -> None:
    assert Mixture.of(mapping) == Mixture() == Mixture.parse("base")
    assert Mixture.of(mapping).key == "base"


def test_an_adapter_called_base_is_not_the_base_model() -> None:
    mixture = Mixture.of({"base": 1.0})
    assert mixture.key == "base:1.0"
    assert Mixture.parse(mixture.key) == mixture != Mixture()


def test_a_key_reads_as_names_and_weights() -> None:
    assert Mixture.of({"med": 0.25, "a+b": 0.75, "none": 0}).key == "a%2Bb:0.75+med:0.25"
