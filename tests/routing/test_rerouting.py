"""Sentences of an answer, found while it is generated."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from pipeline.records import Mixture
from pipeline.routing import RoutingPolicy, SentenceSettings
from pipeline.routing.rerouting import SentenceRouter
from pipeline.routing.router import Route
from tests.routing.test_sentences import BYTES

OLD, NEW = Mixture.of({"old": 1.0}), Mixture.of({"new": 1.0})


@dataclass(frozen=True)
class Asked:
    tokens: Sequence[int]
    context: int = 0


class Words:
    """A tokenizer of the words that it is given, each with the space before it; other characters are bytes."""

    def __init__(self, *texts: str) -> None:
        self.words = list(dict.fromkeys(w for text in texts for w in split(text)))
        self.decoded = 0

    def get_vocab(self) -> dict[str, int]:
        return {word: 256 + i for i, word in enumerate(self.words)} | {f"<{i}>": i for i in range(256)}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        words = self.get_vocab()
        return [t for w in split(text) for t in ([words[w]] if w in words else w.encode())]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        self.decoded += 1
        names = dict(enumerate(self.words, start=256))  # others have no text
        pieces = [names.get(t, "").encode() if t >= 256 else bytes([t]) for t in token_ids]
        return b"".join(pieces).decode(errors="replace")


def split(text: str) -> list[str]:
    """Words and single punctuation marks, with the space before them."""
    found: list[str] = []
    for character in text:
        if found and (found[-1] + character).strip().isalnum() and not found[-1].endswith("\n") and character != " ":
            found[-1] += character
        else:
            found.append(character)
    return found


class FixedRouter:
    def __init__(self, fallback: bool = False) -> None:
        self.fallback = fallback
        self.shown: list[list[int]] = []

    def route(self, prompts: Sequence[Sequence[int]], policy: RoutingPolicy) -> list[Route]:
        self.shown += [list(p) for p in prompts]
        return [Route(Mixture() if self.fallback else NEW, 0.0, 0.5, self.fallback)] * len(prompts)


def make(tokenizer: Words, router: FixedRouter | None = None, minimum: int = 2, language: str = "en") -> SentenceRouter:
    settings = SentenceSettings(language, 1, minimum)
    return SentenceRouter(router or FixedRouter(), RoutingPolicy(), settings, tokenizer)  # type: ignore[arg-type]


def openings(text: str, **settings: object) -> list[str]:
    """The tokens of an answer at which a sentence is said to start."""
    tokenizer = Words(text)
    route = make(tokenizer, **settings)  # type: ignore[arg-type]
    tokens = tokenizer.encode(text, add_special_tokens=False)
    sentences, found = [(0, OLD)], []
    for length in range(1, len(tokens) + 1):
        mixture = route(Asked([1]), tokens[:length], sentences)
        if mixture is not None:
            sentences.append((length - 1, mixture))
            found.append(tokenizer.decode(tokens[length - 1 : length], skip_special_tokens=True))
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is so. Then it ends. ", [" Then"]),
        ("It costs $3.50 at Dr. Smith's. Buy it! Why not? I do", [" Buy", " Why", " I"]),
        ('She said "go now." He left (as told.) and slept', [" He"]),
        ("A first part\n\nA second part", ["A"]),
        ("a line\nanother line", []),
        ("They waited... and then. So it was", [" So"]),
        ("no end at all", []),
    ],
)
def test_sentences_start_where_the_splitter_says(text: str, expected: list[str]) -> None:
    assert openings(text) == expected


def test_short_sentences_go_with_what_follows_them() -> None:
    text = "1. Red. 2. The sky is blue today. So is the sea"
    assert openings(text, minimum=7) == [" So"]


def test_marks_that_are_several_tokens_end_a_sentence() -> None:
    tokenizer = Words("zz")
    route = make(tokenizer, minimum=6)
    tokens = list("你好世界。再".encode())
    starts = [n for n in range(1, len(tokens) + 1) if route(Asked([1]), tokens[:n], [(0, OLD)]) is not None]
    assert starts == [len("你好世界。".encode()) + 1]


def test_the_router_sees_the_last_paragraph_of_the_prompt_and_the_answer() -> None:
    text = "It is so. Then"
    router, tokenizer = FixedRouter(), Words(text)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert make(tokenizer, router)(Asked([7, 8, 9], 1), tokens, [(0, OLD)]) == NEW
    assert router.shown == [[8, 9, *tokens]]


def test_tokens_that_only_the_model_has_are_not_shown() -> None:
    text = "It is so. Then"
    router, tokenizer = FixedRouter(), Words(text)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    make(tokenizer, router)(Asked([7]), [1000, *tokens], [(0, OLD)])
    assert router.shown == [[7, *tokens]]


def test_below_the_gate_the_mixture_stays() -> None:
    text = "It is so. Then"
    tokenizer = Words(text)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert make(tokenizer, FixedRouter(fallback=True))(Asked([7]), tokens, [(0, OLD)]) == OLD


def test_the_usual_token_is_not_decoded() -> None:
    text = "one two three four five six seven. Eight nine ten eleven twelve"
    tokenizer = Words(text)
    route = make(tokenizer)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    before = tokenizer.decoded
    for length in range(1, len(tokens) + 1):
        route(Asked([1]), tokens[:length], [(0, OLD)])
    assert tokenizer.decoded - before == 2, "the text and its opening, at `Eight`"


def test_a_byte_tokenizer_will_do() -> None:
    class Fast:
        def get_vocab(self) -> dict[str, int]:
            return dict(BYTES.get_vocab())

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return list(BYTES.encode(text).ids)

        def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
            return str(BYTES.decode(list(token_ids)))

    route = SentenceRouter(FixedRouter(), RoutingPolicy(), SentenceSettings(), Fast())  # type: ignore[arg-type]
    tokens = list(BYTES.encode("It is as it is. Then").ids)
    found = [n for n in range(1, len(tokens) + 1) if route(Asked([1]), tokens[:n], [(0, OLD)])]
    assert found == [len("It is as it is. T")]
