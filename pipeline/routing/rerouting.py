"""Route an answer sentence by sentence while it is generated."""

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from itertools import takewhile
from typing import Any, Protocol

from sentencex import get_sentence_boundaries

from pipeline.records import Mixture

from .policy import RoutingPolicy
from .router import Router
from .sentences import SentenceSettings, ends_with_start

_PART = "\ufffd"  # the text of a token that holds a part of a character


class PromptRequest(Protocol):
    """The parts of an engine's request that are used."""

    @property
    def tokens(self) -> Sequence[int]:
        """Token ids of the prompt."""

    @property
    def context(self) -> int:
        """Index of the first token of the prompt that the router reads: of the paragraph with the question."""


class SentenceRouter:
    """Gives each sentence of an answer its own mixture, at its first token (DLP-LoRA, arXiv 2410.01497).

    It is a `pipeline.engine.Reroute`: a function of the record's own tokens alone. The router reads the prompt's last
    paragraph and all of the answer so far: an answer alone is unlike the prompts that it was trained on.
    """

    def __init__(self, router: Router, policy: RoutingPolicy, settings: SentenceSettings, tokenizer: Any) -> None:
        self.router = router
        self.policy = policy
        self.settings = settings
        self.tokenizer = tokenizer
        self._vocabulary = max(tokenizer.get_vocab().values()) + 1
        self._wordless, self._ends = _token_kinds(tokenizer, settings.language)

    def __call__(
        self, request: PromptRequest, new_tokens: Sequence[int], sentences: Sequence[tuple[int, Mixture]]
    ) -> Mixture | None:
        """Return the mixture of the sentence that the last new token starts; None if it starts none."""
        start, mixture = sentences[-1]
        if not self._may_start(new_tokens, start):
            return None
        # The splitter must agree that a sentence starts at the last token: no abbreviation, no decimal point.
        if not ends_with_start(self._text(new_tokens[start:]), self._text(new_tokens[-1:]), self.settings.language):
            return None
        # A model may have more tokens than its tokenizer; they have no text, and the router does not know them.
        answer = [token for token in new_tokens if token < self._vocabulary]
        [route] = self.router.route([[*request.tokens[request.context :], *answer]], self.policy)
        return mixture if route.fallback else route.mixture

    def _may_start(self, tokens: Sequence[int], start: int) -> bool:
        """Whether the last token has a letter or digit and follows the end of a sentence (rare)."""
        index = len(tokens) - 2
        if index + 1 - start < self.settings.min_sentence_tokens or tokens[-1] in self._wordless:
            return False
        while index > start and tokens[index] in self._wordless and tokens[index] not in self._ends:
            index -= 1  # closing quotes and brackets
        return any(tuple(tokens[index + 1 - len(end) : index + 1]) == end for end in self._ends.get(tokens[index], ()))

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text


def _token_kinds(tokenizer: Any, language: str) -> tuple[set[int], dict[int, list[tuple[int, ...]]]]:
    """Find the tokens without a letter or digit, and the token sequences that may end a sentence, by last token."""
    terminators = _terminators(language) | {"\n"}
    wordless: set[int] = set()
    ends: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for token in sorted(tokenizer.get_vocab().values()):
        text = tokenizer.decode([token], skip_special_tokens=True)
        if _PART not in text and not any(map(str.isalnum, text)):
            wordless.add(token)
        tail = takewhile(lambda character: not character.isalnum(), reversed(text))
        if not terminators.isdisjoint(tail):
            ends[token].append((token,))
    for terminator in sorted(terminators):  # terminators that the tokenizer writes as several tokens
        before = tokenizer.encode("a", add_special_tokens=False)
        tokens = tokenizer.encode("a" + terminator, add_special_tokens=False)[len(before) :]
        if len(tokens) > 1:
            ends[tokens[-1]].append(tuple(tokens))
    return wordless, dict(ends)


@cache
def _terminators(language: str) -> frozenset[str]:
    """The characters that end a sentence for the splitter, found by trying each of them."""
    planes = map(chr, range(0x20000))  # no script has punctuation beyond
    marks = [c for c in planes if unicodedata.category(c).startswith("P")]
    return frozenset(c for c in marks if len(get_sentence_boundaries(language, f"Aa bb{c} Cc dd")) > 1)
