"""Find stop strings in the text of an answer, token by token."""

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"  # text of an incomplete character


class StopScanner:
    """Finds the first stop string in the text of tokens that are added one by one.

    Text is settled once it does not end within a character. Only later tokens are decoded again, each time after a few
    tokens of context, since some tokenizers drop a leading space (as the detokenizers of vLLM and TGI do). Only stop
    strings that end in the new text are searched. ``min_tokens``: number of first tokens that cannot end the answer.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str], min_tokens: int = 0) -> None:
        self._decode = decode
        self._stop = stop
        self._overlap = max(map(len, stop)) - 1
        self._min_tokens = min_tokens
        self._text = ""  # settled
        self._context: list[int] = []  # its last tokens
        self._context_text = ""
        self._open: list[int] = []  # tokens after it
        self.text: str | None = None

    def add(self, token: int) -> bool:
        """Add a token; return whether the text now has a stop string. `text` is then the text before it."""
        self._open.append(token)
        new = self._decode([*self._context, *self._open])[len(self._context_text) :]
        self._min_tokens -= 1
        if self._min_tokens < 0 and self._find(new.rstrip(_REPLACEMENT)):
            return True
        if not new.endswith(_REPLACEMENT):
            self._text += new
            self._context, self._open = self._open, []
            self._context_text = self._decode(self._context)
        return False

    def _find(self, new: str) -> bool:
        start = max(0, len(self._text) - self._overlap)
        settled = self._text[start:]
        searched = settled + new
        starts = ((stop, max(0, len(settled) - len(stop) + 1)) for stop in self._stop)
        matches = [index for stop, first in starts if (index := searched.find(stop, first)) >= 0]
        if matches:
            self.text = self._text[:start] + searched[: min(matches)]
        return bool(matches)
