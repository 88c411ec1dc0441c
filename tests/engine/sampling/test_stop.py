"""Stop strings in streams of tokens, against decoding everything at each token."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine.sampling.stop import StopScanner
from pipeline.models import load_tokenizer
from tests import examples

Decode = Callable[[Sequence[int]], str]


@pytest.fixture(scope="module")
def decode(tiny_model: Path) -> Decode:
    tokenizer = load_tokenizer(str(tiny_model))
    return lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True))


def by_decoding_all(decode: Decode, tokens: list[int], stop: tuple[str, ...], free: int) -> tuple[int, str] | None:
    """The token that completes a stop string, and the text before it."""
    for count in range(free + 1, len(tokens) + 1):
        text = decode(tokens[:count]).rstrip("\ufffd")
        before = len(decode(tokens[: count - 1]).rstrip("\ufffd"))
        places = [p for s in stop if (p := text.find(s, max(0, before - len(s) + 1))) >= 0]
        if places:
            return count, text[: min(places)]
    return None


def by_scanning(decode: Decode, tokens: list[int], stop: tuple[str, ...], free: int) -> tuple[int, str] | None:
    scanner = StopScanner(decode, stop, free)
    for count, token in enumerate(tokens, start=1):
        if scanner.add(token):
            assert scanner.text is not None
            return count, scanner.text
    return None


# Letters, spaces, whole words and single bytes of longer characters.
TOKEN = st.integers(1, 120) | st.integers(1, 286)
PIECE = st.sampled_from(["re", "red1", "d", " ", "1 t", "tall", "é", "ab", "a", "\n", " cold2 l"])


@pytest.mark.long
@settings(max_examples=examples(300))
@given(
    st.lists(TOKEN, max_size=25), st.lists(PIECE, min_size=1, max_size=3, unique=True), st.just(0) | st.integers(0, 6)
)
def test_a_stop_string_is_found_when_its_last_token_comes(
    decode: Decode, tokens: list[int], stop: list[str], free: int
) -> None:
    assert by_scanning(decode, tokens, tuple(stop), free) == by_decoding_all(decode, tokens, tuple(stop), free)


def test_each_step_decodes_a_few_tokens_however_long_the_answer_is(decode: Decode) -> None:
    lengths: list[int] = []

    def watched(tokens: Sequence[int]) -> str:
        lengths.append(len(tokens))
        return decode(tokens)

    scanner = StopScanner(watched, ("never there",))
    assert not any(scanner.add(token) for token in [66, 67, 68] * 200)
    assert max(lengths) <= 2


def test_a_character_of_several_tokens_is_found_once_it_is_whole(tiny_model: Path, decode: Decode) -> None:
    tokens = load_tokenizer(str(tiny_model))("aé€b").input_ids
    assert by_scanning(decode, tokens, ("€",), 0) == (6, "aé")
    assert by_scanning(decode, tokens, ("b",), 0) == (7, "aé€")
