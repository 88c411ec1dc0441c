"""Answers that match a JSON schema, a regex or a grammar, by llguidance (https://github.com/guidance-ai/llguidance)."""

from collections import OrderedDict
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.engine.request import Constraint

_KEPT = 256  # compiled constraints; a record of its own schema each must not fill the memory
# As `json.dumps` writes: models know this form, and none can go on with white space for ever. A schema may ask for
# another form under `x-guidance`.
JSON_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Constraints:
    """Compiled constraints of one tokenizer; each distinct one is compiled once while it is in use.

    ``vocabulary``: the model's; it may be larger than the tokenizer's. ``end_tokens``: those that end an answer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, end_tokens: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._end_tokens = sorted(end_tokens)
        self._compiled: OrderedDict[Constraint, Any] = OrderedDict()

    def problem(self, constraint: Constraint) -> str | None:
        """Why answers cannot be held to this constraint, in one line; None where they can."""
        try:
            compiled = self._matcher(constraint)
        except (ImportError, ValueError) as error:
            return str(error)
        if not compiled.is_error():
            return None
        return f"{constraint.kind}: {' '.join(compiled.get_error().split())[:200]}"

    def matcher(self, constraint: Constraint) -> "Matcher":
        """The state of an answer that has no tokens yet. Call only where there is no `problem`."""
        return Matcher(self._matcher(constraint).deep_copy(), self._vocabulary)

    @cached_property
    def _library_tokenizer(self) -> Any:
        from llguidance.hf import from_tokenizer

        if not self._tokenizer.is_fast:
            raise ValueError(
                f"json_schema, regex and grammar need a fast tokenizer (tokenizer.json), not"
                f" {type(self._tokenizer).__name__}"
            )
        return from_tokenizer(self._tokenizer, n_vocab=self._vocabulary, eos_token=self._end_tokens)

    def _matcher(self, constraint: Constraint) -> Any:
        if constraint in self._compiled:
            self._compiled.move_to_end(constraint)
            return self._compiled[constraint]
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise ImportError(
                "json_schema, regex and grammar need the package llguidance: pip install 'loraloom[guided]'"
            ) from None
        compiled = LLMatcher(self._library_tokenizer, _grammar(constraint), log_level=0)
        self._compiled[constraint] = compiled
        if len(self._compiled) > _KEPT:
            self._compiled.popitem(last=False)
        return compiled


class Matcher:
    """How far one answer has come in its constraint."""

    def __init__(self, compiled: Any, vocabulary: int) -> None:
        self._compiled = compiled
        self._vocabulary = vocabulary

    def allowed(self) -> np.ndarray:
        """The tokens that may come next, bool [vocabulary]; end tokens where the answer may end."""
        bits = np.frombuffer(self._compiled.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, count=self._vocabulary, bitorder="little").astype(bool)

    def add(self, token: int) -> bool:
        """Go on by one token; False where it is not allowed, or the library's limits do not suffice for the grammar."""
        # After an error, for one of its limits in `allowed`, the library takes an end token as if all were well.
        return bool(self._compiled.consume_token(token)) and not self._compiled.is_error()

    @property
    def complete(self) -> bool:
        """Whether the answer matches and nothing can follow."""
        return bool(self._compiled.is_stopped())

    @property
    def error(self) -> str:
        """What went wrong, in one line."""
        return " ".join(self._compiled.get_error().split())[:200]


def _grammar(constraint: Constraint) -> str:
    from llguidance import LLMatcher

    make: dict[str, Any] = {
        "json_schema": lambda text: LLMatcher.grammar_from_json_schema(text, defaults=JSON_STYLE),
        "regex": LLMatcher.grammar_from_regex,
        "grammar": LLMatcher.grammar_from_lark,
    }
    grammar: str = make[constraint.kind](constraint.text)
    return grammar
