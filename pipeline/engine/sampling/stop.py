"""Stop strings, looked for in the text that each new token adds."""

from collections.abc import Callable, Sequence

_PART = "\ufffd"  # what a part of a character decodes to


class StopScanner:
    """Finds the first stop string in the text of tokens that come one by one.

    Text is settled when it does not end within a character. Only tokens behind it are decoded again, each time after
    the few tokens before them, since some tokenizers drop a leading space (as the detokenizers of vLLM and TGI do); and
    only stop strings that end in their text are looked for. ``free_tokens``: so many tokens in whose text none counts.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str], free_tokens: int = 0) -> None:
        self._decode = decode
        self._stop = stop
        self._overlap = max(map(len, stop)) - 1
        self._free_tokens = free_tokens
        self._text = ""  # settled
        self._context: list[int] = []  # the tokens of its last part
        self._context_text = ""
        self._open: list[int] = []  # tokens behind it
        self.text: str | None = None

    def add(self, token: int) -> bool:
        """Whether the text up to this token holds a stop string; `text` is then what stands before it."""
        self._open.append(token)
        new = self._decode([*self._context, *self._open])[len(self._context_text) :]
        self._free_tokens -= 1
        if self._free_tokens < 0 and self._find(new.rstrip(_PART)):
            return True
        if not new.endswith(_PART):
            self._text += new
            self._context, self._open = self._open, []
            self._context_text = self._decode(self._context)
        return False

    def _find(self, new: str) -> bool:
        start = max(0, len(self._text) - self._overlap)
        settled = self._text[start:]
        known = settled + new
        firsts = ((stop, max(0, len(settled) - len(stop) + 1)) for stop in self._stop)
        places = [place for stop, first in firsts if (place := known.find(stop, first)) >= 0]
        if places:
            self.text = self._text[:start] + known[: min(places)]
        return bool(places)
