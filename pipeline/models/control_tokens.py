"""Tell the control tokens that a chat template writes from those that somebody typed into a message.

A tokenizer knows a control token such as ``<|im_end|>`` by its text alone. In a conversation whose texts hold one, the
template's own are written in private-use characters, and a copy of the tokenizer knows them by these; the typed ones
are then text to it like any other. All other conversations are tokenised as they always were.
"""

import re
from collections.abc import Container
from functools import cached_property
from typing import Any

import orjson
from tokenizers import Tokenizer

_ALIAS, _PLACEHOLDER = 0xF0000, 0x100000  # the first characters of the two supplementary private use areas
_ROLES = {
    *("system", "user", "assistant", "developer", "tool", "function"),
    *("ipython", "environment", "observation", "model", "context"),
}
_PRIVATE = re.compile(f"[{chr(_ALIAS)}-{chr(0x10FFFF)}]")


class ControlTokens:
    """The control tokens of a tokenizer: its special tokens, and added tokens that its chat template writes."""

    def __init__(self, tokenizer: Any, template: str) -> None:
        self._tokenizer = tokenizer
        self._normalizer: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
        added = [token for token in tokenizer.added_tokens_decoder.values() if token.content.strip()]
        # Those that the normaliser changes are found in some places and not in others, so no copy would do the same.
        self._unsafe = {token.content for token in added if token.special and self._is_changed(token)}
        controls = [t for t in added if t.special or (t.content in template and not self._is_changed(t))]
        self._are_normalized = self._normalizer is not None and any(token.normalized for token in controls)
        self._tokens = sorted({token.content for token in controls})
        self._numbers = {token: number for number, token in enumerate(self._tokens)}
        self._lengths = sorted(set(map(len, self._tokens)), reverse=True)
        # Looked for first, as that takes a tenth of a microsecond: nearly no text has one.
        self._characters = sorted({token[0] for token in self._tokens})
        self._starts = sorted({token[:2] for token in self._tokens})
        self._start = re.compile(f"(?={'|'.join(map(re.escape, self._starts)) or '(?!)'})")

    def first_in(self, value: Any) -> str | None:
        """Return a control token in the texts and keys of a value of lists and objects; None if there is none."""
        if isinstance(value, str):
            found = self._first_in_text(value)
            if found is None and self._are_normalized:
                found = self._first_in_text(self._normalizer.normalize_str(value))
            return found
        inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
        for part in inner:
            found = self.first_in(part)
            if found is not None:
                return found
        return None

    def with_role(self, role: str) -> str | None:
        """Return a control token that a template could make of a role that is none of the usual ones."""
        return None if role in _ROLES else next((token for token in self._tokens if role in token), None)

    def marked(self, value: Any) -> Any:
        """Return a value with a placeholder of the same length for each control token in its texts.

        Raises `ValueError` if the texts hold characters that are used as placeholders, or a token without one.
        """
        if isinstance(value, str):
            unsafe = {value[begin:end] for begin, end in self._spans(value)} & self._unsafe
            if unsafe:
                raise ValueError(f"the tokenizer normalises the special token {min(unsafe)!r}, so it cannot be text")
            if _PRIVATE.search(value):
                raise ValueError("special tokens together with characters of the private use areas above U+F0000")
            return self._replaced(value, _PLACEHOLDER)
        if isinstance(value, dict):
            return {self.marked(key): self.marked(inner) for key, inner in value.items()}
        return [self.marked(inner) for inner in value] if isinstance(value, list) else value

    def aliased(self, text: str) -> str:
        """Return a rendered text with its placeholders as the tokens that they stand for, and aliases for the others.

        The result is as long as the text that the tokenizer would get. Raises `ValueError` if the template cut a token,
        or if there can be no such copy of the tokenizer.
        """
        assert self._copy
        return self._with_tokens(self._replaced(text, _ALIAS, self._unsafe), _PLACEHOLDER)

    def unaliased(self, text: str) -> str:
        """Return a text of `aliased` with all tokens as they are."""
        return self._with_tokens(text, _ALIAS)

    def encode(self, texts: list[str]) -> list[Any]:
        """Tokenise texts of `aliased`; returns an `Encoding` of tokenizers for each."""
        encoded: list[Any] = self._copy.encode_batch(texts, add_special_tokens=False)
        return encoded

    def _first_in_text(self, text: str) -> str | None:
        for character in self._characters:
            if character in text:
                return next((text[begin:end] for begin, end in self._spans(text)), None)
        return None

    def _is_changed(self, token: Any) -> bool:
        """Whether a token is found in normalised text, and there it is another text."""
        if not token.normalized or self._normalizer is None:
            return False
        return bool(self._normalizer.normalize_str(token.content) != token.content)

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Return where control tokens stand, the longest at each position, as tokenizers find them."""
        spans: list[tuple[int, int]] = []
        for match in self._start.finditer(text):
            begin = match.start()
            if not spans or begin >= spans[-1][1]:
                possible = (text[begin : begin + length] for length in self._lengths)
                spans += [(begin, begin + len(token)) for token in possible if token in self._numbers][:1]
        return spans

    def _replaced(self, text: str, first: int, kept: Container[str] = ()) -> str:
        parts: list[str] = []
        last = 0
        for begin, end in self._spans(text):
            token = text[begin:end]
            parts += [text[last:begin], token if token in kept else chr(first + self._numbers[token]) * len(token)]
            last = end
        return "".join([*parts, text[last:]])

    def _with_tokens(self, text: str, first: int) -> str:
        """Return a text with the tokens that runs of characters from ``first`` on stand for."""

        def token_of(run: re.Match[str]) -> str:
            token: str = self._tokens[ord(run[1]) - first]
            count, rest = divmod(len(run[0]), len(token))
            if rest:
                raise ValueError(f"the chat template cuts the special token {token!r} in the text")
            return token * count

        return re.sub(f"([{chr(first)}-{chr(first + 0xFFFD)}])\\1*", token_of, text)

    @cached_property
    def _copy(self) -> Tokenizer:
        """The tokenizer, with aliases as the names of the control tokens and no other change."""
        if not getattr(self._tokenizer, "is_fast", False):
            raise ValueError("special tokens in text need a fast tokenizer (or model.special_tokens=control)")
        values = orjson.loads(self._tokenizer.backend_tokenizer.to_str())
        names = {
            token: chr(_ALIAS + number) * len(token)
            for token, number in self._numbers.items()
            if token not in self._unsafe
        }
        for added in values["added_tokens"]:
            added["content"] = names.get(added["content"], added["content"])
        model = values["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(piece, piece): index for piece, index in model["vocab"].items()}
        else:  # Unigram would find a control token among its pieces
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        if isinstance(model.get("unk_token"), str):
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        copy = Tokenizer.from_str(orjson.dumps(values | {"truncation": None, "padding": None}).decode())
        for token, name in names.items():
            if copy.token_to_id(name) != self._tokenizer.convert_tokens_to_ids(token):
                raise ValueError(f"the special token {token!r} cannot be renamed (see model.special_tokens=control)")
        return copy
