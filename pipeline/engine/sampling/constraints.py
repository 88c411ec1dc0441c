"""Hold answers to a JSON schema, a regex or a grammar with llguidance (https://github.com/guidance-ai/llguidance)."""

from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from pipeline.engine.request import Constraint

_MAX_COMPILED = 256  # constraints; a schema per record must not fill the memory
# The style of `json.dumps`: models know it, and cannot add white space for ever. A schema may set another style under
# `x-guidance`.
JSON_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Constraints:
    """Compiled constraints of one tokenizer; a constraint is compiled once while it is in use.

    ``vocabulary``: size of the model's, which may exceed the tokenizer's. ``end_tokens``: tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, end_tokens: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._end_tokens = sorted(end_tokens)
        self._compile = lru_cache(_MAX_COMPILED)(self._compile_uncached)

    def problem(self, constraint: Constraint) -> str | None:
        """Return why answers cannot be held to this constraint, in one line; None if they can."""
        try:
            compiled = self._compile(constraint)
        except (ImportError, ValueError) as error:
            return str(error)
        return f"{constraint.kind}: {_error(compiled)}" if compiled.is_error() else None

    def matcher(self, constraint: Constraint) -> "Matcher":
        """Make the matcher of an answer without tokens. Call only if there is no `problem`."""
        return Matcher(self._compile(constraint).deep_copy(), self._vocabulary)

    @cached_property
    def _library_tokenizer(self) -> Any:
        from llguidance.hf import from_tokenizer

        if not self._tokenizer.is_fast:
            raise ValueError(
                f"json_schema, regex and grammar need a fast tokenizer (tokenizer.json), not"
                f" {type(self._tokenizer).__name__}"
            )
        return from_tokenizer(self._tokenizer, n_vocab=self._vocabulary, eos_token=self._end_tokens)

    def _compile_uncached(self, constraint: Constraint) -> Any:
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise ImportError(
                "json_schema, regex and grammar need the package llguidance: pip install 'loraloom[guided]'"
            ) from None
        return LLMatcher(self._library_tokenizer, _grammar(constraint), log_level=0)


class Matcher:
    """Progress of one answer through its constraint."""

    def __init__(self, compiled: Any, vocabulary: int) -> None:
        self._compiled = compiled
        self._vocabulary = vocabulary

    def allowed(self) -> np.ndarray:
        """Return the allowed next tokens, bool [vocabulary]; end tokens are allowed if the answer may end."""
        bits = np.frombuffer(self._compiled.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, count=self._vocabulary, bitorder="little").astype(bool)

    def add(self, token: int) -> bool:
        """Advance by one token; False if it is not allowed, or the grammar exceeds the library's limits."""
        # After an error, such as a limit reached in `allowed`, the library accepts an end token without complaint.
        return bool(self._compiled.consume_token(token)) and not self._compiled.is_error()

    @property
    def is_complete(self) -> bool:
        """Whether the answer matches and no token can follow."""
        return bool(self._compiled.is_stopped())

    @property
    def error(self) -> str:
        """The library's error, in one line."""
        return _error(self._compiled)


def _error(compiled: Any) -> str:
    return " ".join(compiled.get_error().split())[:200]


def _grammar(constraint: Constraint) -> str:
    from llguidance import LLMatcher

    make: dict[str, Any] = {
        "json_schema": lambda text: LLMatcher.grammar_from_json_schema(text, defaults=JSON_STYLE),
        "regex": LLMatcher.grammar_from_regex,
        "grammar": LLMatcher.grammar_from_lark,
    }
    grammar: str = make[constraint.kind](constraint.text)
    return grammar
